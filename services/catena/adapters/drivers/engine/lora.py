"""LoRA over a packed step: every row through its own adapter, all in a few batched products a site.

A site is one product of the base's forward pass; q, k and v share one, and so do gate and up. Adapters in use are
stacked, padded to the largest rank. Legend: T packed tokens, I inputs, O outputs, R rank, A adapters stacked,
M rows of the adapter that has most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catena.adapters.drivers.engine.shape import Shape

SITE_OF = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3}
KEEP_STEPS = 64
"""How many steps an adapter that no row uses stays stacked: it is likely to come back."""


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
    """An adapter in memory; `sites` by layer and site. `bytes` counts its factors and vectors exactly."""

    key: str
    sites: Mapping[tuple[int, int], Site]
    bytes: int


class LoraStep:
    """One step's share of the stacks: which packed rows go through which adapter."""

    __slots__ = ("_adapter_T", "_gather", "_loops", "_rows", "_source", "_stacks", "_whole")

    def __init__(self, stacks: "Stacks", row_adapters: Sequence[int]) -> None:
        """`row_adapters` gives each packed row the place of its adapter in `stacks`, -1 for the base alone."""
        self._stacks = stacks
        places: dict[int, list[int]] = {}
        for row, place in enumerate(row_adapters):
            if place >= 0:
                places.setdefault(place, []).append(row)
        count, total = len(stacks.keys), len(row_adapters)
        self._whole = -1
        self._loops: list[tuple[int, Tensor]] = []
        self._gather = self._source = self._rows = None
        longest = max(map(len, places.values()))
        device = stacks.device
        if len(places) == 1 and longest == total:
            self._whole = next(iter(places))
        elif len(places) == 1 or count * longest > 2 * total + 32:
            self._loops = [(place, torch.tensor(rows, device=device)) for place, rows in places.items()]
        else:
            gather = [0] * (count * longest)
            source: list[int] = []
            targets: list[int] = []
            for place, rows in places.items():
                begin = place * longest
                gather[begin : begin + len(rows)] = rows
                source += range(begin, begin + len(rows))
                targets += rows
            self._gather = torch.tensor(gather, device=device)
            self._source = torch.tensor(source, device=device)
            self._rows = torch.tensor(targets, device=device)
        self._adapter_T = torch.tensor(row_adapters, device=device) if stacks.dora else None

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, site: int) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""
        stacked = self._stacks.sites.get((layer, site))
        if stacked is None:
            return
        a_AIR, b_ARO = stacked.a_AIR, stacked.b_ARO
        if self._whole >= 0:
            y_TO.addmm_(x_TI @ a_AIR[self._whole], b_ARO[self._whole])
        elif self._gather is not None and self._source is not None and self._rows is not None:
            count = a_AIR.shape[0]
            x_AMI = x_TI.index_select(0, self._gather).view(count, -1, x_TI.shape[1])
            d_AMO = torch.bmm(torch.bmm(x_AMI, a_AIR), b_ARO)
            y_TO.index_add_(0, self._rows, d_AMO.view(-1, y_TO.shape[1]).index_select(0, self._source))
        else:
            for place, rows in self._loops:
                y_TO.index_add_(0, rows, x_TI.index_select(0, rows) @ a_AIR[place] @ b_ARO[place])
        if stacked.norm_AO is not None and stacked.shift_AO is not None and self._adapter_T is not None:
            # Index -1, the base alone, is the last row: ones and zeros.
            y_TO.mul_(stacked.norm_AO[self._adapter_T]).add_(stacked.shift_AO[self._adapter_T])


@dataclass(slots=True)
class _Stacked:
    a_AIR: Tensor
    b_ARO: Tensor
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
        outputs = self._outputs[kind]
        rank = max(site.a_RI.shape[0] for site in sites if site is not None)
        inputs = next(site.a_RI.shape[1] for site in sites if site is not None)
        a_AIR = torch.zeros(len(sites), inputs, rank, dtype=self._dtype, device=self.device)
        b_ARO = torch.zeros(len(sites), rank, outputs, dtype=self._dtype, device=self.device)
        scaled = any(site is not None and site.norm_O is not None for site in sites)
        norm_AO = torch.ones(len(sites) + 1, outputs, dtype=self._dtype, device=self.device) if scaled else None
        shift_AO = torch.zeros_like(norm_AO) if norm_AO is not None else None
        for place, site in enumerate(sites):
            if site is None:
                continue
            a_AIR[place, :, : site.a_RI.shape[0]] = site.a_RI.T
            for block in site.blocks:
                out, ranks = block.b_OR.shape
                b_ARO[place, block.rank : block.rank + ranks, block.out : block.out + out] = block.b_OR.T
            if norm_AO is not None and shift_AO is not None and site.norm_O is not None and site.shift_O is not None:
                norm_AO[place] = site.norm_O
                shift_AO[place] = site.shift_O
        return _Stacked(a_AIR, b_ARO, norm_AO, shift_AO)
