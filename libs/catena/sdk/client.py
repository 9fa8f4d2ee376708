"""Catena from Python: `Catena` and `AsyncCatena` speak to the gateway over gRPC with an API key.

async with AsyncCatena("unix:.catena/run/gateway.sock", key=KEY) as catena:
answer = await catena.chat("reverse: hello", model="auto")
await catena.feedback(answer.execution_id, thumbs=1)
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf import json_format, struct_pb2

from catena.api.executor.v1 import executor_pb2
from catena.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from catena.api.learner.v1 import learner_pb2
from catena.api.types.v1 import types_pb2
from catena.kit.dial import dial
from catena.kit.errors import Unavailable

T = TypeVar("T")
Messages = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer with its account; `finished` is the executor's own message, stages and all."""

    text: str
    execution_id: str
    model: str
    cost_usd: float
    duration_ms: float
    finished: executor_pb2.Finished


class AsyncCatena:
    """The client; opened and closed by `async with`. Errors are those of `catena.kit.errors`."""

    def __init__(self, address: str, *, key: str, timeout_s: float = 120.0) -> None:
        """Speak to the gateway at `address` (`unix:...` or `host:port`) with an API key."""
        self._address = address
        self._key = key
        self._timeout_s = timeout_s
        self._stack = AsyncExitStack()
        self._gateway: gateway_pb2_grpc.GatewayServiceAsyncStub | None = None

    async def __aenter__(self) -> Self:
        """Open; the connection is made with the first call."""
        channel = await self._stack.enter_async_context(dial(self._address, token=self._key, timeout_s=self._timeout_s))
        self._gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close."""
        await self._stack.aclose()

    @property
    def gateway(self) -> "gateway_pb2_grpc.GatewayServiceAsyncStub":
        """The stub itself, for what this class does not wrap."""
        if self._gateway is None:
            raise Unavailable("the client is not open; use it in `async with`")
        return self._gateway

    async def stream(
        self, messages: Messages, *, model: str = "auto", pipeline_type: str = "", **context: Any
    ) -> AsyncGenerator[executor_pb2.RunResponse, None]:
        """The executor's events as they come; `context` takes the fields of RequestContext, and `sampling`."""
        async for told in self.gateway.Chat(wanted(messages, model, pipeline_type, context)):
            yield told.event

    async def chat(self, messages: Messages, *, model: str = "auto", pipeline_type: str = "", **context: Any) -> Answer:
        """The whole answer."""
        finished = executor_pb2.Finished()
        async for event in self.stream(messages, model=model, pipeline_type=pipeline_type, **context):
            if event.HasField("finished"):
                finished = event.finished
        return answer_of(finished)

    async def feedback(self, execution_id: str, **told: Any) -> str:
        """Tell what an answer was worth (`score`, `thumbs`, `correction`, `comment`, `task`); its id, once kept."""
        feedback = learner_pb2.Feedback(execution_id=execution_id, **told)
        return (await self.gateway.Feedback(gateway_pb2.FeedbackRequest(feedback=feedback))).id

    async def embed(self, texts: Sequence[str], *, model: str = "", truncate: bool = False) -> list[list[float]]:
        """Vectors in the order of the texts; `truncate`: a local encoder cuts what is too long for it."""
        made = await self.gateway.Embed(gateway_pb2.EmbedRequest(model=model, texts=texts, truncate=truncate))
        return [list(vector.values) for vector in made.result.vectors]

    async def predict(self, model_id: str, data: Any, **parameters: Any) -> Any:
        """What a pipeline or model makes of `data`, as plain JSON data."""
        request = gateway_pb2.PredictRequest(model_id=model_id, data=json_format.ParseDict(data, struct_pb2.Value()))
        request.parameters.update(parameters)
        return json_format.MessageToDict((await self.gateway.Predict(request)).result.result)

    async def submit(
        self, messages: Messages, *, model: str = "auto", pipeline_type: str = "", request_id: str = "", **context: Any
    ) -> executor_pb2.Run:
        """The run, once it is stored for the background; repeats of a `request_id` are the same run."""
        chat = wanted(messages, model, pipeline_type, context)
        request = gateway_pb2.SubmitRunRequest(chat=chat, request_id=request_id)
        return (await self.gateway.SubmitRun(request)).run

    async def run(self, id: str) -> executor_pb2.Run:
        """Where a background run stands. Raises Missing."""
        return (await self.gateway.GetRun(gateway_pb2.GetRunRequest(id=id))).run

    async def watch(self, id: str) -> AsyncGenerator[executor_pb2.Run, None]:
        """A background run now and each time it changes, until it ends. Raises Missing."""
        async for told in self.gateway.WatchRun(gateway_pb2.WatchRunRequest(id=id)):
            yield told.run

    async def cancel(self, id: str) -> executor_pb2.Run:
        """The run after the wish to cancel it was noted. Raises Missing."""
        return (await self.gateway.CancelRun(gateway_pb2.CancelRunRequest(id=id))).run


class Catena:
    """The same for code without an event loop; opened and closed by `with`."""

    def __init__(self, address: str, *, key: str, timeout_s: float = 120.0) -> None:
        """As `AsyncCatena`."""
        self._inner = AsyncCatena(address, key=key, timeout_s=timeout_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="catena-sdk", daemon=True)

    def __enter__(self) -> Self:
        """Open."""
        self._thread.start()
        self._wait(self._inner.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close, and end the thread that served it."""
        self._wait(self._inner.__aexit__(kind, error, at))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def chat(self, messages: Messages, *, model: str = "auto", pipeline_type: str = "", **context: Any) -> Answer:
        """The whole answer."""
        return self._wait(self._inner.chat(messages, model=model, pipeline_type=pipeline_type, **context))

    def stream(self, messages: Messages, *, model: str = "auto", **context: Any) -> Iterator[str]:
        """The answer's text as it comes; leaving the iteration cancels the rest of it."""
        events = self._inner.stream(messages, model=model, **context)
        try:
            while (event := self._wait(_next(events))) is not None:
                if event.HasField("delta") and event.delta.text:
                    yield event.delta.text
        finally:
            self._wait(events.aclose())

    def feedback(self, execution_id: str, **told: Any) -> str:
        """Tell what an answer was worth; returns once committed."""
        return self._wait(self._inner.feedback(execution_id, **told))

    def embed(self, texts: Sequence[str], *, model: str = "", truncate: bool = False) -> list[list[float]]:
        """Vectors in the order of the texts."""
        return self._wait(self._inner.embed(texts, model=model, truncate=truncate))

    def predict(self, model_id: str, data: Any, **parameters: Any) -> Any:
        """What a pipeline or model makes of `data`."""
        return self._wait(self._inner.predict(model_id, data, **parameters))

    def submit(self, messages: Messages, *, model: str = "auto", **context: Any) -> executor_pb2.Run:
        """The run, once it is stored for the background."""
        return self._wait(self._inner.submit(messages, model=model, **context))

    def run(self, id: str) -> executor_pb2.Run:
        """Where a background run stands."""
        return self._wait(self._inner.run(id))

    def watch(self, id: str) -> Iterator[executor_pb2.Run]:
        """A background run now and each time it changes, until it ends."""
        changes = self._inner.watch(id)
        try:
            while (run := self._wait(_next(changes))) is not None:
                yield run
        finally:
            self._wait(changes.aclose())

    def cancel(self, id: str) -> executor_pb2.Run:
        """The run after the wish to cancel it was noted."""
        return self._wait(self._inner.cancel(id))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _next(events: AsyncGenerator[T, None]) -> T | None:
    return await anext(events, None)


def wanted(messages: Messages, model: str, pipeline_type: str, context: dict[str, Any]) -> gateway_pb2.ChatRequest:
    """What the gateway is asked; `context` holds the fields of RequestContext, `sampling` and `no_cache`."""
    told = {name: value for name, value in context.items() if name not in ("sampling", "no_cache")}
    return gateway_pb2.ChatRequest(
        model=model,
        pipeline_type=pipeline_type,
        request=chat_request(messages, context.get("sampling")),
        context=types_pb2.RequestContext(**told),
        no_cache=context.get("no_cache", False),
    )


def chat_request(messages: Messages, sampling: Mapping[str, Any] | None) -> types_pb2.ChatRequest:
    """A text, or OpenAI-like messages, as the protocol's request."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return types_pb2.ChatRequest(
        messages=[types_pb2.ChatMessage(**turn) for turn in turns],
        sampling=types_pb2.Sampling(**sampling) if sampling else None,
    )


def answer_of(finished: executor_pb2.Finished) -> Answer:
    """The first choice of a finished run. Raises Unavailable when the stream ended without one."""
    if not finished.choices:
        raise Unavailable("the stream ended without an answer; ask again", code="stream_cut")
    return Answer(
        text=finished.choices[0].message.content,
        execution_id=finished.execution_id,
        model=finished.model,
        cost_usd=finished.cost_usd,
        duration_ms=finished.duration_ms,
        finished=finished,
    )
