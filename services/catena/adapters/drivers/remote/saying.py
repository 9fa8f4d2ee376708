"""One generation of a remote engine as the room sees it: pieces joined, log-probabilities counted, the end told."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from catena.adapters.core.tools import CallReader
from catena.adapters.core.work import Done, Piece, TokenLogprob, Work


class Saying:
    """Counts what the answers to `work` say, and ends them where they should. `now` gives monotonic seconds."""

    def __init__(self, work: Work, prompt_tokens: int, now: Callable[[], float]) -> None:
        """Begin the clock."""
        self.input_tokens = prompt_tokens
        self.output_tokens = 0
        self.cached_tokens = 0
        self._sampling = work.sampling
        self._now = now
        self._began_s = now()
        self._first_s = 0.0
        self._lowest = 0.0
        self._total = 0.0
        self._drawn = 0
        self._written = 0
        self._ended: set[int] = set()
        self._called: set[int] = set()
        self._tools = {tool.name for tool in work.tools}
        # Read here only to see where a call ends; the room reads it again, and names it.
        self._readers: dict[int, CallReader] | None = {} if work.one_call and not work.sampling.min_tokens else None

    @property
    def whole(self) -> bool:
        """Whether every answer has ended."""
        return len(self._ended) == self._sampling.n

    @property
    def called(self) -> bool:
        """Whether nothing more is wanted, though the server goes on: every answer has ended, one behind its call."""
        return self.whole and bool(self._called)

    def drew(self, index: int, logprobs: Iterable[float]) -> None:
        """Tokens of answer `index` were drawn; the first answer's make the confidence."""
        for logprob in logprobs:
            self._written += 1
            if index:
                continue
            self._drawn += 1
            self._total += logprob
            self._lowest = min(self._lowest, logprob)

    def piece(self, index: int, text: str, entries: Sequence[TokenLogprob], finish: str) -> Piece:
        """What to send of it; log-probabilities only where they were asked for."""
        self._first_s = self._first_s or self._now()
        if finish:
            self._ended.add(index)
        return Piece(index, text, tuple(entries) if self._sampling.logprobs else (), finish)

    def until_called(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, each answer ended behind its first call where only one is wanted."""
        for piece in pieces:
            if piece.index in self._called:
                continue
            if self._readers is not None and self._calls(piece):
                self._called.add(piece.index)
                self._ended.add(piece.index)
                piece = msgspec.structs.replace(piece, finish="stop")
            yield piece

    def _calls(self, piece: Piece) -> bool:
        assert self._readers is not None
        reader = self._readers.setdefault(piece.index, CallReader(self._tools, str, one=True))
        reader.push(piece.text)
        return reader.whole

    def done(self) -> Done:
        """The figures of the whole; tokens are counted here where the server did not come to tell."""
        return Done(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens or self._written,
            min_probability=math.exp(self._lowest),
            mean_logprob=self._total / max(self._drawn, 1),
            first_token_ms=1000 * ((self._first_s or self._now()) - self._began_s),
            cached_tokens=self.cached_tokens,
        )


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """What arrived together as one piece an answer."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        if piece.index in found:
            before = found[piece.index]
            piece = Piece(piece.index, before.text + piece.text, before.logprobs + piece.logprobs, piece.finish)
        found[piece.index] = piece
    return [piece for piece in found.values() if piece.text or piece.logprobs or piece.finish]


def tops(given: Iterable[tuple[str, float]], count: int) -> tuple[tuple[str, float], ...]:
    """The likeliest alternatives first."""
    return tuple(sorted(given, key=lambda pair: -pair[1])[:count])
