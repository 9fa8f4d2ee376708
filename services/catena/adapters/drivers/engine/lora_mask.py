"""LoRA over a packed step in two products a site for all adapters at once: each row keeps what is its own adapter's.

What CUDA uses. The adapters in use lie side by side in the rank columns of one pair of factors per site, each in a
window of its own. A row is multiplied with all of A, all columns but its window's are zeroed, and the rest goes through
B: every weight is read once however the rows are mixed, and shapes depend on the number of rows and columns alone, so
that a CUDA graph can hold them. Long stretches of one adapter, prompts, take only their window instead.

Legend: T packed tokens, I inputs, O outputs, C columns, W columns of a step, P parts of a site, layers that share its
input: q with k and v, gate with up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from catena.adapters.drivers.engine.lora import Adapter, Block, Site
from catena.adapters.drivers.engine.shape import Shape

GRAIN = 8
"""Windows begin and end at multiples of it: 16 bytes in half precision, what matrix units read at a time."""
LEAST, FIRST = 16, 64
"""The fewest columns of a step, and those that there are at first; both are doubled."""
KEEP_STEPS = 64
"""How many steps an adapter that no row uses keeps its window: it is likely to come back."""
LONG_RUN, MOST_RUNS = 16, 8
"""Rows that make a run worth products of its own, and how many such runs a step has before the mask is cheaper.

Estimated, not measured: a run costs some twelve launches a layer, the mask arithmetic that a GPU has to spare.
"""


class Products(Protocol):
    """Both products of masked rows, as a device's own kernels have them."""

    def __call__(self, y_TO: Tensor, x_TI: Tensor, pair: "Pair", begins_T: Tensor, ends_T: Tensor, width: int) -> None:
        """Add to `y_TO` what `x_TI` makes through the first `width` columns, each row's window alone."""


@dataclass(slots=True, kw_only=True)
class Pair:
    """The factors of one site. `outs` are the outputs of each part, `starts` where they begin and end, on the device.

    DoRA: outputs are then multiplied by `norm_AO` and `shift_AO` added, by the row's window; the last is the base's.
    """

    a_PCI: Tensor
    b_CO: Tensor
    outs: Sequence[slice]
    starts: Tensor
    norm_AO: Tensor | None = None
    shift_AO: Tensor | None = None


class MaskStep:
    """One step's share: which columns each packed row has, (2, T), and the runs that take them by themselves.

    The first `masked` rows go through the mask over `width` columns.
    """

    __slots__ = ("_mask_TW", "_pairs", "_places_T", "_products", "_runs", "masked", "width", "windows_2T")

    def __init__(
        self, stacks: "MaskStacks", windows_2T: Tensor, width: int, masked: int, runs: Sequence[tuple[slice, slice]]
    ) -> None:
        """Nothing is computed before it is needed."""
        self.windows_2T, self.width, self.masked = windows_2T, width, masked
        self._pairs, self._products, self._runs = stacks.pairs, stacks.products, runs
        self._mask_TW: Tensor | None = None
        self._places_T: Tensor | None = None

    def add(self, y_TO: Tensor, x_TI: Tensor, layer: int, site: int) -> None:
        """Add to `y_TO`, in place, what each row's adapter makes of `x_TI`."""
        pair = self._pairs.get((layer, site))
        if pair is None:
            return
        if self.masked:
            self._add_masked(y_TO[: self.masked], x_TI[: self.masked], pair)
        for rows, columns in self._runs:
            x_PTI = x_TI[rows].expand(len(pair.outs), -1, -1)
            h_PTW = torch.bmm(x_PTI, pair.a_PCI[:, columns].transpose(1, 2))
            for h_TW, outs in zip(h_PTW, pair.outs, strict=True):
                y_TO[rows, outs].addmm_(h_TW, pair.b_CO[columns, outs])
        if pair.norm_AO is not None and pair.shift_AO is not None:
            if self._places_T is None:
                begins_T, ends_T = self.windows_2T
                self._places_T = torch.where(begins_T < ends_T, begins_T // GRAIN, pair.norm_AO.shape[0] - 1)
            y_TO.mul_(pair.norm_AO[self._places_T]).add_(pair.shift_AO[self._places_T])

    def _add_masked(self, y_TO: Tensor, x_TI: Tensor, pair: Pair) -> None:
        begins_T, ends_T = self.windows_2T[:, : self.masked]
        if self._products is not None:
            self._products(y_TO, x_TI, pair, begins_T, ends_T, self.width)
            return
        if self._mask_TW is None:
            columns_W = torch.arange(self.width, device=x_TI.device)
            self._mask_TW = (columns_W < begins_T[:, None]) | (columns_W >= ends_T[:, None])
        h_PTW = torch.bmm(x_TI.expand(len(pair.outs), -1, -1), pair.a_PCI[:, : self.width].transpose(1, 2))
        # Not a product with zeros: what overflows in another adapter's columns would stay, as NaN.
        h_PTW.masked_fill_(self._mask_TW, 0.0)
        for h_TW, outs in zip(h_PTW, pair.outs, strict=True):
            y_TO[:, outs].addmm_(h_TW, pair.b_CO[: self.width, outs])


class MaskStacks:
    """The adapters that running rows use, each in its window; `epoch` grows when the factors are other tensors."""

    def __init__(
        self,
        shape: Shape,
        *,
        products: Products | None = None,
        long_run: int = LONG_RUN,
        most_runs: int = MOST_RUNS,
    ) -> None:
        """Start empty, for a base of this shape; `products` None: torch's."""
        self.pairs: dict[tuple[int, int], Pair] = {}
        self.products = products
        self.epoch = 0
        self._shape = shape
        self._long_run, self._most_runs = long_run, most_runs
        self._outs = _parts(shape)
        self._columns = 0
        self._held: dict[str, Adapter] = {}
        self._window: dict[str, slice] = {}
        self._used_at: dict[str, int] = {}
        self._now = 0

    @property
    def keys(self) -> list[str]:
        """The adapters that have windows."""
        return list(self._held)

    def step(self, rows: Sequence[Adapter | None]) -> MaskStep | None:
        """The step over packed rows with these adapters; None when no row has one."""
        needed = {adapter.key: adapter for adapter in rows if adapter is not None}
        if not needed:
            return None
        self._now += 1
        self._used_at |= dict.fromkeys(needed, self._now)
        stale = self._now - KEEP_STEPS
        if any(self._held.get(key) is not adapter for key, adapter in needed.items()) or any(
            self._used_at[key] < stale for key in self._held
        ):
            self._arrange({key: held for key, held in self._held.items() if self._used_at[key] >= stale} | needed)
        windows = [(0, 0) if a is None else (self._window[a.key].start, self._window[a.key].stop) for a in rows]
        masked, runs = self._split(rows)
        windows_2T = torch.tensor(windows, device=self._shape.device).T.contiguous()
        width = _power(max(self._window[key].stop for key in needed), LEAST)
        return MaskStep(self, windows_2T, width, masked, runs)

    def forget(self, key: str) -> None:
        """Drop an adapter now; rows that still use it bring it back."""
        self._held.pop(key, None)
        self._window.pop(key, None)
        if not self._held and self.pairs:
            self.pairs.clear()
            self._columns = 0
            self.epoch += 1

    def _split(self, rows: Sequence[Adapter | None]) -> tuple[int, list[tuple[slice, slice]]]:
        """How many rows, from the first on, go through the mask, and the runs of what follows them."""
        masked, begin = 0, 0
        runs: list[tuple[slice, slice]] = []
        for adapter, run in groupby(rows):
            end = begin + sum(1 for _ in run)
            if not runs and end - begin < self._long_run:
                masked = end if adapter is not None else masked
            elif adapter is not None:
                runs.append((slice(begin, end), self._window[adapter.key]))
            begin = end
        return (len(rows), []) if len(runs) > self._most_runs else (masked, runs)

    def _arrange(self, wanted: dict[str, Adapter]) -> None:
        """Give windows to those that have none; all anew, side by side, where they would take too many columns."""
        stays = {key: self._window[key] for key, held in self._held.items() if wanted.get(key) is held}
        sizes = {key: self._size(adapter) for key, adapter in wanted.items()}
        least = _power(sum(sizes.values()), LEAST)
        self._held = wanted
        self._window = dict(stays)
        new = [key for key in wanted if key not in stays]
        for key in new:
            self._window[key] = self._gap(sizes[key])
        if max(window.stop for window in self._window.values()) > least or self._columns < least:
            new, begin = list(wanted), 0
            for key, size in sizes.items():
                self._window[key] = slice(begin, begin + size)
                begin += size
        self._make_room(_power(least, FIRST))
        for key in new:
            self._fill(wanted[key], self._window[key])
        self._used_at = {key: self._used_at[key] for key in wanted}

    def _gap(self, size: int) -> slice:
        """The first columns that are free."""
        begin = 0
        for window in sorted(self._window.values(), key=lambda taken: taken.start):
            if window.start - begin >= size:
                break
            begin = window.stop
        return slice(begin, begin + size)

    def _make_room(self, columns: int) -> None:
        """Have factors of that many columns for every site that an adapter changes, and what DoRA needs."""
        if columns > self._columns:
            self._columns = columns
            self.pairs.clear()
        for adapter in self._held.values():
            for (layer, kind), site in adapter.sites.items():
                pair = self.pairs.get((layer, kind))
                if pair is None:
                    pair = self.pairs[layer, kind] = self._pair(kind, site.inputs)
                    self.epoch += 1
                if site.norm_O is not None and pair.norm_AO is None:
                    size = self._columns // GRAIN + 1, pair.b_CO.shape[1]
                    pair.norm_AO, pair.shift_AO = self._zeros(*size) + 1, self._zeros(*size)
                    self.epoch += 1

    def _pair(self, kind: int, inputs: int) -> Pair:
        outs = self._outs[kind]
        return Pair(
            a_PCI=self._zeros(len(outs), self._columns, inputs),
            b_CO=self._zeros(self._columns, outs[-1].stop),
            outs=outs,
            starts=torch.tensor([0, *(part.stop for part in outs)], dtype=torch.int32, device=self._shape.device),
        )

    def _fill(self, adapter: Adapter, window: slice) -> None:
        """Write an adapter over whatever its window held."""
        for where, pair in self.pairs.items():
            pair.a_PCI[:, window] = 0.0
            pair.b_CO[window] = 0.0
            site = adapter.sites.get(where)
            if site is not None:
                for part, at, block, overlap in _pieces(site, pair.outs):
                    columns = slice(window.start + at, window.start + at + block.b_OR.shape[1])
                    b_OR = block.b_OR[overlap.start - block.out : overlap.stop - block.out]
                    pair.a_PCI[part, columns] = block.a_RI
                    pair.b_CO[columns, overlap] = block.scale * b_OR.T
            if pair.norm_AO is not None and pair.shift_AO is not None:
                place = window.start // GRAIN
                pair.norm_AO[place] = 1.0 if site is None or site.norm_O is None else site.norm_O
                pair.shift_AO[place] = 0.0 if site is None or site.shift_O is None else site.shift_O

    def _size(self, adapter: Adapter) -> int:
        needed = 1
        for (_, kind), site in adapter.sites.items():
            for _, at, block, _ in _pieces(site, self._outs[kind]):
                needed = max(needed, at + block.b_OR.shape[1])
        return -(-needed // GRAIN) * GRAIN

    def _zeros(self, *sizes: int) -> Tensor:
        return torch.zeros(*sizes, dtype=self._shape.dtype, device=self._shape.device)


def _parts(shape: Shape) -> tuple[tuple[slice, ...], ...]:
    """The outputs of each site's parts."""
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    widths = ((queries, keys, keys), (shape.width,), (shape.feed_forward, shape.feed_forward), (shape.width,))
    return tuple(tuple(slice(sum(site[:n]), sum(site[: n + 1])) for n in range(len(site))) for site in widths)


def _pieces(site: Site, outs: Sequence[slice]) -> Iterator[tuple[int, int, Block, slice]]:
    """What of each block falls into which part: the part, its first rank there, the block, the outputs."""
    taken = [0] * len(outs)
    for block in site.blocks:
        for number, part in enumerate(outs):
            overlap = slice(max(block.out, part.start), min(block.out + block.b_OR.shape[0], part.stop))
            if overlap.start < overlap.stop:
                yield number, taken[number], block, overlap
                taken[number] += block.b_OR.shape[1]


def _power(wanted: int, least: int) -> int:
    """The first power of two that is not below either."""
    return max(1 << (wanted - 1).bit_length(), least)
