"""Vectors of any embedding model of the catalogue, by the executor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from catena.api.executor.v1.executor_pb2 import EmbedRequest
from catena.kit.caller import SHARED, Caller, as_caller, within

if TYPE_CHECKING:
    from catena.api.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

_PATIENCE_S = 2.0


class ExecutorEmbedding:
    """`Embed` by one model of the catalogue."""

    def __init__(self, executor: "ExecutorServiceAsyncStub", model: str) -> None:
        """Ask this executor for this model."""
        self._executor = executor
        self._model = model

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts to (n, d) unit rows. Raises Missing for an unknown model, Unavailable or Late when it is away."""
        request = EmbedRequest(model=self._model, texts=texts, truncate=True)
        with as_caller(Caller(SHARED)), within(_PATIENCE_S):
            told = await self._executor.Embed(request)
        rows: NDArray[np.float32] = np.array([vector.values for vector in told.vectors], np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-9))
        return rows
