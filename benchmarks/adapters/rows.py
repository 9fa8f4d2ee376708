"""Requests as the engine's batch knows them, without the room around it: what both measuring scripts ask."""

import random
from collections.abc import Sequence
from typing import Any

from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.rows import Row
from catena.adapters.drivers.engine.sampling import Draw


class Tally:
    """Stands where an answer's text and account would be: the tokens are all that is measured."""

    finish = ""
    written = cached = drafted = accepted = draft_output = 0
    error = None
    ends = frozenset[int]()

    def early(self) -> int:
        """Any token may come at once."""
        return 0

    def take(self, *_: Any) -> None:
        """A token was drawn."""
        self.written += 1

    def admitted(self) -> None:
        """It got a place in the batch."""

    def close(self, finish: str) -> None:
        """The answer ended."""
        self.finish = finish


def greedy(tokens: Sequence[int], adapter: Adapter | None, write: int) -> Row:
    """A greedy answer of `write` tokens."""
    tally: Any = Tally()
    return Row(
        generation=tally,
        answer=tally,
        tokens=list(tokens),
        prompt=len(tokens),
        limit=len(tokens) + write,
        adapter=adapter,
        draw=Draw(temperature=0.0, top_p=1.0, rng=random.Random(0)),
        acts=adapter.acts_from(tokens) if adapter is not None else 0,
    )
