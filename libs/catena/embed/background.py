"""The embedder for asyncio: on a thread of its own, in slices, so that a query never waits for a whole document."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from catena.embed.embedder import Embedder, Vectors

SLICE_TEXTS = 8


class BackgroundEmbedder:
    """`await embed(texts)`; concurrent calls take turns, `SLICE_TEXTS` texts at a time."""

    def __init__(self, embedder: Embedder) -> None:
        """Wrap `embedder`; `close` ends the thread."""
        self.card = embedder.card
        self._embedder = embedder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="embed")

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return self._embedder.dimension

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """(n,) texts to (n, dimension) unit rows; contract and errors of `Embedder.embed`."""
        loop = asyncio.get_running_loop()
        slices = [texts[start : start + SLICE_TEXTS] for start in range(0, len(texts), SLICE_TEXTS)]
        parts = [await loop.run_in_executor(self._pool, self._embedder.embed, part) for part in slices]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def close(self) -> None:
        """End the thread after the slice at hand."""
        self._pool.shutdown(wait=True, cancel_futures=True)
