"""What the turns of a batch are about: one text or row, and who makes something of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from catena.adapters.core.encoding import Aggregation, Encoding, Found
from catena.adapters.core.work import BaseFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One input, ready for its model: `tokens` that it takes in a batch, `inputs` by the name that the model has.

    `offsets`, characters of the text by token, and `special`, which tokens are none of it, are for finding spans.
    """

    tokens: int = 1
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    row: Sequence[float] = ()
    text: str = ""
    offsets: Sequence[tuple[int, int]] = ()
    special: Sequence[int] = ()
    aggregation: Aggregation = "simple"
    cut: bool = False


class Encoder(Protocol):
    """A model in memory. Both methods run on the thread of the turns alone."""

    facts: BaseFacts

    def read(self, asked: Encoding) -> list[Passage]:
        """The inputs, ready. Raises Invalid (`context_length_exceeded`, `bad_features`)."""
        ...

    def run(self, passages: Sequence[Passage]) -> list[Found]:
        """What the model makes of them, all in one pass."""
        ...
