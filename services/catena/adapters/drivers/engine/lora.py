"""LoRA over a packed step: every row through its own adapter, all in a few batched products a site.

A site is one product of the base's forward pass; q, k and v share one, and so do gate and up. Adapters in use are
stacked, padded to the largest rank. Legend: T packed tokens, I inputs, O outputs, R rank, A adapters stacked,
M rows of the adapter that has most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.shape import Shape
from catena.kit.errors import Invalid

SITE_OF = {"qkv": 0, "q": 0, "k": 0, "v": 0, "o": 1, "gate_up": 2, "gate": 2, "up": 2, "down": 3}
KEEP_STEPS = 64
"""How many steps an adapter that no row uses stays stacked: it is likely to come back."""


SMALL = 32_768
"""Weights of an adapter's B factors in one site up to which one product, zeros among them, beats several."""


@dataclass(frozen=True, slots=True)
class Block:
    """One adapted layer within its site: scaled B, (O', R'), for outputs from `out` on, ranks from `rank` on."""

    b_OR: Tensor
    out: int
    rank: int


@dataclass(frozen=True, slots=True)
class Site:
    """What an adapter adds to one site. `a_RI` stacks the A factors of its layers.

    DoRA: outputs are then multiplied by `norm_O` and `shift_O` added, which undoes the scaling of the bias.
    """

    a_RI: Tensor
    blocks: tuple[Block, ...]
    norm_O: Tensor | None = None
    shift_O: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in memory; `sites` by layer and site. `bytes` counts its factors and vectors exactly.

    With an `invocation` it acts from the last occurrence of these tokens in a prompt on.
    """

    key: str
    sites: Mapping[tuple[int, int], Site]
    bytes: int
    invocation: tuple[int, ...] = ()

    def acts_from(self, prompt: Sequence[int]) -> int:
        """The first token of a prompt on which it acts. Raises Invalid (`invocation_missing`) when there is none."""
        size = len(self.invocation)
        if not size:
            return 0
        for begin in range(len(prompt) - size, -1, -1):
            if tuple(prompt[begin : begin + size]) == self.invocation:
                return begin
        raise Invalid(
            f"the prompt lacks the {size} tokens that activate this adapter; end the prompt as it was trained, "
            "or ask the base",
            code="invocation_missing",
        )


class LoraStep:
    """One step's share of the stacks: which packed rows go through which adapter.

    Rows are gathered by adapter, as many for each as the busiest has, and what comes out goes back in the rows' order:
    a row of the base alone takes it from a place into which nothing was gathered. Where one adapter has most of the
    rows, that would multiply mostly nothing, and each is served by itself.
    """

    __slots__ = ("_adapter_T", "_back", "_empty", "_gather", "_loops", "_stacks", "_whole")

    def __init__(self, stacks: "Stacks", row_adapters: Sequence[int]) -> None:
        """`row_adapters` gives each packed row the place of its adapter in `stacks`, -1 for the base alone."""
        self._stacks = stacks
        places: dict[int, list[int]] = {}
        for row, place in enumerate(row_adapters):
            if place >= 0:
                places.setdefault(place, []).append(row)
        total, device = len(row_adapters), stacks.device
        longest = max(map(len, places.values()))
        self._whole = -1
        self._loops: list[tuple[int, Tensor]] = []
        self._gather = self._back = None
        self._empty = False
        if len(places) == 1 and longest == total:
            self._whole = next(iter(places))
        elif len(places) == 1 or len(stacks.keys) * longest > 2 * total + 32:
            self._loops = [(place, torch.tensor(rows, device=device)) for place, rows in places.items()]
        else:
            gather, back = self._arrange(places, longest, total)
            self._gather, self._back = torch.tensor(gather, device=device), torch.tensor(back, device=device)
        self._adapter_T = torch.tensor(row_adapters, device=device) if stacks.dora else None

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, site: int) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""
        stacked = self._stacks.sites.get((layer, site))
        if stacked is None:
            return
        a_AIR = stacked.a_ARI.transpose(1, 2)
        if self._gather is not None and self._back is not None:
            if self._empty:
                x_TI = functional.pad(x_TI, (0, 0, 0, 1))
            h_AMR = torch.bmm(x_TI.index_select(0, self._gather).view(a_AIR.shape[0], -1, x_TI.shape[1]), a_AIR)
            for part in stacked.parts:
                d_SO = torch.bmm(h_AMR[..., part.ranks], part.b_ARO).view(-1, part.b_ARO.shape[2])
                part.of(y_TO).add_(d_SO.index_select(0, self._back))
        elif self._whole >= 0:
            h_TR = x_TI @ a_AIR[self._whole]
            for part in stacked.parts:
                part.of(y_TO).addmm_(h_TR[:, part.ranks], part.b_ARO[self._whole])
        else:
            for place, rows in self._loops:
                h_MR = x_TI.index_select(0, rows) @ a_AIR[place]
                for part in stacked.parts:
                    part.of(y_TO).index_add_(0, rows, h_MR[:, part.ranks] @ part.b_ARO[place])
        if stacked.norm_AO is not None and stacked.shift_AO is not None and self._adapter_T is not None:
            # Index -1, the base alone, is the last row: ones and zeros.
            y_TO.mul_(stacked.norm_AO[self._adapter_T]).add_(stacked.shift_AO[self._adapter_T])

    def _arrange(self, places: Mapping[int, Sequence[int]], longest: int, total: int) -> tuple[list[int], list[int]]:
        """Which row goes into each place, `total` meaning none, and from which place each row takes what comes out."""
        served = sum(map(len, places.values()))
        count = len(self._stacks.keys)
        self._empty = served < total
        if self._empty and count * longest == served:
            longest += 1
        nothing = total if self._empty else 0
        gather, back = [nothing] * (count * longest), [-1] * total
        for place, rows in places.items():
            for number, row in enumerate(rows, place * longest):
                gather[number], back[row] = row, number
        unused = gather.index(nothing) if self._empty else 0
        return gather, [unused if place < 0 else place for place in back]


@dataclass(frozen=True, slots=True)
class _Part:
    """The B factors of one layer of a site: what they read of the ranks, and the outputs that they add to."""

    ranks: slice
    outs: slice
    b_ARO: Tensor

    def of(self, y_TO: Tensor) -> Tensor:
        return y_TO[:, self.outs]


@dataclass(slots=True)
class _Stacked:
    a_ARI: Tensor
    parts: Sequence[_Part]
    norm_AO: Tensor | None
    shift_AO: Tensor | None


class Stacks:
    """The adapters that running rows use, stacked; rebuilt only when one is needed that is not there."""

    def __init__(self, shape: Shape) -> None:
        """Start empty, for a base of this shape."""
        self.device = shape.device
        self.keys: list[str] = []
        self.sites: dict[tuple[int, int], _Stacked] = {}
        self.dora = False
        self._outputs = shape.outputs
        self._dtype = shape.dtype
        self._held: dict[str, Adapter] = {}
        self._place: dict[str, int] = {}
        self._used_at: dict[str, int] = {}
        self._now = 0

    def step(self, rows: Sequence[Adapter | None]) -> LoraStep | None:
        """The step over packed rows with these adapters; None when no row has one."""
        needed = {id(adapter): adapter for adapter in rows if adapter is not None}
        if not needed:
            return None
        self._now += 1
        for adapter in needed.values():
            self._used_at[adapter.key] = self._now
        stale = self._now - KEEP_STEPS
        if any(self._held.get(a.key) is not a for a in needed.values()) or any(
            self._used_at[key] < stale for key in self.keys
        ):
            kept = {key: held for key, held in self._held.items() if self._used_at[key] >= stale}
            self._build(kept | {adapter.key: adapter for adapter in needed.values()})
        place = self._place
        return LoraStep(self, [-1 if adapter is None else place[adapter.key] for adapter in rows])

    def forget(self, key: str) -> None:
        """Drop an adapter's copy now; rows that still use it bring it back."""
        if key in self._held:
            self._build({other: held for other, held in self._held.items() if other != key})

    def _build(self, held: dict[str, Adapter]) -> None:
        self._held, self.keys = held, list(held)
        self._place = {key: place for place, key in enumerate(self.keys)}
        self._used_at = {key: self._used_at.get(key, self._now) for key in self.keys}
        adapters = list(held.values())
        at = {where for adapter in adapters for where in adapter.sites}
        self.sites = {where: self._stack([adapter.sites.get(where) for adapter in adapters], where[1]) for where in at}
        self.dora = any(site.norm_AO is not None for site in self.sites.values())

    def _stack(self, sites: Sequence[Site | None], kind: int) -> _Stacked:
        outputs, present = self._outputs[kind], [site for site in sites if site is not None]
        inputs = present[0].a_RI.shape[1]
        layout = _layout(present, outputs)
        ranks = max(ranks.stop for ranks, _ in layout.values())
        a_ARI = self._zeros(len(sites), ranks, inputs)
        parts = {
            at: _Part(ranks, outs, self._zeros(len(sites), ranks.stop - ranks.start, outs.stop - outs.start))
            for at, (ranks, outs) in layout.items()
        }
        scaled = any(site.norm_O is not None for site in present)
        norm_AO = torch.ones(len(sites) + 1, outputs, dtype=self._dtype, device=self.device) if scaled else None
        shift_AO = torch.zeros_like(norm_AO) if norm_AO is not None else None
        for place, site in enumerate(sites):
            if site is None:
                continue
            taken = dict.fromkeys(parts, 0)
            for block in site.blocks:
                at = block.out if block.out in parts else 0
                part, rank, out = parts[at], block.b_OR.shape[1], block.out - parts[at].outs.start
                begin = part.ranks.start + taken[at]
                a_ARI[place, begin : begin + rank] = site.a_RI[block.rank : block.rank + rank]
                part.b_ARO[place, taken[at] : taken[at] + rank, out : out + block.b_OR.shape[0]] = block.b_OR.T
                taken[at] += rank
            if norm_AO is not None and shift_AO is not None and site.norm_O is not None and site.shift_O is not None:
                norm_AO[place] = site.norm_O
                shift_AO[place] = site.shift_O
        return _Stacked(a_ARI, list(parts.values()), norm_AO, shift_AO)

    def _zeros(self, *sizes: int) -> Tensor:
        return torch.zeros(*sizes, dtype=self._dtype, device=self.device)


def _layout(sites: Sequence[Site], outputs: int) -> dict[int, tuple[slice, slice]]:
    """Ranks and outputs of a site's parts, by first output: one a layer, or one for all where that is little more."""
    widths: dict[int, tuple[int, int]] = {}
    whole = 0
    for site in sites:
        ranks: dict[int, int] = {}
        for block in site.blocks:
            ranks[block.out] = ranks.get(block.out, 0) + block.b_OR.shape[1]
            widths[block.out] = (0, block.b_OR.shape[0]) if block.out not in widths else widths[block.out]
        widths |= {out: (max(widths[out][0], rank), widths[out][1]) for out, rank in ranks.items()}
        whole = max(whole, sum(ranks.values()))
    if whole * outputs <= SMALL:
        return {0: (slice(0, whole), slice(0, outputs))}
    layout, begin = {}, 0
    for out, (rank, width) in sorted(widths.items()):
        layout[out] = slice(begin, begin + rank), slice(out, out + width)
        begin += rank
    return layout
