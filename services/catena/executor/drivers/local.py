"""The provider `local`: models of the adapters room, streamed over gRPC; closing the stream cancels the model."""

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from catena.api.adapters.v1 import adapters_pb2
from catena.executor.core.ports import Ask, Piece
from catena.executor.drivers.catalogue import Served

if TYPE_CHECKING:
    from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceAsyncStub

GRACE_S = 1.0
"""Our own clock ends a call first, so that the error names the stage; the channel's is for when it cannot."""
PAGE = 200


class LocalProvider:
    """Generates in the adapters room."""

    def __init__(
        self,
        stub: "AdaptersServiceAsyncStub",
        *,
        request: Callable[[Ask], adapters_pb2.GenerateRequest],
        piece: Callable[[adapters_pb2.GenerateResponse], Piece],
    ) -> None:
        """`request` and `piece` turn the core's types into messages and back."""
        self._stub = stub
        self._request = request
        self._piece = piece

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come."""
        call = self._stub.Generate(self._request(ask), timeout=ask.timeout_s + GRACE_S)
        try:
            async for response in call:
                yield self._piece(response)
        finally:
            call.cancel()


async def list_served(stub: "AdaptersServiceAsyncStub", timeout_s: float = 2.0) -> Served:
    """`base@name` and `base@name:version` of every active adapter, each with its base; and the bases."""
    bases = (await stub.ListBases(adapters_pb2.ListBasesRequest(), timeout=timeout_s)).bases
    found: dict[str, str] = {}
    token = ""
    while True:
        asked = adapters_pb2.ListAdaptersRequest(page_size=PAGE, page_token=token)
        page = await stub.ListAdapters(asked, timeout=timeout_s)
        for adapter in page.adapters:
            if adapter.status != "withdrawn":
                if "stable" in adapter.aliases:
                    found[f"{adapter.base}@{adapter.name}"] = adapter.base
                found[f"{adapter.base}@{adapter.name}:{adapter.version}"] = adapter.base
        token = page.next_page_token
        if not token:
            return Served(
                adapters=sorted(found.items()),
                bases={base.name: base.problem for base in bases},
                contexts={base.name: base.context_tokens for base in bases},
            )
