"""The HTTP surface: OpenAI's routes and Catena's own, on Starlette."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec
import structlog
from opentelemetry.trace import Span
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from catena.api.executor.v1 import executor_pb2
from catena.api.learner.v1 import learner_pb2
from catena.gateway.core.keys import Key
from catena.gateway.handlers import openai, sse
from catena.gateway.handlers.asking import Asking, check_context, deepest
from catena.gateway.handlers.background import RunRoutes, run_entries
from catena.gateway.handlers.context import read_context
from catena.gateway.handlers.exchange import INFERENCE, Reader, error_response, http_error, json_response
from catena.gateway.handlers.in_turn import in_turn
from catena.gateway.handlers.inference import Inference
from catena.gateway.handlers.inference_routes import inference_entries
from catena.gateway.handlers.keys import KeyRoutes, key_entries
from catena.gateway.handlers.live import Live, live_entries
from catena.gateway.handlers.lora import LoraRoutes, lora_entries
from catena.gateway.handlers.models import ModelList
from catena.gateway.handlers.openapi import document
from catena.gateway.handlers.passage import Passage, message_json
from catena.gateway.handlers.presence import while_there
from catena.gateway.handlers.questions import questions_of
from catena.gateway.handlers.registry import RegistryRoutes
from catena.gateway.handlers.routes import Entry, Handler, served
from catena.gateway.handlers.telling import told_headers, told_json
from catena.kit.caller import Caller, as_caller
from catena.kit.errors import Invalid, Missing, Unavailable
from catena.kit.jsonvalue import from_json, struct_from_json
from catena.kit.telemetry import span, trace_id
from catena.kit.telemetry.spans import mark_failed

CHAT_EXAMPLE = {"model": "auto", "messages": [{"role": "user", "content": "Say hello."}]}
log = structlog.get_logger()


class FeedbackBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/feedback: an execution, or the `id` of an answer, and what was thought of it."""

    execution_id: str = ""
    id: str = ""
    score: float | None = None
    thumbs: int | str | None = None
    correction: str = ""
    comment: str = ""
    prompt: str = ""
    task: str = ""
    request_id: str = ""


class PredictBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /v1/predict."""

    model_id: str
    data: Any = None
    parameters: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The routes and what they ask."""

    asking: Asking
    reader: Reader
    models: ModelList
    passage: Passage
    runs: RunRoutes
    keys: KeyRoutes
    lora: LoraRoutes
    live: Live
    registry: RegistryRoutes
    inference: Inference
    cors_origins: list[str]

    def application(self) -> Starlette:
        """The ASGI application."""
        cors = Middleware(
            CORSMiddleware,
            allow_origins=self.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
        return Starlette(
            routes=served(self.entries(), self.guarded),
            middleware=[cors] if self.cors_origins else [],
            exception_handlers={HTTPException: http_error},
        )

    def entries(self) -> list[Entry]:
        """Everything that is served."""
        return [
            *self._openai(),
            *self._own(),
            *run_entries(self.runs),
            *key_entries(self.keys),
            *lora_entries(self.lora),
            *inference_entries(self.inference),
            *self.passage.entries(),
            *self._pages(),
        ]

    def _openai(self) -> list[Entry]:
        chat, plain = partial(self.complete, chat=True), partial(self.complete, chat=False)
        return [
            Entry(
                verb="POST",
                path="/v1/chat/completions",
                says="answers a conversation, whole or streamed",
                handler=chat,
                takes=openai.ChatBody,
                example=CHAT_EXAMPLE,
                streams=True,
            ),
            Entry(
                verb="POST",
                path="/v1/completions",
                says="continues a text, whole or streamed",
                handler=plain,
                takes=openai.CompletionBody,
                example={"model": "auto", "prompt": "Once"},
                streams=True,
            ),
            Entry(
                verb="POST",
                path="/v1/embeddings",
                says="turns texts into vectors",
                handler=self.embed,
                takes=openai.EmbeddingBody,
                example={"input": ["hello"]},
            ),
            Entry(verb="GET", path="/v1/models", says="lists what can be asked for", handler=self.list_models),
            Entry(verb="GET", path="/v1/models/{name:path}", says="tells of one model", handler=self.get_model),
        ]

    def _own(self) -> list[Entry]:
        return [
            Entry(
                verb="POST",
                path="/v1/feedback",
                says="takes what a user thought of an answer",
                handler=self.feedback,
                takes=FeedbackBody,
                example={"execution_id": "e-1", "thumbs": 1},
            ),
            *(
                Entry(
                    verb="POST",
                    path=path,
                    says="runs a pipeline or model on one input",
                    handler=self.predict,
                    takes=PredictBody,
                    example={"model_id": "pipeline:sentiment", "data": "what a day"},
                )
                for path in ("/v1/predict", "/api/predict")
            ),
            Entry(
                verb="POST",
                path="/v1/batch_predict",
                says="runs a pipeline or model on many inputs",
                handler=self.predict_many,
                takes=executor_pb2.BatchPredictRequest,
                gives=executor_pb2.BatchPredictResponse,
                example={"model_id": "auto", "data": ["a", "b"]},
            ),
            Entry(
                verb="GET",
                path="/v1/registry/{name}",
                says="a file of the published adapters",
                handler=self.registry.get,
                media="application/octet-stream",
            ),
        ]

    def _pages(self) -> list[Entry]:
        return [
            *live_entries(self.live),
            Entry(verb="GET", path="/healthz", says="whether the gateway serves", open=self.health),
            Entry(verb="GET", path="/health", says="the same as /healthz", open=self.health),
            Entry(verb="GET", path="/openapi.json", says="this document", open=self.openapi),
        ]

    def guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """`handler` behind key, trace, size limit and error shape."""

        async def route(request: Request) -> Response:
            with span(f"gateway.{request.url.path.strip('/').replace('/', '_')}") as here:
                response = await answered(request, here)
                # Where OpenAI's clients look for it.
                response.headers["x-request-id"] = trace_id()
                response.headers.setdefault("x-catena-trace-id", trace_id())
                return response

        async def answered(request: Request, here: Span) -> Response:
            try:
                key = self.asking.gateway.identify(bearer(request))
                with as_caller(Caller(key.tenant, key.role)):
                    return await handler(request, key)
            except asyncio.CancelledError:
                # Only the server does that, to what outlasts its drain; raised, it would answer a bare 500.
                return error_response(Unavailable("the gateway is stopping; try again", retry_after_s=1.0))
            except Exception as error:
                told = deepest(error)
                if told.code == "internal":
                    log.exception("request failed", path=request.url.path)
                mark_failed(here, error)
                return error_response(told, plain=request.url.path.startswith(INFERENCE))

        return route

    async def complete(self, request: Request, key: Key, *, chat: bool) -> Response:
        """Chat completions and completions, plain and streamed."""
        kind: type[openai.ChatBody | openai.CompletionBody] = openai.ChatBody if chat else openai.CompletionBody
        body = await self.reader.read(request, kind)
        questions = questions_of(request, key, body, self.asking.world.new_id)
        events = in_turn(self.asking, questions)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            chunks = sse.Chunks(
                id=openai.answer_id(questions[0].execution_id, chat=chat),
                model=body.model,
                chat=chat,
                usage=usage,
                created_s=int(self.asking.world.clock.now()),
            )
            return await while_there(request, sse.respond(events, chunks))
        return await while_there(request, self.whole(events, body.model, chat=chat))

    async def whole(self, events: sse.Events, model: str, *, chat: bool) -> Response:
        """The answer in one piece, once it has ended."""
        finished = executor_pb2.Finished()
        async with aclosing(events):
            async for event in events:
                if event.HasField("finished"):
                    finished = event.finished
        trace = trace_id()
        answer = {
            "id": openai.answer_id(finished.execution_id, chat=chat),
            "object": "chat.completion" if chat else "text_completion",
            "created": int(self.asking.world.clock.now()),
            "model": model,
            "choices": [openai.choice_json(choice, chat=chat) for choice in finished.choices],
            "usage": openai.usage_json(finished.usage),
            "system_fingerprint": None,
            "catena": told_json(finished, trace),
        }
        return json_response(answer, headers=told_headers(finished, trace))

    async def embed(self, request: Request, key: Key) -> Response:
        """Embeddings, as floats or base64."""
        body = await self.reader.read(request, openai.EmbeddingBody)
        texts = openai.texts_of("input", body.input)
        if not texts:
            raise Invalid("`input` is empty; give at least one text", code="missing_input")
        made = await self.asking.embed(
            key, executor_pb2.EmbedRequest(model=body.model, texts=texts, truncate=body.truncate)
        )
        for vector in made.vectors:
            check_dimensions(body, made.model, len(vector.values))
        data = [
            {"object": "embedding", "index": index, "embedding": sse.vector_json(vector.values, body.encoding_format)}
            for index, vector in enumerate(made.vectors)
        ]
        tokens = made.usage.input_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": made.model, "usage": usage})

    async def list_models(self, _: Request, key: Key) -> Response:
        """Every model that may be asked for; an adapter names its `parent`."""
        return json_response({"object": "list", "data": await self.models.all(key.tenant)})

    async def get_model(self, request: Request, key: Key) -> Response:
        """One model."""
        name = request.path_params["name"]
        for model in await self.models.all(key.tenant):
            if model["id"] == name:
                return json_response(model)
        raise Missing(f"no model {name!r}; list them with GET /v1/models", code="unknown_model")

    async def feedback(self, request: Request, _: Key) -> Response:
        """Feedback; answered once the learner has committed it."""
        body = await self.reader.read(request, FeedbackBody)
        told = learner_pb2.Feedback(
            execution_id=execution_of(body.execution_id or body.id),
            score=None if body.score is None else openai.within("score", body.score, 0.0, 1.0),
            thumbs=thumbs_of(body.thumbs),
            correction=body.correction,
            comment=body.comment,
            prompt=body.prompt,
            task=body.task,
            request_id=body.request_id or request.headers.get("idempotency-key", ""),
        )
        id_ = await self.asking.judge(told)
        return json_response({"id": id_, "object": "feedback", "execution_id": told.execution_id})

    async def predict(self, request: Request, key: Key) -> Response:
        """A pipeline or model on one input: `{model_id, data, parameters}` to `{result, latency}` in milliseconds."""
        body = await self.reader.read(request, PredictBody)
        wanted = executor_pb2.PredictRequest(
            model_id=await self.asking.names.meaning(key.tenant, body.model_id),
            data=from_json(body.data),
            parameters=struct_from_json(body.parameters),
            context=read_context(request.headers, {}),
        )
        return json_response(self.passage.predicted(await self.asking.predict(key, wanted)))

    async def predict_many(self, request: Request, key: Key) -> Response:
        """A pipeline or model on many inputs, in the words of the proto."""
        wanted = await self.passage.read(request, executor_pb2.BatchPredictRequest)
        check_context(wanted.context)
        return Response(message_json(await self.asking.predict_many(key, wanted)), media_type="application/json")

    async def openapi(self, _: Request) -> Response:
        """What every route takes and gives."""
        return json_response(document(self.entries(), version("catena")))

    async def health(self, _: Request) -> Response:
        """Whether the gateway is up."""
        return json_response({"status": "ok"})


def check_dimensions(body: openai.EmbeddingBody, model: str, found: int) -> None:
    """Raise Invalid where other dimensions were asked for than the model gives."""
    if body.dimensions not in (None, found):
        raise Invalid(
            f"{model} gives {found} dimensions, not {body.dimensions}; leave `dimensions` out", code="bad_parameter"
        )


def bearer(request: Request) -> str:
    """The API key that the request shows."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def execution_of(id_: str) -> str:
    """The execution behind an answer's id. Raises Invalid."""
    for prefix in ("chatcmpl-", "cmpl-"):
        id_ = id_.removeprefix(prefix)
    if not id_:
        raise Invalid("feedback names no execution; give `execution_id` or the answer's `id`", code="missing_execution")
    return id_


def thumbs_of(thumbs: int | str | None) -> int:
    """1, -1 or 0, from a number or from `up` and `down`. Raises Invalid."""
    known: dict[int | str | None, int] = {None: 0, 0: 0, 1: 1, -1: -1, "up": 1, "down": -1}
    with suppress(KeyError):
        return known[thumbs]
    raise Invalid(f"thumbs {thumbs!r} is neither up nor down", code="bad_parameter")
