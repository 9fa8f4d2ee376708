"""Adapters of like rank, a slot each, and what a step's rows take from them.

Rows of few companions are served by weighted sums of table rows (`embedding_bag`): each row's sum picks its own
adapter's rows, so any mix costs what its own adapters weigh, without gathering, padding or zeros, at the speed of
memory. Rows that share their adapter with many, as a prompt's do, go through it in products of their own.
Legend: T packed tokens, N of them served by sums, M of one adapter, I inputs, O outputs, P ranks of a site.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from catena.adapters.drivers.engine.lora import Adapter, Site, Where
from catena.adapters.drivers.engine.shape import Shape
from catena.adapters.drivers.engine.sums import Sums, picked, starts, summed
from catena.adapters.drivers.engine.tables import Tables

MANY = 16
"""Rows of one adapter from which products of their own are faster than sums."""


class Bank:
    """Adapters of up to `ranks` ranks a part. A slot is used again once nobody in a step needs who is in it."""

    def __init__(self, shape: Shape, ranks: int) -> None:
        """Start empty."""
        self.ranks = ranks
        self.tables: dict[Where, Tables] = {}
        self._outputs = shape.outputs
        self._slots: list[Adapter | None] = []
        self._used_at: list[int] = []

    @property
    def empty(self) -> bool:
        """Whether no adapter is here."""
        return not any(self._slots)

    def slots(self, adapters: Sequence[Adapter], now: int) -> dict[Adapter, int]:
        """Where these adapters are, all of them at once; those that were not here come now."""
        at = {adapter: slot for slot, adapter in enumerate(self._slots) if adapter is not None}
        found = {adapter: at[adapter] for adapter in adapters if adapter in at}
        for slot in found.values():
            self._used_at[slot] = now
        missing = [adapter for adapter in adapters if adapter not in at]
        if len(adapters) > len(self._slots):
            self._grow(1 << (len(adapters) - 1).bit_length())
        free = sorted((slot for slot, used_at in enumerate(self._used_at) if used_at != now), key=self._age)
        for adapter, slot in zip(missing, free, strict=False):
            self._slots[slot], self._used_at[slot] = adapter, now
            self._fill(slot)
            found[adapter] = slot
        return found

    def site(self, slot: int, where: Where) -> Site | None:
        """What the adapter in a slot adds at a site; None: nothing."""
        adapter = self._slots[slot]
        return adapter.sites.get(where) if adapter is not None else None

    def forget(self, key: str) -> None:
        """Let an adapter's slot be used for another before all that hold one."""
        for slot, adapter in enumerate(self._slots):
            if adapter is not None and adapter.key == key:
                self._slots[slot], self._used_at[slot] = None, 0

    def _age(self, slot: int) -> int:
        return self._used_at[slot]

    def _grow(self, slots: int) -> None:
        more = slots - len(self._slots)
        self._slots += [None] * more
        self._used_at += [0] * more
        for where, tables in self.tables.items():
            self._lay(where, tables.parts)

    def _fill(self, slot: int) -> None:
        adapter = self._slots[slot]
        assert adapter is not None
        for where in self.tables.keys() | adapter.sites.keys():
            site, tables = adapter.sites.get(where), self.tables.get(where)
            parts = set(site.ranks()) if site is not None else set()
            have = set(tables.parts) if tables is not None else set()
            if tables is None or not parts <= have:
                self._lay(where, sorted(parts | have))
            else:
                tables.fill(slot, site, self._outputs[where[1]])

    def _lay(self, where: Where, parts: Sequence[tuple[int, int]]) -> None:
        """Make a site's tables anew, for all that is here."""
        sites = {slot: held.sites[where] for slot, held in enumerate(self._slots) if held and where in held.sites}
        if not sites:
            self.tables.pop(where, None)
            return
        tables = self.tables[where] = Tables(parts, self.ranks, len(self._slots), next(iter(sites.values())))
        for slot, site in sites.items():
            tables.fill(slot, site, self._outputs[where[1]])


class BankStep:
    """One step's share of a bank."""

    def __init__(self, bank: Bank, slots: Sequence[int], device: torch.device) -> None:
        """`slots` gives each packed row its adapter's slot, -1 for none of this bank."""
        self._bank = bank
        self._device = device
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            if slot >= 0:
                rows.setdefault(slot, []).append(row)
        few = sorted(row for some in rows.values() if len(some) < MANY for row in some)
        self._many = [(slot, self._picked(some)) for slot, some in rows.items() if len(some) >= MANY]
        self._few = self._picked(few) if few else None
        self._span = slice(few[0], few[-1] + 1) if few else slice(0, 0)
        self._slot_N = torch.tensor([slots[row] for row in few], device=device)
        self._served_T = torch.tensor(
            [slot >= 0 and len(rows[slot]) < MANY for slot in slots[self._span]], device=device
        )
        self._place_T = torch.tensor(slots, device=device) + 1
        self._reads: dict[int, Sums] = {}
        self._adds: dict[int, Sums] = {}

    def add(self, y_TO: Tensor, x_TI: Tensor, where: Where) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""
        tables = self._bank.tables.get(where)
        if tables is None:
            return
        for slot, rows in self._many:
            site = self._bank.site(slot, where)
            if site is not None:
                self._multiply(y_TO, x_TI, tables, slot, site, rows)
        if self._few is not None:
            x_NI = _rows(x_TI, self._few)
            h_NP = summed(tables.a_XP, self._reading(x_NI.shape[1]), x_NI)
            for group in tables.groups:
                h_NCR = h_NP[:, group.columns].view(len(h_NP), group.count, 1, -1)
                h_NCKR = h_NCR.expand(-1, -1, group.pieces, -1)
                d_XW = summed(group.b_XW, self._adding(group.count * group.pieces), h_NCKR)
                y_TO[self._span, group.outs].add_(d_XW.view(self._span.stop - self._span.start, -1))
        if tables.norm_XO is not None and tables.shift_XO is not None:
            y_TO.mul_(tables.norm_XO[self._place_T]).add_(tables.shift_XO[self._place_T])

    def _multiply(
        self, y_TO: Tensor, x_TI: Tensor, tables: Tables, slot: int, site: Site, rows: slice | Tensor
    ) -> None:
        h_MP = _rows(x_TI, rows) @ tables.a_of(slot)
        for block, columns, _ in tables.columns(site):
            h_MR, b_RO = h_MP[:, columns], block.b_OR.T
            y_TO_ = y_TO[:, block.out : block.out + b_RO.shape[1]]
            if isinstance(rows, slice):
                y_TO_[rows].addmm_(h_MR, b_RO, alpha=block.scale)
            else:
                y_TO_.index_add_(0, rows, h_MR @ b_RO, alpha=block.scale)

    def _picked(self, rows: Sequence[int]) -> slice | Tensor:
        """These rows, as a stretch where they are one."""
        if rows[-1] - rows[0] == len(rows) - 1:
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self._device)

    def _reading(self, inputs: int) -> Sums:
        """The rows of A's table that each row sums, and where each sum begins."""
        if inputs not in self._reads:
            each_N = torch.ones_like(self._slot_N)
            self._reads[inputs] = picked(self._slot_N, inputs), starts(each_N, inputs)
        return self._reads[inputs]

    def _adding(self, count: int) -> Sums:
        """The rows of B's table that each row sums for each of its pieces, none where it has no adapter here."""
        if count not in self._adds:
            ranks, served_X = self._bank.ranks, self._served_T.repeat_interleave(count)
            self._adds[count] = picked(self._slot_N, count * ranks), starts(served_X, ranks)
        return self._adds[count]


def _rows(x_TI: Tensor, rows: slice | Tensor) -> Tensor:
    return x_TI[rows] if isinstance(rows, slice) else x_TI.index_select(0, rows)
