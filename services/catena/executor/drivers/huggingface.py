"""The provider `huggingface`: chat by the OpenAI-compatible router, encoders by huggingface_hub's own client.

That client is given addresses, never names of models: for a name it asks the hub, waiting, before each call.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

import httpx2
import msgspec
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from catena.executor.core.catalogue import Model
from catena.executor.core.ports import Ask, Piece, Prediction, Vectors
from catena.executor.drivers.http import Door, server_of
from catena.executor.drivers.http.refusals import refusal
from catena.executor.drivers.openai import OpenAiProvider
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Invalid, Late, Unavailable

ROUTER = "https://router.huggingface.co"
CHAT_URL = f"{ROUTER}/v1"
AT_ONCE = 8
"""The labelling tasks take one text a call; so many calls of one request are under way together."""
KEYLESS = "none"
"""Keeps the client from looking for a key of its user's own where a model names none."""


class HuggingFaceProvider:
    """Chat, embeddings, labels and spans; `base_url` is that of a dedicated endpoint, empty: the public service."""

    def __init__(self, door: Door, clock: Clock) -> None:
        """Chat through `door`, and take keys from it."""
        self._door = door
        self._clock = clock
        self._chat = OpenAiProvider(door, default_url=CHAT_URL)

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come."""
        async with aclosing(self._chat.generate(ask)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A vector for each text in one call. The service counts no tokens: it bills by time."""
        async with self._asking(model, "/pipeline/feature-extraction", timeout_s) as client:
            found = (await client.feature_extraction(list(texts), truncate=truncate or None)).tolist()
        if len(found) != len(texts) or not all(row and isinstance(row[0], float) for row in found):
            raise Unavailable(f"{model.name} sent no vector a text; is it a sentence embedder?", code="bad_reply")
        return Vectors(vectors=found, usage=None)

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        """`{label, scores}` of each text; a list of `{label, score, start, end, text}` where spans are found."""
        if model.type == "prediction" or any(not isinstance(one, str) for one in inputs):
            raise Invalid(f"{model.name} takes texts alone; send strings", code="bad_input")
        try:
            wanted = msgspec.convert(dict(parameters), Wanted)
        except msgspec.ValidationError as error:
            raise Invalid(f"parameters: {error}", code="bad_parameters") from error
        places = asyncio.Semaphore(AT_ONCE)
        async with self._asking(model, "", timeout_s) as client:

            async def one(text: str) -> Any:
                async with places:
                    if model.type == "token-classification":
                        return _spans(await client.token_classification(text, aggregation_strategy=wanted.aggregation))
                    return _labels(await client.text_classification(text, top_k=wanted.top or None))

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(text)) for text in inputs]
        return Prediction(values=[task.result() for task in tasks], usage=None)

    @asynccontextmanager
    async def _asking(self, model: Model, task: str, timeout_s: float) -> AsyncGenerator[AsyncInferenceClient, None]:
        """The library's client at the model's address; its errors become ours."""
        address = model.base_url or f"{ROUTER}/hf-inference/models/{model.upstream}{task}"
        token = self._door.key_of(model) or KEYLESS
        try:
            async with AsyncInferenceClient(model=address, token=token, timeout=timeout_s) as client:
                yield client
        except (ExceptionGroup, *FAILURES) as error:
            raise self._failure(model, _first(error)) from error

    def _failure(self, model: Model, error: Exception) -> CatenaError:
        """Ours for one of the library's. Raises what is none of them."""
        server = server_of(model, ROUTER)
        match error:
            case CatenaError():
                return error
            case OfflineModeIsEnabled():
                told = f"{model.name} may not be asked, since HF_HUB_OFFLINE is set; set it to 0 for this room"
                return Unavailable(told, code="provider_offline")
            case InferenceTimeoutError() | httpx2.TimeoutException():
                return Late(f"{server} did not answer in time", code="provider_timeout")
            case HfHubHTTPError():
                answer = error.response
                headers, now_s = dict(answer.headers), self._clock.now()
                return refusal(answer.status_code, headers, answer.content, server=server, now_s=now_s)
            case httpx2.HTTPError():
                return Unavailable(f"{server} does not answer: {type(error).__name__}", code="provider_gone")
            case ValueError() | KeyError() | TypeError():
                return Unavailable(f"{server} sent what cannot be read as its task's answer", code="bad_reply")
        raise error


FAILURES = (
    OfflineModeIsEnabled,
    InferenceTimeoutError,
    HfHubHTTPError,
    httpx2.HTTPError,
    ValueError,
    KeyError,
    TypeError,
)


class Wanted(msgspec.Struct):
    """Parameters: most labels a text, 0: all; how pieces of a word become a span. Others are passed over."""

    top: Annotated[int, msgspec.Meta(ge=0)] = 0
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _labels(found: Sequence[Any]) -> dict[str, Any]:
    ranked = sorted(found, key=lambda one: -one.score)
    return {"label": ranked[0].label, "scores": {one.label: one.score for one in ranked}}


def _spans(found: Sequence[Any]) -> list[dict[str, Any]]:
    spans = [asdict(one) for one in found]
    return [
        {
            "label": span.get("entity_group") or span.get("entity") or "",
            "score": span["score"],
            "start": span["start"],
            "end": span["end"],
            "text": span["word"],
        }
        for span in spans
    ]
