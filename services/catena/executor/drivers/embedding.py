"""Local embeddings: the ONNX model of `catena.embed`, opened when first asked for, on a thread of its own."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from catena.embed import BackgroundEmbedder, open_embedder
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Usage
from catena.executor.core.ports import Vectors
from catena.kit.errors import Missing, Unavailable

CHARS_PER_TOKEN = 4
"""The embedder does not count; its price is nil, so an estimate does."""


class LocalEmbedding:
    """Embeds in this process."""

    def __init__(self, folder: Path) -> None:
        """`folder` is what `python -m catena.embed.export` made."""
        self._folder = folder
        self._opening = asyncio.Lock()
        self._embedder: BackgroundEmbedder | None = None

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A vector for each text, in order; too long ones are always cut. Raises Unavailable without the model."""
        embedder = await self._opened(model)
        rows = await embedder(list(texts))
        tokens = sum(len(text) // CHARS_PER_TOKEN + 2 for text in texts)
        return Vectors(vectors=rows.tolist(), usage=Usage(input_tokens=tokens))

    def close(self) -> None:
        """End the thread."""
        if self._embedder is not None:
            self._embedder.close()

    async def _opened(self, model: Model) -> BackgroundEmbedder:
        async with self._opening:
            if self._embedder is None:
                try:
                    self._embedder = BackgroundEmbedder(await asyncio.to_thread(open_embedder, self._folder))
                except Missing as error:
                    raise Unavailable(f"{model.name}: {error.message}", code="no_embedding_model") from error
            return self._embedder
