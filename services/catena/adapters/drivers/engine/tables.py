"""The factors of many adapters at one site of the base, side by side, a slot for each.

Legend: S slots, I inputs, R ranks of a part, P those of all parts, C parts of a group, K pieces of a part, W outputs of
a piece, X rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catena.adapters.drivers.engine.lora import Block, Site

Part = tuple[int, int]
"""The first of a layer's outputs within its site, and how many there are."""
WIDEST = 512
"""Outputs of a piece at most: sums of longer rows leave the processor's prefetching behind, at half the pace."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring parts of one width: `count` of them share a table of B factors, (S C K R, W)."""

    columns: slice
    outs: slice
    count: int
    pieces: int
    b_XW: Tensor


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
            pieces = _pieces(width)
            table_XW = like.new_zeros(slots * count * pieces * ranks, width // pieces)
            columns, outs = slice(begin * ranks, end * ranks), slice(out, out + count * width)
            self.groups.append(Group(columns, outs, count, pieces, table_XW))
            begin = end

    def a_of(self, slot: int) -> Tensor:
        """A slot's A, (I, P)."""
        return self.a_XP[slot * self._inputs : (slot + 1) * self._inputs]

    def columns(self, site: Site) -> Iterator[tuple[Block, slice, int]]:
        """Each block of an adapter here, its columns among the ranks of all parts, and which part it acts on."""
        taken = [0] * len(self.parts)
        for block in site.blocks:
            at, rank = self.parts.index(block.part), block.b_OR.shape[1]
            begin = at * self._ranks + taken[at]
            yield block, slice(begin, begin + rank), at
            taken[at] += rank

    def fill(self, slot: int, site: Site | None, outputs: int) -> None:
        """Put an adapter's factors into a slot, zeros where it has none."""
        a_IP = self.a_of(slot).zero_()
        bs = [b_KRW.zero_() for group in self.groups for b_KRW in self._b_of(group, slot)]
        for block, columns, at in self.columns(site) if site is not None else ():
            a_IP[:, columns] = block.a_RI.T
            ranks = slice(columns.start - at * self._ranks, columns.stop - at * self._ranks)
            b_KRW = bs[at][:, ranks]
            b_KWR = block.b_OR.view(b_KRW.shape[0], b_KRW.shape[2], -1)
            torch.mul(b_KWR.transpose(1, 2), block.scale, out=b_KRW)
        norm_O, shift_O = (site.norm_O, site.shift_O) if site is not None else (None, None)
        if norm_O is not None and self.norm_XO is None:
            # The first row is that of rows which nothing scales.
            self.norm_XO = self.a_XP.new_ones(self.slots + 1, outputs)
            self.shift_XO = self.a_XP.new_zeros(self.slots + 1, outputs)
        if self.norm_XO is not None and self.shift_XO is not None:
            self.norm_XO[slot + 1] = 1.0 if norm_O is None else norm_O
            self.shift_XO[slot + 1] = 0.0 if shift_O is None else shift_O

    def _b_of(self, group: Group, slot: int) -> Tensor:
        """A slot's B in a group, (C, K, R, W)."""
        rows = group.count * group.pieces * self._ranks
        return group.b_XW[slot * rows : (slot + 1) * rows].view(group.count, group.pieces, self._ranks, -1)


def _pieces(width: int) -> int:
    """Into how many equal pieces outputs are cut; one where nothing but crumbs divides them."""
    pieces = next(count for count in range(1, width + 1) if width % count == 0 and width // count <= WIDEST)
    return pieces if width // pieces >= WIDEST // 8 else 1
