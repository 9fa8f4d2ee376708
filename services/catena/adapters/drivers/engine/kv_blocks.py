"""Keys and values of running rows in blocks: a row is a list of them, and equal beginnings are the same blocks.

What CUDA uses: nothing is copied when a row grows, moves or shares what another has read, and any free block serves any
row. Only whole blocks are shared, and a row writes only behind what it has, so a shared block is never written to.
Block 0 is no row's: there goes what the rows that pad a batch write.

Legend: S slots, B blocks of a row, P places for a token in all blocks, T packed tokens, N rows that feed one token,
M tokens of the rows that feed several, L tokens of a row, X the 2K heads of keys and values, K key heads, G query heads
of each, H = G K, E head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.decoder import Segment, Step, attend_row
from catena.adapters.drivers.engine.kv import Kept
from catena.adapters.drivers.engine.prefix import BLOCK
from catena.adapters.drivers.engine.shape import Shape

AttendSingles = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""Straight from the blocks: q_NHE, kv_PXE, tables_SB, slots_N, positions_N, window, scale to (N, H E)."""
AttendPacked = Callable[..., Any]
"""torch.nn.attention.varlen.varlen_attn."""


class KvBlocks:
    """Blocks for all rows, allotted at once: `budget` bytes for running rows, `spare` for what the prefix cache keeps.

    Rows have slots 0..S-1; slot S, `padding`, is that of rows that pad a batch.
    """

    def __init__(
        self,
        shape: Shape,
        budget: int,
        *,
        rows: int,
        spare: int = 0,
        singles: AttendSingles | None = None,
        packed: AttendPacked | None = None,
    ) -> None:
        """`singles` and `packed` are the device's own attention; None: gather the blocks, then torch's."""
        self.bytes_per_token = shape.kv_bytes_per_token
        size = BLOCK * self.bytes_per_token
        count = 1 + budget // size + spare // size
        self.padding = rows
        self._shape = shape
        self._singles, self._packed = singles, packed
        self._data = torch.zeros(
            shape.layers, count * BLOCK, 2 * shape.key_heads, shape.head, dtype=shape.dtype, device=shape.device
        )
        self._free = list(range(count - 1, 0, -1))
        self._uses = [0] * count
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._wanted = torch.zeros(rows + 1, _blocks(shape.context), dtype=torch.int32)
        self._tables_SB = self._wanted.to(shape.device, copy=True)
        self._stale = False
        self._view: _View | None = None

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._data.numel() * self._data.element_size()

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether there are blocks for rows of these lengths, by slot."""
        more = (max(_blocks(length) - len(self._rows[slot]), 0) for slot, length in enumerate(lengths))
        return sum(more) <= self.free

    def fit(self, lengths: Sequence[int]) -> None:
        """Have blocks for rows of these lengths, which must fit, and let the device know whose are whose."""
        for slot, length in enumerate(lengths):
            while len(self._rows[slot]) < _blocks(length):
                block = self._free.pop()
                self._uses[block] = 1
                self._rows[slot].append(block)
                self._wanted[slot, len(self._rows[slot]) - 1] = block
                self._stale = True
        if self._stale:
            self._tables_SB.copy_(self._wanted)
            self._stale = False

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Let another row begin with a row's first `tokens`: the same blocks, but for a part of one."""
        whole, rest = divmod(tokens, BLOCK)
        for number in range(whole):
            self._swap(target, number, self._rows[source][number])
        if rest:
            begin, end = (self._rows[slot][whole] * BLOCK for slot in (source, target))
            self._data[:, end : end + rest] = self._data[:, begin : begin + rest]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let the row be in another slot, which is free."""
        self._rows[target], self._rows[source] = self._rows[source], []
        self._wanted[target] = self._wanted[source]
        self._stale = True

    def drop(self, slot: int) -> None:
        """Let go of a row's blocks; those that nobody shares are free."""
        for block in self._rows[slot]:
            self.release(block)
        self._rows[slot] = []

    def take(self, slot: int, begin: int, end: int) -> Kept:
        """The row's block that begins there, to be released once."""
        block = self._rows[slot][begin // BLOCK]
        self._uses[block] += 1
        return block

    def put(self, slot: int, begin: int, stretch: Kept) -> None:
        """Let a row have a block that was taken."""
        assert isinstance(stretch, int)
        self._swap(slot, begin // BLOCK, stretch)

    def release(self, stretch: Kept) -> None:
        """A block has one user less."""
        assert isinstance(stretch, int)
        self._uses[stretch] -= 1
        if not self._uses[stretch]:
            self._free.append(stretch)

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step) -> Tensor:
        """Keep the step's keys and values; what each token makes of its row, (T, H E)."""
        view = self._view
        if view is None or view.step is not step:
            view = self._view = _View(step, self._tables_SB, packs=self._packed is not None)
        kv_PXE = self._data[layer]
        kv_PXE.index_copy_(0, view.places_T, kv_TXE)
        parts = []
        if step.singles:
            parts.append(self._attend_singles(kv_PXE, window, q_THE[: step.singles], view))
        if view.places_M is not None:
            parts.append(self._attend_packed(kv_PXE, window, q_THE[step.singles :], view))
        else:
            for number, segment in enumerate(step.segments):
                mask_TL = step.segment_mask(number, window)
                parts.append(self._attend_segment(kv_PXE, q_THE[segment.begin : segment.end], segment, mask_TL))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_singles(self, kv_PXE: Tensor, window: int, q_NHE: Tensor, view: "_View") -> Tensor:
        shape, step, n = self._shape, view.step, q_NHE.shape[0]
        if self._singles is not None:
            slots_N, positions_N = step.slots_T[:n], step.positions_T[:n]
            return self._singles(q_NHE, kv_PXE, self._tables_SB, slots_N, positions_N, window, shape.scale)
        tables_NB = self._tables_SB[step.slots_T[:n], : _blocks(step.span)]
        kv_NLXE = _gathered(kv_PXE, tables_NB)[:, : step.span]
        keys_NKLE, values_NKLE = (half.transpose(1, 2) for half in kv_NLXE.chunk(2, dim=2))
        out_NKGE = functional.scaled_dot_product_attention(
            q_NHE.reshape(n, shape.key_heads, -1, shape.head),
            keys_NKLE,
            values_NKLE,
            attn_mask=step.single_mask(window),
            scale=shape.scale,
        )
        return out_NKGE.reshape(n, -1)

    def _attend_packed(self, kv_PXE: Tensor, window: int, q_THE: Tensor, view: "_View") -> Tensor:
        assert self._packed is not None
        keys_MKE, values_MKE = kv_PXE[view.places_M].chunk(2, dim=1)
        # Flash attention aligns the last query with the last key, and its window leaves out the token itself.
        out_THE: Tensor = self._packed(
            q_THE,
            keys_MKE,
            values_MKE,
            view.queries,
            view.keys,
            view.most_queries,
            view.most_keys,
            scale=self._shape.scale,
            window_size=(window - 1 if window else -1, 0),
            enable_gqa=True,
        )
        return out_THE.flatten(1)

    def _attend_segment(self, kv_PXE: Tensor, q_THE: Tensor, segment: Segment, mask_TL: Tensor | None) -> Tensor:
        stop = segment.start + segment.end - segment.begin
        kv_1LXE = _gathered(kv_PXE, self._tables_SB[segment.slot, : _blocks(stop)].unsqueeze(0))[:, :stop]
        keys_1KLE, values_1KLE = (half.transpose(1, 2) for half in kv_1LXE.chunk(2, dim=2))
        return attend_row(q_THE, keys_1KLE, values_1KLE, mask_TL, self._shape.scale)

    def _swap(self, slot: int, number: int, block: int) -> None:
        self._uses[block] += 1
        self.release(self._rows[slot][number])
        self._rows[slot][number] = block
        self._wanted[slot, number] = block
        self._stale = True


class _View:
    """Where a step's tokens are among the blocks; the same for all layers.

    `places_M` are those of all tokens of the rows that feed several, one after the other, where these are attended to
    at once; `queries` and `keys` are where each of them begins, and the end.
    """

    def __init__(self, step: Step, tables_SB: Tensor, *, packs: bool) -> None:
        self.step = step
        blocks_T = tables_SB[step.slots_T, step.positions_T // BLOCK].long()
        self.places_T = blocks_T * BLOCK + step.positions_T % BLOCK
        self.places_M: Tensor | None = None
        if packs and step.segments:
            counts = [segment.end - segment.begin for segment in step.segments]
            spans = [segment.start + count for segment, count in zip(step.segments, counts, strict=True)]
            self.most_queries, self.most_keys = max(counts), max(spans)
            self.queries, self.keys = _ends(counts, tables_SB.device), _ends(spans, tables_SB.device)
            inside_B = torch.arange(BLOCK, device=tables_SB.device)
            rows = [
                (tables_SB[segment.slot, : _blocks(span), None].long() * BLOCK + inside_B).flatten()[:span]
                for segment, span in zip(step.segments, spans, strict=True)
            ]
            self.places_M = torch.cat(rows)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return torch.tensor(ends, dtype=torch.int32, device=device)


def _gathered(kv_PXE: Tensor, tables_NB: Tensor) -> Tensor:
    """Keys and values of some rows, (N, B tokens, X, E): a copy."""
    return kv_PXE.view(-1, BLOCK, *kv_PXE.shape[1:])[tables_NB].flatten(1, 2)
