"""Whose texts an encoder reads next: one thread, one bounded batch at a time, of texts about equally long.

Beside the step loop, never in it: a GPU's next decoding step waits for one batch at most. The text that has waited
longest is in every next batch, so none waits for ever.
"""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from catena.adapters.core.encoding import Encoded, Encoding, Found
from catena.adapters.drivers.engine.encoders.passages import Encoder, Passage
from catena.adapters.drivers.engine.frames import Answer, Failed, Reply
from catena.adapters.drivers.engine.loop import RETRY_AFTER_S, failed
from catena.kit.errors import CatenaError, Exhausted, Unavailable

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Call:
    """A request under way: what was found so far, by place."""

    number: int
    passages: Sequence[Passage]
    found: dict[int, Found] = field(default_factory=dict)

    def encoded(self) -> Encoded:
        """The whole answer, once every place is known."""
        return Encoded(
            found=tuple(self.found[place] for place in range(len(self.passages))),
            tokens=sum(passage.tokens for passage in self.passages),
            truncated=sum(passage.cut for passage in self.passages),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Turn:
    """A passage that waits for `encoder`."""

    encoder: Encoder
    call: Call
    place: int

    @property
    def passage(self) -> Passage:
        """The passage itself."""
        return self.call.passages[self.place]


class Turns:
    """Encoders in memory and what waits for them. `post` may be called from any thread, all else from its own."""

    def __init__(self, *, most_tokens: int, most_waiting: int, tell: Callable[[Answer], None]) -> None:
        """At most `most_tokens`, padding included, per pass; `tell` sends an answer to the room."""
        self.held: dict[str, Encoder] = {}
        self._most_tokens = most_tokens
        self._most_waiting = most_waiting
        self._tell = tell
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._waiting: list[Turn] = []

    def post(self, order: Callable[[], object]) -> None:
        """Have `order` run between two passes."""
        self._inbox.put(order)

    def run(self) -> None:
        """Take turns for ever."""
        while True:
            while not self._waiting or not self._inbox.empty():
                self._inbox.get()()
            self.step()

    def submit(self, number: int, asked: Encoding) -> None:
        """Queue what is asked, or fail it."""
        try:
            self._submit(number, asked)
        except CatenaError as error:
            self._tell(failed(number, error))
        except Exception as error:
            # Whatever a tokenizer raises on a user's text is that request's failure only.
            log.exception("not read", base=asked.base)
            self._tell(_broken(number, error))

    def cancel(self, number: int) -> None:
        """Drop what still waits of a request; one that ended already is no error."""
        self._waiting = [turn for turn in self._waiting if turn.call.number != number]

    def forget(self, base: str) -> int:
        """Let an encoder go; the bytes that it held, 0 when it was not here. What still waits for it is read first."""
        encoder = self.held.pop(base, None)
        return encoder.facts.bytes if encoder is not None else 0

    def step(self) -> None:
        """One pass, for the longest waiting and those that go well with it."""
        batch = choose(self._waiting, self._most_tokens)
        chosen = set(map(id, batch))
        self._waiting = [turn for turn in self._waiting if id(turn) not in chosen]
        try:
            found = batch[0].encoder.run([turn.passage for turn in batch])
        except Exception as error:
            # One pass's failure (out of memory, a plug-in's own) ends its requests, not the engine.
            log.exception("pass failed")
            for number in {turn.call.number for turn in batch}:
                self.cancel(number)
                self._tell(_broken(number, error))
            return
        for turn, one in zip(batch, found, strict=True):
            call = turn.call
            call.found[turn.place] = one
            if len(call.found) == len(call.passages):
                self._tell(Reply(call.number, encoded=call.encoded()))

    def _submit(self, number: int, asked: Encoding) -> None:
        encoder = self.held.get(asked.base)
        if encoder is None:
            message = f"{asked.base} is not in memory; ask again"
            raise Unavailable(message, code="not_resident", retry_after_s=RETRY_AFTER_S)
        many = len(asked.texts) + len(asked.rows)
        if len(self._waiting) + many > self._most_waiting:
            raise Exhausted(
                f"{len(self._waiting)} texts wait already, {self._most_waiting} may; ask again later or raise "
                "adapters.encode_queue",
                code="queue_full",
                retry_after_s=RETRY_AFTER_S,
            )
        call = Call(number=number, passages=encoder.read(asked))
        self._waiting += [Turn(encoder=encoder, call=call, place=place) for place in range(many)]


def choose(waiting: Sequence[Turn], most_tokens: int) -> list[Turn]:
    """The longest waiting and, of the same encoder, those nearest to its length, up to `most_tokens` with padding."""
    first = waiting[0]
    size = first.passage.tokens
    near = sorted(
        (turn for turn in waiting if turn.encoder is first.encoder), key=lambda turn: abs(turn.passage.tokens - size)
    )
    batch, longest = [first], size
    for turn in near:
        longest = max(longest, turn.passage.tokens)
        if turn is not first:
            if longest * (len(batch) + 1) > most_tokens:
                break
            batch.append(turn)
    return batch


def _broken(number: int, error: Exception) -> Failed:
    return Failed(number, "Unavailable", "engine_failed", f"the engine failed: {type(error).__name__}")
