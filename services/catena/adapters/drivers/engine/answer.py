"""One generation as its caller sees it: text, log-probabilities and ends of its `n` answers, and what it cost."""

import math
from collections.abc import Callable, Sequence

from catena.adapters.core.tools import CallReader
from catena.adapters.core.work import Done, Piece, TokenLogprob, Work
from catena.adapters.drivers.engine.text import StopWatch, Text
from catena.kit.errors import CatenaError

Tops = Sequence[tuple[int, float]]


class Answer:
    """The text of one answer as tokens come; `pieces` waits to be sent. The tokens `ends` end it."""

    def __init__(self, index: int, text: Text, work: Work) -> None:
        """Answer `index` to `work`."""
        sampling = work.sampling
        self.index = index
        self.ends = frozenset[int]() if sampling.ignore_eos else text.ends
        self.finish = ""
        self.written = 0
        self.lowest = 0.0
        self.total = 0.0
        self.pieces: list[Piece] = []
        self._text = text
        self._stream = text.stream(exact=work.constraint is not None)
        self._stop = StopWatch(sampling.stop)
        # Read here only to see where a call ends; the room reads it again, and names it.
        self._calls = CallReader({tool.name for tool in work.tools}, str, one=True) if work.one_call else None
        self._wants = sampling.logprobs
        self._least = sampling.min_tokens
        self._entries: list[tuple[int, TokenLogprob]] = []
        self._seen = 0
        self._said = 0

    def take(self, token: int, logprob: float, tops: Tops) -> None:
        """A token was drawn. Sets `finish` when it ended the answer."""
        self.written += 1
        self.total += logprob
        self.lowest = min(self.lowest, logprob)
        if token in self.ends:
            self.close("stop")
            return
        text = self._stream.push(token)
        if self._wants:
            self._seen += len(text)
            name = self._text.token
            top = tuple((name(other), value) for other, value in tops)
            self._entries.append((self._seen, TokenLogprob(name(token), logprob, top)))
        self._say(self._stop.push(text) if self.written > self._least else text)
        if self._calls is not None:
            self._calls.push(text)
        if self._stop.stopped:
            self._end("stop")
        elif self._calls is not None and self._calls.whole and self.written > self._least:
            self.close("stop")

    def early(self) -> int:
        """How many of the next tokens may not be among `ends`."""
        return max(self._least - self.written, 0) if self.ends else 0

    def close(self, finish: str) -> None:
        """No token follows: say what was held back, and why it ended."""
        left = self._stream.end()
        self._seen += len(left)
        self._say(self._stop.push(left))
        if not self._stop.stopped:
            self._say(self._stop.end())
        self._end("stop" if self._stop.stopped else finish)

    def _say(self, text: str) -> None:
        self._said += len(text)
        ready = 0
        while ready < len(self._entries) and self._entries[ready][0] <= self._said:
            ready += 1
        if text or ready:
            self.pieces.append(Piece(self.index, text, tuple(entry for _, entry in self._entries[:ready])))
            del self._entries[:ready]

    def _end(self, finish: str) -> None:
        self.finish = finish
        self.pieces.append(Piece(self.index, "", (), finish))


class Generation:
    """All answers to one request. `now` gives monotonic seconds; `error` is set when it cannot go on."""

    def __init__(self, call: int, work: Work, prompt_tokens: int, text: Text, now: Callable[[], float]) -> None:
        """Begin the clock."""
        self.call = call
        self.work = work
        self.prompt_tokens = prompt_tokens
        self.error: CatenaError | None = None
        self.answers = [Answer(i, text, work) for i in range(work.sampling.n)]
        self.drafted = self.accepted = self.draft_input = self.draft_output = self.cached = 0
        self._now = now
        self._began_s = now()
        self._admitted_s: float | None = None
        self._first_s = 0.0
        self._sent_s = -math.inf

    def fail(self, error: CatenaError) -> None:
        """One of the answers cannot be finished, so none is given."""
        self.error = self.error or error

    def admitted(self) -> None:
        """One of its rows got a place in the batch."""
        if self._admitted_s is None:
            self._admitted_s = self._now()

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(answer.finish for answer in self.answers)

    def collect(self, every_s: float) -> list[Piece]:
        """What is to be sent now: the first words at once, the others at most every `every_s` seconds, the end."""
        now_s = self._now()
        if now_s - self._sent_s < every_s and not self.finished:
            return []
        pieces = [piece for answer in self.answers for piece in _joined(answer.pieces)]
        if pieces:
            self._first_s = self._first_s or now_s
            self._sent_s = now_s
            for answer in self.answers:
                answer.pieces.clear()
        return pieces

    def done(self) -> Done:
        """The figures of the whole generation."""
        first = self.answers[0]
        return Done(
            input_tokens=self.prompt_tokens,
            output_tokens=sum(answer.written for answer in self.answers),
            min_probability=math.exp(first.lowest),
            mean_logprob=first.total / max(first.written, 1),
            first_token_ms=1000 * ((self._first_s or self._now()) - self._began_s),
            queue_ms=1000 * ((self._admitted_s or self._began_s) - self._began_s),
            cached_tokens=self.cached,
            drafted=self.drafted,
            accepted=self.accepted,
            draft_input_tokens=self.draft_input,
            draft_output_tokens=self.draft_output,
        )


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    if len(pieces) < 2:
        return list(pieces)
    text = "".join(piece.text for piece in pieces)
    logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
    return [Piece(pieces[0].index, text, logprobs, pieces[-1].finish)]
