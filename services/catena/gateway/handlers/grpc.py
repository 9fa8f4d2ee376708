"""GatewayService: the front door for SDKs, with the same names, keys and budgets as over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from catena.api.executor.v1 import executor_pb2
from catena.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import choose
from catena.gateway.core.keys import Gateway, Key
from catena.gateway.handlers.asking import Asking, Question, check_context
from catena.kit.caller import Caller
from catena.kit.serve import Headers


def secret_of(headers: Headers) -> str:
    """The API key in a call's metadata."""
    return str(headers.get("authorization", "")).removeprefix("Bearer ").strip()


def by_key(gateway: Gateway) -> Callable[[Headers], Caller]:
    """Admits callers by API key, as their key's tenant and role."""

    def admit(headers: Headers) -> Caller:
        key = gateway.identify(secret_of(headers))
        return Caller(key.tenant, key.role)

    return admit


@dataclass(slots=True)
class GatewayHandlers(gateway_pb2_grpc.GatewayServiceServicer):
    """Proto in, the same asking as over HTTP, proto out."""

    asking: Asking

    async def Chat(self, request: gateway_pb2.ChatRequest, context: Any) -> AsyncIterator[gateway_pb2.ChatResponse]:
        """Answers a conversation."""
        async with aclosing(self.asking.run(self._question(request, context, stream=True))) as events:
            async for event in events:
                yield gateway_pb2.ChatResponse(event=event)

    async def Complete(
        self, request: gateway_pb2.CompleteRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.CompleteResponse]:
        """Continues a text."""
        asked = types_pb2.ChatRequest(prompt=request.prompt, sampling=request.sampling)
        chat = gateway_pb2.ChatRequest(model=request.model, request=asked, context=request.context)
        async with aclosing(self.asking.run(self._question(chat, context, stream=True))) as events:
            async for event in events:
                yield gateway_pb2.CompleteResponse(event=event)

    async def Embed(self, request: gateway_pb2.EmbedRequest, context: Any) -> gateway_pb2.EmbedResponse:
        """Turns texts into vectors."""
        wanted = executor_pb2.EmbedRequest(model=request.model, texts=request.texts, truncate=request.truncate)
        made = await self.asking.embed(self._key(context), wanted)
        return gateway_pb2.EmbedResponse(result=made)

    async def Predict(self, request: gateway_pb2.PredictRequest, context: Any) -> gateway_pb2.PredictResponse:
        """Runs a pipeline or model on one input."""
        wanted = executor_pb2.PredictRequest(
            model_id=request.model_id,
            data=request.data,
            parameters=request.parameters,
            context=check_context(request.context),
        )
        return gateway_pb2.PredictResponse(result=await self.asking.predict(self._key(context), wanted))

    async def Feedback(self, request: gateway_pb2.FeedbackRequest, context: Any) -> gateway_pb2.FeedbackResponse:
        """Takes feedback; returns once the learner has committed it."""
        return gateway_pb2.FeedbackResponse(id=await self.asking.judge(request.feedback))

    async def SubmitRun(self, request: gateway_pb2.SubmitRunRequest, context: Any) -> gateway_pb2.SubmitRunResponse:
        """Accepts a conversation to answer in the background."""
        run = await self.asking.submit(self._question(request.chat, context, stream=False), request.request_id)
        return gateway_pb2.SubmitRunResponse(run=run)

    async def GetRun(self, request: gateway_pb2.GetRunRequest, context: Any) -> gateway_pb2.GetRunResponse:
        """Tells where a background run stands."""
        told = await self.asking.executor.GetRun(executor_pb2.GetRunRequest(id=request.id))
        return gateway_pb2.GetRunResponse(run=told.run)

    async def WatchRun(
        self, request: gateway_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.WatchRunResponse]:
        """Streams a background run each time it changes."""
        async for told in self.asking.executor.WatchRun(executor_pb2.WatchRunRequest(id=request.id), timeout=3600):
            yield gateway_pb2.WatchRunResponse(run=told.run)

    async def CancelRun(self, request: gateway_pb2.CancelRunRequest, context: Any) -> gateway_pb2.CancelRunResponse:
        """Asks a background run to stop."""
        told = await self.asking.executor.CancelRun(executor_pb2.CancelRunRequest(id=request.id))
        return gateway_pb2.CancelRunResponse(run=told.run)

    def _question(self, chat: gateway_pb2.ChatRequest, context: Any, *, stream: bool) -> Question:
        return Question(
            key=self._key(context),
            choice=choose(chat.model, chat.pipeline_type),
            request=chat.request,
            context=check_context(chat.context),
            stream=stream,
            stages=True,
            no_cache=chat.no_cache,
            execution_id=self.asking.world.new_id(),
        )

    def _key(self, context: Any) -> Key:
        return self.asking.gateway.identify(secret_of(dict(context.invocation_metadata() or ())))
