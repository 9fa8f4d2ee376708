"""Calls TGI: conversations by its OpenAI-compatible route, which knows the model's template; prompts by its own."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from catena.executor.core.catalogue import Model
from catena.executor.core.ports import Ask, Ended, Piece
from catena.executor.drivers.http import Door, Post, replies_of, server_of
from catena.executor.drivers.openai import OpenAiProvider
from catena.executor.drivers.tgi.words import (
    DECODER,
    Said,
    delta_of,
    generate_body,
    least_probability,
    response_format,
    usage_of,
)
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable


class TgiProvider:
    """Chat and completion over a model's `base_url`, the root of its server."""

    def __init__(self, door: Door) -> None:
        """Ask through `door`."""
        self._door = door
        self._chat = OpenAiProvider(door, default_url="", constrain=response_format)

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """Pieces as they come; usage verbatim. A prompt's answer whose last event does not come was cut."""
        root = _root(ask.model)
        if not ask.request.prompt:
            chat = self._chat.generate(replace(ask, model=replace(ask.model, base_url=f"{root}/v1")))
            async with aclosing(chat) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
            return
        logprobs: list[float] = []
        ended: Ended | None = None
        async with aclosing(replies_of(self._door, self._post(ask, root), DECODER, "TGI", ends=_ends)) as events:
            async for said in events:
                if said.error is not None:
                    raise fault_of(said.error, said.error_type)
                if said.token and said.token.logprob is not None and not said.token.special:
                    logprobs.append(said.token.logprob)
                yield Piece(deltas=(delta_of(said, logprobs=ask.request.sampling.logprobs),))
                if _ends(said):
                    usage = usage_of(said.details) if said.details else None
                    sure = least_probability(logprobs)
                    ended = Ended(usage=usage, resolved_model=ask.model.upstream, confidence=sure)
        if ended is not None:
            yield Piece(ended=ended)

    def _post(self, ask: Ask, root: str) -> Post:
        key = self._door.key_of(ask.model)
        return Post(
            server=server_of(ask.model, root),
            url=f"{root}/generate_stream",
            body=generate_body(ask),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout_s=ask.timeout_s,
        )


def _root(model: Model) -> str:
    if not model.base_url:
        raise Unavailable(f"{model.name} names no server; set its base_url to that of its TGI", code="no_provider")
    return model.base_url.rstrip("/").removesuffix("/v1")


def _ends(said: Said) -> bool:
    return said.generated_text is not None and said.details is not None


def fault_of(message: str, kind: str) -> CatenaError:
    """The error kind of an error told within a stream."""
    says = f"the provider broke its answer off: {message[:300]}"
    if kind == "overloaded":
        return Exhausted(says, code="provider_busy")
    return Invalid(says, code="provider_refused") if kind == "validation" else Unavailable(says, code="provider_error")
