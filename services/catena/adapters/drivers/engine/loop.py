"""The step loop: takes orders, steps every busy base in turn, and hands out what answers gain.

One thread owns all rows, so nothing here is locked; weights are read elsewhere and arrive whole.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from catena.adapters.core.work import Counters, Weights, Work
from catena.adapters.drivers.engine.answer import Generation
from catena.adapters.drivers.engine.base_weights import weight_bytes
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.frames import Answer, Failed, Finished, Output, Settings
from catena.adapters.drivers.engine.grammar import Grammar
from catena.adapters.drivers.engine.lookup import Lookup
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.rows import Draft, Row
from catena.adapters.drivers.engine.sampling import draw_of
from catena.adapters.drivers.engine.text import Text
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable

log = structlog.get_logger()
RETRY_AFTER_S = 1.0


@dataclass(slots=True, kw_only=True)
class Held:
    """A base in memory with its tokenizer, its batch, its adapters, and those that are stowed in host memory.

    `proven` are the adapters, by what they hold, that were seen to change what it says.
    """

    decoder: Decoder
    text: Text
    batch: Batch
    adapters: dict[str, Adapter] = field(default_factory=dict)
    stowed: dict[str, Adapter] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)


class Loop:
    """Everything the engine holds. `post` may be called from any thread, all else from the loop's own."""

    def __init__(self, settings: Settings, tell: Callable[[Answer], None], now: Callable[[], float]) -> None:
        """`tell` sends an answer to the room; `now` gives monotonic seconds."""
        self.bases: dict[str, Held] = {}
        self._settings = settings
        self._tell = tell
        self._now = now
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[int, list[Row]] = {}
        self._gone = Counters()

    def post(self, order: Callable[[], None] | None) -> None:
        """Have `order` run between two steps; None ends the loop."""
        self._inbox.put(order)

    def run(self) -> None:
        """Step until told to end."""
        while True:
            busy = any(held.batch.busy for held in self.bases.values())
            while not busy or not self._inbox.empty():
                order = self._inbox.get()
                if order is None:
                    return
                order()
                busy = any(held.batch.busy for held in self.bases.values())
            for name, held in list(self.bases.items()):
                if held.batch.busy:
                    self._step(name, held)

    def submit(self, call: int, work: Work, tokens: list[int], grammars: Sequence[Grammar] = ()) -> None:
        """Queue a generation whose prompt is `tokens`, or fail it; `grammars` are of its answers, empty: free text."""
        try:
            self._submit(call, work, tokens, grammars)
        except CatenaError as error:
            self._tell(failed(call, error))

    def cancel(self, call: int) -> None:
        """Free what a generation holds; one that ended already is no error."""
        for row in self._live.pop(call, ()):
            self._drop(row)

    def counters(self) -> Counters:
        """The figures so far."""
        now = _sum([self._gone, *(_figures(held.batch) for held in self.bases.values())])
        batches = [held.batch for held in self.bases.values()]
        active = {row.adapter for batch in batches for row in batch.running if row.adapter is not None}
        return msgspec.structs.replace(
            now,
            prefix_bytes=sum(batch.prefix.bytes for batch in batches),
            waiting=sum(len(batch.waiting) for batch in batches),
            running=sum(len(batch.running) for batch in batches),
            active_adapters=len(active),
            active_ranks=sum(adapter.rank() for adapter in active),
        )

    def forget(self, weights: Weights) -> int:
        """Let an adapter go, stowed or not, or where none is named the whole base; the bytes that it held, 0: none."""
        if not weights.adapter:
            return self._forget_base(weights.base)
        held = self.bases.get(weights.base)
        stowed = held.stowed.pop(weights.adapter, None) if held is not None else None
        adapter = self.take(weights) or stowed
        return adapter.bytes if adapter is not None else 0

    def take(self, weights: Weights) -> Adapter | None:
        """Take an adapter off the device, for who wants to keep it; None when it is not there."""
        held = self.bases.get(weights.base)
        adapter = held.adapters.pop(weights.adapter, None) if held is not None else None
        if held is not None and adapter is not None:
            held.batch.stacks.forget(weights.adapter)
            held.batch.waiting.forget(weights.adapter)
        return adapter

    def _forget_base(self, name: str) -> int:
        held = self.bases.get(name)
        if held is None:
            return 0
        # Nobody should use it any more; whoever does learns that it went.
        self._fail_all(held, Unavailable(f"base {name} was unloaded"))
        del self.bases[name]
        self._gone = _sum([self._gone, _figures(held.batch)])
        return weight_bytes(held.decoder)

    def _submit(self, call: int, work: Work, tokens: list[int], grammars: Sequence[Grammar]) -> None:
        held, adapter = self._find(work.weights)
        asked, context = work.sampling, held.decoder.shape.context
        if len(tokens) >= context:
            raise Invalid(
                f"the prompt has {len(tokens)} tokens, {work.weights.base} takes {context} with the answer; shorten it",
                code="context_length_exceeded",
            )
        if sum(len(batch.waiting) for batch in (h.batch for h in self.bases.values())) + asked.n > self._settings.queue:
            raise Exhausted(
                f"{self._settings.queue} answers wait already; ask again later or raise adapters.queue",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        acts = adapter.acts_from(tokens) if adapter is not None else 0
        generation = Generation(call, work, len(tokens), held.text, self._now)
        limit = min(len(tokens) + asked.max_tokens, context) if asked.max_tokens else context
        rows: list[Row] = []
        for answer in generation.answers:
            row = Row(
                generation=generation,
                answer=answer,
                tokens=list(tokens),
                prompt=len(tokens),
                limit=limit,
                adapter=adapter,
                draw=draw_of(asked, held.text.temperature, str(answer.index), tokens),
                grammar=grammars[answer.index] if grammars else None,
                salt=work.salt,
                acts=acts,
                twin=rows[0] if rows else None,
            )
            rows.append(row)
        if work.draft is not None:
            self._attach_drafts(work, work.draft, rows, held)
        elif self._settings.lookup_tokens:
            self._attach_lookups(rows)
        self._live[call] = rows
        for row in rows:
            held.batch.add(row)

    def _attach_drafts(self, work: Work, draft: Weights, rows: list[Row], target: Held) -> None:
        held, adapter = self._find(draft)
        if adapter is not None and adapter.invocation:
            raise Invalid("an activated LoRA cannot draft; draft with its base", code="draft_mismatch")
        if held.text.fingerprint != target.text.fingerprint:
            raise Invalid(
                f"{draft.base} and {work.weights.base} have different vocabularies, so one cannot draft for the other",
                code="draft_mismatch",
            )
        for row in rows:
            # Verification compares what was drafted with the model's own logits, which biases and penalties change.
            if row.draw.penalised or row.draw.bias:
                continue
            row.draft = Draft(
                target=row,
                most=work.draft_tokens,
                limit=held.decoder.shape.context,
                ends=row.answer.ends,
                adapter=adapter,
                draw=draw_of(work.sampling, target.text.temperature, f"{row.answer.index}:draft"),
            )

    def _attach_lookups(self, rows: list[Row]) -> None:
        for row in rows:
            if not row.draw.shifts and row.grammar is None:
                row.draft = Lookup(tokens=row.tokens, most=self._settings.lookup_tokens, limit=row.limit)

    def _find(self, weights: Weights) -> tuple[Held, Adapter | None]:
        held = self.bases.get(weights.base)
        if held is None or (weights.adapter and weights.adapter not in held.adapters):
            raise Unavailable(
                f"{weights.base} with {weights.adapter or 'nothing'} is not in memory; ask again",
                code="not_resident",
                retry_after_s=RETRY_AFTER_S,
            )
        return held, held.adapters[weights.adapter] if weights.adapter else None

    def _step(self, name: str, held: Held) -> None:
        try:
            gained = held.batch.step()
        except Exception as error:
            # One base's failure (out of memory, say) ends its requests, not the engine.
            log.exception("step failed", base=name)
            self._fail_all(held, error)
            return
        seen: set[int] = set()
        for row in gained:
            generation = row.generation
            if row.draft is not None:
                self._follow(row, row.draft)
            if generation.call not in seen:
                seen.add(generation.call)
                self._hand_out(generation)

    def _follow(self, row: Row, draft: Draft | Lookup) -> None:
        """Start a draft once its target runs, so that no draft takes a slot that its own target waits for."""
        if row.answer.finish:
            self._drop_draft(row)
        elif isinstance(draft, Draft) and not draft.queued and (held := self._draft_base(row)) is not None:
            draft.queued = True
            row.generation.draft_input += row.prompt
            held.batch.add(draft)

    def _hand_out(self, generation: Generation) -> None:
        if generation.error is not None:
            self.cancel(generation.call)
            self._tell(failed(generation.call, generation.error))
            return
        pieces = generation.collect(self._settings.coalesce_s)
        if pieces:
            self._tell(Output(generation.call, pieces))
        if generation.finished:
            self._live.pop(generation.call, None)
            self._tell(Finished(generation.call, generation.done()))

    def _fail_all(self, held: Held, error: Exception) -> None:
        calls = [call for call, rows in self._live.items() if any(self._touches(row, held) for row in rows)]
        for call in calls:
            self.cancel(call)
            self._tell(Failed(call, "Unavailable", "engine_failed", f"the engine failed: {type(error).__name__}"))
        held.batch.reset()

    def _touches(self, row: Row, held: Held) -> bool:
        return held is self.bases.get(row.generation.work.weights.base) or (
            row.draft is not None and held is self._draft_base(row)
        )

    def _drop(self, row: Row) -> None:
        self._drop_draft(row)
        if not row.answer.finish:
            self.bases[row.generation.work.weights.base].batch.remove(row)

    def _drop_draft(self, row: Row) -> None:
        draft, row.draft = row.draft, None
        if isinstance(draft, Draft):
            held = self._draft_base(row)
            if held is not None:
                held.batch.remove(draft)

    def _draft_base(self, row: Row) -> Held | None:
        draft = row.generation.work.draft
        return self.bases.get(draft.base) if draft is not None else None


def failed(call: int, error: CatenaError) -> Failed:
    """The frame that carries an error to the room."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "catena.kit.errors")
    return Failed(call, kind, error.code, error.message, error.retry_after_s)


def _figures(batch: Batch) -> Counters:
    """What a batch did so far."""
    return Counters(
        forwards=batch.forwards, tokens=batch.tokens, prefix_looked=batch.prefix.looked, prefix_hits=batch.prefix.hits
    )


def _sum(counted: Sequence[Counters]) -> Counters:
    """What is only ever counted up, summed."""
    names = ("forwards", "tokens", "prefix_looked", "prefix_hits")
    return Counters(**{name: sum(getattr(one, name) for one in counted) for name in names})
