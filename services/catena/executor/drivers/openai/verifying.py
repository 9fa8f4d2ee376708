"""Lossless speculation over HTTP: the target says how far a draft is its own greedy answer, then goes on from there.

vLLM's chat interface returns the log-probabilities of a prompt (`prompt_logprobs`) and continues an assistant's turn
(`continue_final_message`). With the draft as that turn, each of its tokens of rank 1 is the one that the target would
have written; from the first that is not, it goes on by itself. One pass over the draft takes the place of writing it
(Leviathan et al., arXiv 2211.17192, at temperature 0). What stands is read anew as text, so at the seam it is exact up
to the server's tokenization.
"""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec

from catena.executor.core.catalogue import Model
from catena.executor.core.chat import NOTHING_USED, Delta, Usage
from catena.executor.core.ports import Ask, Ended, Piece, Vectors
from catena.executor.drivers.openai.body import chat_body
from catena.executor.drivers.openai.chunks import Counted, Option, Reply, usage_of
from catena.executor.drivers.openai.provider import OpenAiProvider
from catena.kit.errors import Invalid


class Ranked(msgspec.Struct):
    """A token that stood, or might have stood, at a place of the prompt."""

    decoded_token: str | None = None
    rank: int | None = None


class Scored(msgspec.Struct):
    """The reply to a draft."""

    prompt_logprobs: list[dict[str, Ranked] | None] | None = None
    choices: list[Option] = []
    usage: Counted | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The beginning of the target's own answer, with so many of the draft's tokens; `finish` empty: it goes on."""

    text: str
    finish: str
    accepted: int
    drafted: int
    usage: Usage
    model: str


class VerifyingProvider:
    """Passes calls on to `provider`; those with a draft are verified first, where the server plays along."""

    def __init__(self, provider: OpenAiProvider) -> None:
        """Ask the servers that `provider` asks."""
        self._provider = provider

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """As the provider does."""
        return await self._provider.embed(model, texts, timeout_s, truncate=truncate)

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """The target's greedy answer, its verified beginning as one piece."""
        found = await self._verified(ask) if ask.drafted.strip() else None
        if found is not None:
            if found.text:
                yield Piece(deltas=(Delta(text=found.text),))
            told = Ended(usage=found.usage, resolved_model=found.model)
            told = replace(told, drafted_tokens=found.drafted, accepted_tokens=found.accepted)
            if found.finish:
                yield Piece(deltas=(Delta(finish_reason=found.finish),), ended=told)
                return
            ask = resumed(ask, found)
        async with aclosing(cast(Any, self._provider.generate(ask))) as pieces:
            async for piece in pieces:
                if piece.ended is not None and found is not None:
                    yield replace(piece, ended=_together(piece.ended, told))
                else:
                    yield piece

    async def _verified(self, ask: Ask) -> Verified | None:
        """None where the server does not know the question, or reads the draft in a way that cannot be followed."""
        try:
            reply = await self._provider.post(ask.model, "chat/completions", question(ask), ask.timeout_s)
            return read(reply, ask.drafted.strip(), ask.request.sampling.max_tokens)
        except Invalid:
            return None


def question(ask: Ask) -> dict[str, Any]:
    """The draft as the beginning of the answer: how likely was each token, and which one comes next?"""
    body = chat_body(replace(ask, request=replace(ask.request, begun=ask.drafted.strip())), stream=False)
    return body | {"max_tokens": 1, "prompt_logprobs": 1}


def read(reply: bytes, draft: str, most_tokens: int) -> Verified | None:
    """What the reply says of the draft; None when it is no reply to that.

    Nothing of a draft stands whose tokens do not spell it, or are more than the answer may have (0: any number). What
    stands ends in a letter or mark, because templates strip what they continue. The token that the target would have
    written instead is left to it: one that ends the text is told as if it were words.
    """
    try:
        told = msgspec.json.decode(reply, type=Scored)
    except msgspec.DecodeError:
        return None
    places = _spelling([place or {} for place in told.prompt_logprobs or []], draft)
    if not told.choices or 0 < most_tokens < len(places):
        places = []
    kept = [_actual(place).decoded_token or "" for place in itertools.takewhile(_likeliest, places)]
    while kept and kept[-1][-1:].isspace():
        kept.pop()
    whole = bool(places) and len(kept) == len(places) and told.choices[0].finish_reason == "stop"
    return Verified(
        text="".join(kept),
        finish="stop" if whole else "length" if len(kept) == most_tokens > 0 else "",
        accepted=len(kept),
        drafted=len(places),
        usage=usage_of(Reply(usage=told.usage)) or NOTHING_USED,
        model=told.model or "",
    )


def resumed(ask: Ask, found: Verified) -> Ask:
    """The same question, the answer begun; what is begun counts towards its limit."""
    sampling = ask.request.sampling
    left = sampling.max_tokens - found.accepted if sampling.max_tokens else 0
    request = replace(ask.request, begun=found.text, sampling=replace(sampling, max_tokens=left))
    return replace(ask, request=request, drafted="")


def _spelling(places: list[dict[str, Ranked]], draft: str) -> list[dict[str, Ranked]]:
    """The last places, whose tokens together are the draft; none where they are not."""
    text = ""
    for number in range(len(places) - 1, -1, -1):
        text = (_actual(places[number]).decoded_token or "") + text if places[number] else draft + text
        if text == draft and places[number]:
            return places[number:]
        if not draft.endswith(text):
            return []
    return []


def _likeliest(place: dict[str, Ranked]) -> bool:
    return _actual(place).rank == 1


def _actual(place: dict[str, Ranked]) -> Ranked:
    """The token of the prompt: beside the likeliest one, where it was another."""
    return max(place.values(), key=lambda token: token.rank or 0)


def _together(ended: Ended, before: Ended) -> Ended:
    usage = None if ended.usage is None else ended.usage + (before.usage or NOTHING_USED)
    return replace(ended, usage=usage, drafted_tokens=before.drafted_tokens, accepted_tokens=before.accepted_tokens)
