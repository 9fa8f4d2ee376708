"""Work that is worth doing only as long as the client waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

CLIENT_LEFT = 499
"""What nginx logs for it; nobody reads the answer."""


async def while_there(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` gives; it is cancelled, and has ended when this returns, once the client of `request` has gone.

    The request's body has been read before.
    """
    working = asyncio.create_task(work, name="gateway answer")
    leaving = asyncio.create_task(_left(request), name="gateway client")
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_LEFT)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
