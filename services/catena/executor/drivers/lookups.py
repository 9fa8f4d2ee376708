"""Memory and features as the core sees them, over gRPC."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf import struct_pb2

from catena.api.features.v1 import features_pb2
from catena.api.memory.v1 import memory_pb2

if TYPE_CHECKING:
    from catena.api.features.v1.features_pb2_grpc import FeaturesServiceAsyncStub
    from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceAsyncStub


class RemoteMemory:
    """Searches in the memory room."""

    def __init__(self, stub: "MemoryServiceAsyncStub", *, timeout_s: float) -> None:
        """A search that takes longer than `timeout_s` fails."""
        self._stub = stub
        self._timeout_s = timeout_s

    async def search(self, collection: str, query: str, n_results: int) -> Sequence[Mapping[str, str]]:
        """Hits, best first."""
        asked = memory_pb2.SearchRequest(collection=collection, query=query, n_results=n_results)
        found = await self._stub.Search(asked, timeout=self._timeout_s)
        return [
            {"text": hit.chunk.text, "title": hit.chunk.title, "file": hit.chunk.path, "name": hit.chunk.name}
            for hit in found.hits
        ]


class RemoteFeatures:
    """Reads in the features room."""

    def __init__(
        self, stub: "FeaturesServiceAsyncStub", *, plain: Callable[[struct_pb2.Value], Any], timeout_s: float
    ) -> None:
        """`plain` turns a message's value into plain data."""
        self._stub = stub
        self._plain = plain
        self._timeout_s = timeout_s

    async def read(self, entity_type: str, entity_id: str, group: str, features: Sequence[str]) -> Mapping[str, Any]:
        """`values` of those features that are present, and `vector` where all are numbers."""
        asked = features_pb2.GetRequest(
            entity_type=entity_type, entity_id=entity_id, group=group, features=list(features)
        )
        row = (await self._stub.Get(asked, timeout=self._timeout_s)).row
        present = {value.feature: self._plain(value.value) for value in row.values if value.status in ("", "PRESENT")}
        return {"values": present, "vector": list(row.vector)}
