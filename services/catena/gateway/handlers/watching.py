"""A background run as server-sent events: `run` when its state changes, `stage` as each ends, `end` with all of it.

`stage` events carry their number as `id`, so that a client that comes back with `Last-Event-ID` gets only the rest.
"""

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.gateway.handlers import openai
from catena.gateway.handlers.asking import deepest
from catena.gateway.handlers.passage import message_json
from catena.gateway.handlers.pump import Pump, Streamed, lively, named
from catena.gateway.handlers.webhooks import ENDED
from catena.kit.errors import Invalid, Late

STILL_S = 15.0
"""Pause after which a comment says that the connection lives."""
STILL = b": still here\n\n"
ONE_WATCH_S = 600.0
log = structlog.get_logger()
Runs = AsyncGenerator[executor_pb2.Run, None]


async def watch(executor: "executor_pb2_grpc.ExecutorServiceAsyncStub", request: Request) -> Response:
    """The stream of the run that the path names. Raises Missing (`unknown_run`), Invalid (`bad_parameter`)."""
    id_, last = request.path_params["id"], request.headers.get("last-event-id") or "0"
    if not last.isascii() or not last.isdigit() or len(last) > 9:
        raise Invalid(f"Last-Event-ID {last[:20]!r} is no number of a stage; leave it out", code="bad_parameter")
    pump = Pump(changes(executor, id_))
    try:
        first = await anext(pump)
    except BaseException:
        await pump.stop()
        raise
    return Streamed(_body(first, pump, int(last)), pump)


async def changes(executor: "executor_pb2_grpc.ExecutorServiceAsyncStub", id_: str) -> Runs:
    """The run now and whenever it changes, until it ends, however long it takes."""
    wanted = executor_pb2.WatchRunRequest(id=id_)
    while True:
        try:
            async for told in executor.WatchRun(wanted, timeout=ONE_WATCH_S):
                yield told.run
            return
        except Late:
            continue


async def _body(first: executor_pb2.Run, pump: Pump[executor_pb2.Run], told: int) -> AsyncIterator[bytes]:
    state, run = "", first
    try:
        for piece in pieces(first, state, told):
            yield piece
        async for changed in lively(pump, STILL_S):
            if changed is None:
                yield STILL
                continue
            state, told, run = run.state, max(told, len(run.stages)), changed
            for piece in pieces(run, state, told):
                yield piece
    except Exception as error:
        known = deepest(error)
        if known.code == "internal":
            log.exception("watch failed")
        yield named("error", msgspec.json.encode(openai.error_json(known)))


def pieces(run: executor_pb2.Run, state: str, told: int) -> list[bytes]:
    """What a watcher who knows of `state` and of `told` stages has to hear."""
    heard = []
    if run.state != state:
        now = {"id": run.id, "state": run.state, "created_s": run.created_s}
        heard.append(named("run", msgspec.json.encode(now)))
    for number, stage in enumerate(run.stages[told:], told + 1):
        heard.append(named("stage", message_json(stage), number))
    if run.state in ENDED:
        heard.append(named("end", message_json(executor_pb2.GetRunResponse(run=run))))
    return heard
