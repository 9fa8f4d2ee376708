"""Speculation without a draft model: what followed the last words the time before is proposed again.

Prompt look-up decoding (Saxena 2023; arXiv 2304.04487 verifies copied spans alike): answers that repeat their prompt,
as edits, extractions and code do, are written several tokens a step. They are verified as any draft is, so that no
answer changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST, SHORTEST = 3, 2
"""Tokens of the stretches that are looked for, the longest first."""
MOST_ROWS = 4
"""Rows beyond which a step is busy enough: proposals that fail would cost the others time."""


@dataclass(slots=True, kw_only=True)
class Lookup:
    """Proposes up to `most` tokens after `tokens`, a list that grows up to `limit`; nothing while `idle`."""

    tokens: Sequence[int]
    most: int
    limit: int
    idle: bool = False
    slot: int = 0
    complete: bool = True
    _ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    _indexed: int = 0

    @property
    def proposal(self) -> Sequence[int]:
        """The tokens after the latest earlier place that reads like the end."""
        self._index()
        have = len(self.tokens)
        if self.idle:
            return ()
        for size in range(LONGEST, SHORTEST - 1, -1):
            end = self._ends.get(tuple(self.tokens[have - size :])) if have > size else None
            if end is not None:
                return self.tokens[end : end + self.room()]
        return ()

    def room(self) -> int:
        """Tokens worth proposing: the text must have room for them and one more."""
        return min(self.most, self.limit - len(self.tokens) - 1)

    def verified(self, before: int, accepted: int) -> None:
        """The target kept `accepted` of the proposal; nothing is to be taken back."""

    def _index(self) -> None:
        """Note where each stretch ended last, but for those that end the text: they are what is looked for."""
        have = len(self.tokens)
        for end in range(self._indexed, have):
            for size in range(SHORTEST, LONGEST + 1):
                if end >= size:
                    self._ends[tuple(self.tokens[end - size : end])] = end
        self._indexed = have
