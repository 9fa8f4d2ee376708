"""vLLM behind the port `Engine`: adapters loaded and unloaded at run time, answers streamed from token ids.

Each server runs one base, started with `--model FOLDER --served-model-name NAME --enable-lora` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, for this room alone: what it holds of earlier runs is unloaded. It reads
adapters from the room's artifacts, by the same path or where `adapters.engine.artifacts` says it sees them.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Any

import msgspec

from catena.adapters.core.work import (
    AdapterSource,
    BaseFacts,
    BaseSource,
    Constraint,
    Counters,
    Done,
    Loaded,
    Part,
    Piece,
    TokenLogprob,
    Weights,
    Work,
)
from catena.adapters.drivers.remote import holding
from catena.adapters.drivers.remote.holding import Held
from catena.adapters.drivers.remote.http import DONE, Server, bad_reply, cut, message_of
from catena.adapters.drivers.remote.metrics import figures, total
from catena.adapters.drivers.remote.saying import Saying, joined, tops
from catena.kit.clock import World
from catena.kit.errors import CatenaError, Invalid, Missing, Unavailable

KIND = "vLLM"
PROBE_TOKENS = 12
DIGEST_CHARS = 64


class Card(msgspec.Struct):
    """An entry of /v1/models."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class Cards(msgspec.Struct):
    """/v1/models."""

    data: list[Card]


class Tokens(msgspec.Struct):
    """/tokenize."""

    tokens: list[int]


class Logprobs(msgspec.Struct):
    """Log-probabilities of a piece."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(msgspec.Struct):
    """A piece of one answer."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: list[dict[str, dict[str, Any]] | None] | None = None


class Cached(msgspec.Struct):
    """Of the prompt."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens as it counted them."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: Cached | None = None


class Chunk(msgspec.Struct):
    """An event of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class VllmEngine:
    """Implements the port `Runner`. `place` tells where the server finds an adapter's folder."""

    def __init__(
        self, servers: Mapping[str, Server], world: World, *, place: Callable[[str], str], lost: Callable[[], None]
    ) -> None:
        """`servers` by base; `lost` is called when one forgot an adapter."""
        self._servers = servers
        self._world = world
        self._place = place
        self._lost = lost
        self._bases: dict[str, Held] = {}
        self._adapters: dict[Weights, int] = {}

    async def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        """Pieces as they come, then Done."""
        held = self._held(work.weights.base)
        holding.refuse(work, KIND)
        ids = await holding.prompt_ids(held, work)
        held.text.check_tokens(token for token, _ in work.sampling.logit_bias)
        said = Saying(work, len(ids), self._world.clock.monotonic)
        body = body_of(work, ids, holding.most_tokens(held, work, len(ids)), held.text.temperature)
        ended = False
        try:
            async with aclosing(held.server.stream("/v1/completions", body)) as events:
                async for together in events:
                    pieces: list[Piece] = []
                    for event in together:
                        ended = ended or event == DONE
                        if event != DONE:
                            pieces += _pieces(_chunk(event, held.server), said, work.sampling.top)
                    for piece in said.until_called(joined(pieces)):
                        yield piece
                    if said.called:
                        break
        except Missing as error:
            raise self._forgotten(work.weights, error) from error
        if not (said.called or (ended and said.whole)):
            raise cut(held.server.url)
        yield said.done()

    def forget(self) -> None:
        """The room holds nothing any more; what a server still does is unloaded when its base is asked for again."""
        self._adapters.clear()

    async def load_base(self, base: BaseSource) -> BaseFacts:
        """Make sure that its server runs this very base, and that nothing of earlier runs is left there."""
        server = self._servers[base.name]
        cards = (await server.get("/v1/models", Cards)).data
        card = next((card for card in cards if card.id == base.name), None)
        if card is None:
            raise Invalid(
                f"the server at {server.url} serves {', '.join(card.id for card in cards) or 'nothing'}, not "
                f"{base.name}; start vLLM with --model {base.folder} --served-model-name {base.name} --enable-lora",
                code="engine_serves_other",
            )
        text = await holding.read_text(base, self._world.clock.now)
        asked = {"model": base.name, "prompt": holding.SAMPLE, "add_special_tokens": True}
        theirs = (await server.post("/tokenize", asked, Tokens)).tokens
        holding.check_words(server, base.name, text.prompt(holding.SAMPLE), theirs)
        held_here = {_name(weights) for weights in self._adapters}
        for left in cards:
            if _is_ours(left.id, base.name) and left.id not in held_here:
                await self._drop(server, left.id)
        context = int(min(card.max_model_len or math.inf, base.context_tokens or math.inf, 1 << 31))
        self._bases[base.name] = Held(server, text, context)
        return await holding.facts_of(base, context, "as served")

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        """Load under a name that carries the digest, and prove that it changes what the base says."""
        held, name = self._held(adapter.weights.base), _name(adapter.weights)
        part = holding.only_part(adapter, KIND)
        try:
            await held.server.text("/v1/load_lora_adapter", {"lora_name": name, "lora_path": self._place(part.folder)})
        except Missing as error:
            raise self._not_loaded(held.server, part, error) from error
        except Invalid as error:
            # The name carries the content's digest, so what was loaded under it is the same.
            if "already been loaded" not in error.message:
                raise
        try:
            await self._probe(held, adapter.weights)
        except BaseException:
            await asyncio.shield(self._drop(held.server, name))
            raise
        size = self._adapters[adapter.weights] = await holding.adapter_bytes(part)
        return Loaded(bytes=size)

    async def unload(self, weights: Weights) -> int:
        """Unload, and look whether it is gone."""
        size = self._adapters.pop(weights, 0)
        server, name = self._servers[weights.base], _name(weights)
        await self._drop(server, name)
        if any(card.id == name for card in (await server.get("/v1/models", Cards)).data):
            raise Unavailable(f"the server at {server.url} still lists {name} after unloading it", code="engine_error")
        return size

    async def counters(self) -> Counters:
        """What the servers say they did, from their metrics."""
        told = [figures(await server.text("/metrics")) for server in dict.fromkeys(self._servers.values())]
        return Counters(
            tokens=total(told, "vllm:generation_tokens_total"),
            prefix_looked=total(told, "vllm:prefix_cache_queries_total"),
            prefix_hits=total(told, "vllm:prefix_cache_hits_total"),
            waiting=total(told, "vllm:num_requests_waiting"),
            running=total(told, "vllm:num_requests_running"),
        )

    async def _probe(self, held: Held, weights: Weights) -> None:
        ids = held.text.spread(PROBE_TOKENS)
        names = (weights.base, weights.base, _name(weights))
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        base, again, adapted = [
            _prompt_logprobs(await held.server.post("/v1/completions", body | {"model": name}, Chunk), ids)
            for name in names
        ]
        if not all(math.isfinite(value) for value in adapted):
            raise Invalid(
                "the adapter makes the base answer NaN or infinity; train it again", code="adapter_not_finite"
            )
        holding.check_change(_name(weights), base, again, adapted)

    async def _drop(self, server: Server, name: str) -> None:
        try:
            await server.text("/v1/unload_lora_adapter", {"lora_name": name})
        except Missing:
            # It holds nothing of that name: what was wanted.
            return

    def _held(self, base: str) -> Held:
        if base not in self._bases:
            raise holding.not_held(base)
        return self._bases[base]

    def _forgotten(self, weights: Weights, error: Missing) -> Unavailable:
        """A server that was started anew holds no adapters."""
        self._adapters.pop(weights, None)
        self._lost()
        return Unavailable(f"{error.message}; it is loaded again when next asked for", code="engine_lost")

    def _not_loaded(self, server: Server, part: Part, error: Missing) -> CatenaError:
        if "Not Found" in error.message:
            cure = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            return Invalid(f"the server at {server.url} loads no adapters; {cure}", code="engine_no_lora")
        cure = f"let it see {part.folder}, and set adapters.engine.artifacts where its path differs"
        return Invalid(f"{error.message}; {cure}", code="engine_no_artifacts")


def body_of(work: Work, ids: list[int], most: int, temperature: float) -> dict[str, Any]:
    """The body of /v1/completions. Log-probabilities are always asked for: they make the confidence."""
    drawn = work.sampling
    heat = temperature if drawn.temperature is None else drawn.temperature
    body: dict[str, Any] = {
        "model": _name(work.weights),
        "prompt": ids,
        "max_tokens": most,
        "temperature": heat,
        "top_p": drawn.top_p,
        "n": drawn.n,
        "stop": list(drawn.stop),
        "logprobs": drawn.top,
        "presence_penalty": drawn.presence_penalty,
        "frequency_penalty": drawn.frequency_penalty,
        "repetition_penalty": drawn.repetition_penalty,
        "top_k": drawn.top_k,
        "min_p": drawn.min_p,
        "ignore_eos": drawn.ignore_eos,
        "min_tokens": drawn.min_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if heat > 0 and drawn.seed is not None:
        body["seed"] = drawn.seed
    if drawn.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in drawn.logit_bias}
    if work.salt:
        body["cache_salt"] = work.salt
    if work.constraint is not None:
        body["structured_outputs"] = _constraint(work.constraint)
    return body


def _constraint(asked: Constraint) -> dict[str, Any]:
    if asked.json_schema:
        return {"json": msgspec.json.decode(asked.json_schema)}
    return {"regex": asked.regex} if asked.regex else {"choice": list(asked.choices)}


def _name(weights: Weights) -> str:
    """How a server knows them: `base`, or `base@digest`."""
    return f"{weights.base}@{weights.adapter}" if weights.adapter else weights.base


def _is_ours(name: str, base: str) -> bool:
    owner, _, digest = name.rpartition("@")
    return owner == base and len(digest) == DIGEST_CHARS and all(letter in "0123456789abcdef" for letter in digest)


def _chunk(event: bytes, server: Server) -> Chunk:
    try:
        chunk = msgspec.json.decode(event, type=Chunk)
    except msgspec.DecodeError as error:
        raise bad_reply(server.url, error) from error
    if chunk.error is not None:
        raise Unavailable(f"the engine at {server.url} failed: {message_of(event)}", code="engine_error")
    return chunk


def _pieces(chunk: Chunk, said: Saying, top: int) -> list[Piece]:
    if chunk.usage is not None:
        said.input_tokens = chunk.usage.prompt_tokens or said.input_tokens
        said.output_tokens = chunk.usage.completion_tokens or 0
        details = chunk.usage.prompt_tokens_details
        said.cached_tokens = (details.cached_tokens or 0) if details is not None else 0
    pieces = []
    for choice in chunk.choices:
        given = choice.logprobs or Logprobs()
        values = [-math.inf if value is None else value for value in given.token_logprobs]
        said.drew(choice.index, values)
        likely = given.top_logprobs or [None] * len(values)
        entries = [
            TokenLogprob(token, value, tops((others or {}).items(), top))
            for token, value, others in zip(given.tokens, values, likely, strict=False)
        ]
        if choice.finish_reason not in (None, "", "stop", "length"):
            raise Unavailable(f"the engine gave an answer up: {choice.finish_reason}", code="engine_error")
        pieces.append(said.piece(choice.index, choice.text, entries, choice.finish_reason or ""))
    return pieces


def _prompt_logprobs(told: Chunk, ids: list[int]) -> list[float]:
    given = told.choices[0].prompt_logprobs if told.choices else None
    if not given:
        raise Unavailable(
            "the server gives no log-probabilities of prompts, so nothing can be proven", code="engine_error"
        )
    return [float(each[str(token)]["logprob"]) for token, each in zip(ids, given, strict=True) if each is not None]


def placed(root: str, elsewhere: str) -> Callable[[str], str]:
    """Where a server finds what lies below `root` here; `elsewhere` empty: at the same path."""

    def place(folder: str) -> str:
        if not elsewhere:
            return folder
        return str(PurePosixPath(elsewhere) / PurePosixPath(folder).relative_to(root))

    return place
