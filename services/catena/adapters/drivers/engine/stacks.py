"""The adapters that running rows use, in banks by rank, and LoRA over a packed step: every row through its own.

An adapter of 8 ranks beside one of 64 pays for its own, rounded up to the next power of two.
"""

from collections.abc import Sequence

from torch import Tensor

from catena.adapters.drivers.engine.bank import Bank, BankStep
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.shape import Shape

LEAST_RANKS = 8
"""Ranks of the smallest bank: below it a sum's own cost is all there is."""


class LoraStep:
    """One step's share of all banks."""

    def __init__(self, steps: Sequence[BankStep]) -> None:
        """One of each bank that the step's rows need."""
        self._steps = steps

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, site: int) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""
        for step in self._steps:
            step.add(y_TO, x_TI, (layer, site))


class Stacks:
    """Copies of the adapters in use, laid out for a step; who is not needed leaves when another is."""

    def __init__(self, shape: Shape) -> None:
        """Start empty, for a base of this shape."""
        self._shape = shape
        self._banks: dict[int, Bank] = {}
        self._last: tuple[list[Adapter | None], LoraStep] | None = None
        self._now = 0

    def step(self, rows: Sequence[Adapter | None]) -> LoraStep | None:
        """The step over packed rows with these adapters; None when no row has one."""
        if self._last is not None and self._last[0] == rows:
            return self._last[1]
        banks: dict[int, list[Adapter]] = {}
        # A prompt's rows are hundreds of the same adapter: its ranks are counted once.
        for adapter in dict.fromkeys(row for row in rows if row is not None):
            banks.setdefault(_ranks(adapter), []).append(adapter)
        if not banks:
            return None
        self._now += 1
        steps = []
        for ranks, adapters in banks.items():
            bank = self._banks.setdefault(ranks, Bank(self._shape, ranks))
            slots = bank.slots(adapters, self._now)
            taken = [-1 if adapter is None else slots.get(adapter, -1) for adapter in rows]
            steps.append(BankStep(bank, taken, self._shape.device))
        self._last = list(rows), LoraStep(steps)
        return self._last[1]

    def forget(self, key: str) -> None:
        """Drop an adapter's copy; rows that still use it bring it back."""
        self._last = None
        for ranks, bank in list(self._banks.items()):
            bank.forget(key)
            if bank.empty:
                del self._banks[ranks]


def _ranks(adapter: Adapter) -> int:
    return max(1 << (adapter.rank() - 1).bit_length(), LEAST_RANKS)
