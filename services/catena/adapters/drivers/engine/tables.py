"""The factors of many adapters at one site of the base, side by side, a slot for each.

Legend: S slots, I inputs, O outputs of a part, R ranks of a part, P those of all parts, C parts of a group, X rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catena.adapters.drivers.engine.lora import Site

Part = tuple[int, int]
"""The first of a layer's outputs within its site, and how many there are."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring parts of one width: `count` of them share a table of B factors, (S count R, width)."""

    columns: slice
    outs: slice
    count: int
    b_XO: Tensor


class Tables:
    """The factors of one site in all slots; `a_XP` has A transposed, (S I, P)."""

    __slots__ = ("_inputs", "_ranks", "a_XP", "groups", "norm_XO", "parts", "shift_XO", "slots")

    def __init__(self, parts: Sequence[Part], ranks: int, slots: int, site: Site) -> None:
        """Zeros for `parts` of `ranks` each; `site` is any adapter's, whose inputs and type they have."""
        like = site.blocks[0].a_RI
        self.parts, self.slots = list(parts), slots
        self._ranks, self._inputs = ranks, like.shape[1]
        self.a_XP = like.new_zeros(slots * self._inputs, ranks * len(parts))
        self.groups: list[Group] = []
        self.norm_XO: Tensor | None = None
        self.shift_XO: Tensor | None = None
        begin = 0
        while begin < len(parts):
            out, width = parts[begin]
            end = begin + 1
            while end < len(parts) and parts[end] == (out + (end - begin) * width, width):
                end += 1
            count = end - begin
            table_XO = like.new_zeros(slots * count * ranks, width)
            columns, outs = slice(begin * ranks, end * ranks), slice(out, out + count * width)
            self.groups.append(Group(columns, outs, count, table_XO))
            begin = end

    def a_of(self, slot: int) -> Tensor:
        """A slot's A, (I, P)."""
        return self.a_XP[slot * self._inputs : (slot + 1) * self._inputs]

    def b_of(self, group: Group, slot: int) -> Tensor:
        """A slot's B in a group, (C, R, O)."""
        rows = group.count * self._ranks
        return group.b_XO[slot * rows : (slot + 1) * rows].view(group.count, self._ranks, -1)

    def fill(self, slot: int, site: Site | None, outputs: int) -> None:
        """Put an adapter's factors into a slot, zeros where it has none."""
        a_IP = self.a_of(slot).zero_()
        bs = [b_RO.zero_() for group in self.groups for b_RO in self.b_of(group, slot)]
        if site is not None:
            taken = [0] * len(self.parts)
            for block in site.blocks:
                at, rank = self.parts.index(block.part), block.b_OR.shape[1]
                begin = at * self._ranks + taken[at]
                a_IP[:, begin : begin + rank] = block.a_RI.T
                torch.mul(block.b_OR.T, block.scale, out=bs[at][taken[at] : taken[at] + rank])
                taken[at] += rank
        norm_O, shift_O = (site.norm_O, site.shift_O) if site is not None else (None, None)
        if norm_O is not None and self.norm_XO is None:
            # The first row is that of rows which nothing scales.
            self.norm_XO = self.a_XP.new_ones(self.slots + 1, outputs)
            self.shift_XO = self.a_XP.new_zeros(self.slots + 1, outputs)
        if self.norm_XO is not None and self.shift_XO is not None:
            self.norm_XO[slot + 1] = 1.0 if norm_O is None else norm_O
            self.shift_XO[slot + 1] = 0.0 if shift_O is None else shift_O
