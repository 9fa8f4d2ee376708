"""TGI behind the port `Engine`: answers from a server whose adapters were named when it was started.

Each server runs one base, started with `--model-id FOLDER` and `LORA_ADAPTERS=DIGEST=FOLDER,...`; TGI has no route that
loads or unloads. An id that it does not know is answered by its base, so that every adapter must be seen to make a
difference before it serves. It takes text: what it would not read as the base's own template does is refused.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
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
    Piece,
    Sampling,
    TokenLogprob,
    Weights,
    Work,
)
from catena.adapters.drivers.engine.text import StopWatch
from catena.adapters.drivers.remote import holding
from catena.adapters.drivers.remote.holding import Held, unsupported
from catena.adapters.drivers.remote.http import Server, bad_reply, cut, message_of
from catena.adapters.drivers.remote.metrics import figures, total
from catena.adapters.drivers.remote.saying import Saying, joined, tops
from catena.kit.clock import World
from catena.kit.errors import Exhausted, Invalid, Unavailable

KIND = "TGI"
MOST_SEED = 2**64 - 1
PROBE_TOKENS = 8
PROBE_TOPS = 5


class Info(msgspec.Struct):
    """/info."""

    model_id: str
    max_total_tokens: int
    model_dtype: str | None = None


class Token(msgspec.Struct):
    """A token of an answer; TGI writes null where it has no log-probability."""

    id: int
    text: str = ""
    logprob: float | None = None
    special: bool = False


class Details(msgspec.Struct):
    """How a stream ended."""

    finish_reason: str
    generated_tokens: int
    input_length: int = 0


class Event(msgspec.Struct):
    """An event of a stream; the last one has details."""

    token: Token | None = None
    top_tokens: list[Token] = []
    details: Details | None = None
    error: str | None = None
    error_type: str = ""


class Whole(msgspec.Struct):
    """What /generate tells of its tokens."""

    tokens: list[Token] = []
    top_tokens: list[list[Token]] = []


class Generated(msgspec.Struct):
    """/generate."""

    details: Whole | None = None


class TgiEngine:
    """Implements the port `Runner`."""

    def __init__(self, servers: Mapping[str, Server], world: World) -> None:
        """`servers` by base."""
        self._servers = servers
        self._world = world
        self._bases: dict[str, Held] = {}
        self._adapters: dict[Weights, int] = {}

    async def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        """Pieces as they come, then Done."""
        held = self._held(work.weights.base)
        _refuse(work)
        inputs, ids = await self._inputs(held, work)
        said = Saying(work, len(ids), self._world.clock.monotonic)
        reader = _Reader(said, work.sampling)
        body = body_of(work, inputs, holding.most_tokens(held, work, len(ids)), held.text.temperature)
        async with aclosing(held.server.stream("/generate_stream", body)) as events:
            async for together in events:
                pieces = [piece for event in together for piece in reader.take(_event(event, held.server))]
                for piece in said.until_called(joined(pieces)):
                    yield piece
                if said.whole:
                    break
        if not said.whole:
            raise cut(held.server.url)
        yield said.done()

    async def load_base(self, base: BaseSource) -> BaseFacts:
        """Make sure that its server runs this very base."""
        server = self._servers[base.name]
        info = await server.get("/info", Info)
        if Path(info.model_id).name not in (base.name, Path(base.folder).name):
            raise Invalid(
                f"the server at {server.url} serves {info.model_id}, not {base.name}; start TGI with --model-id "
                f"{base.folder}",
                code="engine_serves_other",
            )
        text = await holding.read_text(base, self._world.clock.now)
        theirs = [token.id for token in await server.post("/tokenize", {"inputs": holding.SAMPLE}, list[Token])]
        holding.check_words(server, base.name, text.read(holding.SAMPLE), theirs)
        context = min(info.max_total_tokens, base.context_tokens or info.max_total_tokens)
        self._bases[base.name] = Held(server, text, context)
        return await holding.facts_of(base, context, (info.model_dtype or "as served").removeprefix("torch."))

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        """Prove that the server knows the adapter: that with its digest as id it answers otherwise than its base."""
        held, weights = self._held(adapter.weights.base), adapter.weights
        part = holding.only_part(adapter, KIND)
        base, again, adapted = [await self._probe(held, name) for name in ("", "", weights.adapter)]
        try:
            holding.check_change(weights.adapter, base, again, adapted)
        except Invalid as error:
            raise Invalid(
                f"{error.message}; TGI loads adapters at its start alone, and answers by its base for an id that it "
                f"does not know: start it with LORA_ADAPTERS={weights.adapter}={part.folder}",
                code=error.code,
            ) from None
        size = self._adapters[weights] = await holding.adapter_bytes(part)
        return Loaded(bytes=size)

    async def unload(self, weights: Weights) -> int:
        """Forget it here; TGI keeps what it was started with, so that no byte is freed."""
        self._adapters.pop(weights, None)
        return 0

    async def counters(self) -> Counters:
        """What the servers say they did, from their metrics."""
        told = [figures(await server.text("/metrics")) for server in dict.fromkeys(self._servers.values())]
        return Counters(
            tokens=total(told, "tgi_request_generated_tokens_sum"),
            waiting=total(told, "tgi_queue_size"),
            running=total(told, "tgi_batch_current_size"),
        )

    async def _probe(self, held: Held, adapter: str) -> list[float]:
        asked: dict[str, Any] = {"details": True, "do_sample": False}
        asked |= {"max_new_tokens": PROBE_TOKENS, "top_n_tokens": PROBE_TOPS}
        asked |= {"adapter_id": adapter} if adapter else {}
        body = {"inputs": holding.SAMPLE, "parameters": asked}
        told = (await held.server.post("/generate", body, Generated)).details
        if told is None or not told.tokens:
            raise Unavailable("the server tells no log-probabilities, so nothing can be proven", code="engine_error")
        values = [token.logprob for token in told.tokens]
        values += [token.logprob for step in told.top_tokens for token in step]
        # Which tokens came belongs to what was said: their numbers, told apart from any log-probability.
        return [float(token.id) for token in told.tokens] + [0.0 if value is None else value for value in values]

    async def _inputs(self, held: Held, work: Work) -> tuple[str, list[int]]:
        """The prompt as text that the server reads as exactly the tokens that the base's template means."""
        ids = await holding.prompt_ids(held, work)
        if not work.messages:
            text = work.prompt
            if await asyncio.to_thread(held.text.read, text) == ids:
                return text, ids
        else:
            whole = held.text.whole(work.messages, work.tools)
            begin = held.text.token(ids[0]) if ids else ""
            for text in (whole, whole.removeprefix(begin)):
                # The second: where the server adds the beginning of text itself, the template must not.
                if await asyncio.to_thread(held.text.read, text) == ids:
                    return text, ids
        raise unsupported(
            KIND, "way to read this text as it is meant", "text_unsupported",
            "leave out names of special tokens, or use vLLM or the local engine",
        )  # fmt: skip

    def _held(self, base: str) -> Held:
        if base not in self._bases:
            raise holding.not_held(base)
        return self._bases[base]


class _Reader:
    """Turns events into pieces: TGI sends stop texts and special tokens along, which are not shown."""

    def __init__(self, said: Saying, sampling: Sampling) -> None:
        self._said = said
        self._top = sampling.top
        self._stop = StopWatch(sampling.stop)

    def take(self, event: Event) -> list[Piece]:
        pieces: list[Piece] = []
        token = event.token
        if token is not None and not self._said.whole:
            value = token.logprob or 0.0
            self._said.drew(0, [value])
            self._said.output_tokens += 1
            if not token.special:
                others = tops(((each.text, each.logprob or 0.0) for each in event.top_tokens), self._top)
                text = self._stop.push(token.text)
                pieces.append(self._said.piece(0, text, [TokenLogprob(token.text, value, others)], ""))
            if self._stop.stopped:
                pieces.append(self._said.piece(0, "", (), "stop"))
        if event.details is not None and not self._said.whole:
            self._said.input_tokens = event.details.input_length or self._said.input_tokens
            self._said.output_tokens = event.details.generated_tokens
            finish = "length" if event.details.finish_reason == "length" else "stop"
            pieces.append(self._said.piece(0, self._stop.end(), (), finish))
        return pieces


def body_of(work: Work, inputs: str, most: int, temperature: float) -> dict[str, Any]:
    """The body of /generate_stream; what is as by default is left out, since TGI refuses some defaults by name."""
    drawn = work.sampling
    heat = temperature if drawn.temperature is None else drawn.temperature
    asked: dict[str, Any] = {
        "adapter_id": work.weights.adapter or None,
        "max_new_tokens": most,
        "details": True,
        "do_sample": heat > 0,
        "stop": list(drawn.stop),
    }
    if heat > 0:
        asked |= {"temperature": heat, "seed": (drawn.seed or 0) % MOST_SEED + 1}
        asked |= {"top_p": drawn.top_p} if drawn.top_p < 1.0 else {}
        asked |= {"top_k": drawn.top_k} if drawn.top_k else {}
    if drawn.repetition_penalty != 1.0:
        asked["repetition_penalty"] = drawn.repetition_penalty
    if drawn.logprobs and drawn.top:
        asked["top_n_tokens"] = drawn.top
    if work.constraint is not None:
        asked["grammar"] = _grammar(work.constraint)
    return {"inputs": inputs, "parameters": {name: value for name, value in asked.items() if value is not None}}


def _grammar(asked: Constraint) -> dict[str, Any]:
    if asked.json_schema:
        return {"type": "json", "value": msgspec.json.decode(asked.json_schema)}
    return {"type": "regex", "value": asked.regex}


def _refuse(work: Work) -> None:
    """Raises Invalid for what TGI cannot do, or does otherwise than is meant."""
    holding.refuse(work, KIND)
    drawn = work.sampling
    lacking = {
        "several answers to one question (n)": drawn.n > 1,
        "presence_penalty": drawn.presence_penalty != 0.0,
        "frequency_penalty as OpenAI means it": drawn.frequency_penalty != 0.0,
        "min_p": drawn.min_p != 0.0,
        "ignore_eos": drawn.ignore_eos,
        "min_tokens": drawn.min_tokens > 0,
        "logit_bias": bool(drawn.logit_bias),
        "choices; a regex does": work.constraint is not None and bool(work.constraint.choices),
    }
    for what, wanted in lacking.items():
        if wanted:
            raise unsupported(KIND, what, "sampling_unsupported", "ask without it")


def _event(event: bytes, server: Server) -> Event:
    try:
        told = msgspec.json.decode(event, type=Event)
    except msgspec.DecodeError as error:
        raise bad_reply(server.url, error) from error
    if told.error is None:
        return told
    says = f"the engine at {server.url} failed: {message_of(event)}"
    match told.error_type:
        case "overloaded":
            raise Exhausted(says, code="queue_full", retry_after_s=1.0)
        case "validation":
            raise Invalid(says, code="engine_refused")
    raise Unavailable(says, code="engine_error")
