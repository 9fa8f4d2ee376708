"""Keys and values by place: what CUDA reads, a token's heads one after the other.

Legend: B blocks of a row, S slots, P places for a token in all blocks, T packed tokens, N rows that feed one token,
M tokens of the rows that feed several, L tokens of a row, X the 2K heads of keys and values, K key heads, G query heads
of each, H = G K, E head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from catena.adapters.drivers.engine.decoder import Segment, Step, attend_row
from catena.adapters.drivers.engine.prefix import BLOCK, blocks_of
from catena.adapters.drivers.engine.shape import Shape

AttendSingles = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, float], Tensor]
"""Straight from the blocks: q_NHE, kv_PXE, tables_SB, slots_N, positions_N, window, scale to (N, H E)."""
AttendPacked = Callable[..., Any]
"""torch.nn.attention.varlen.varlen_attn."""


class Places:
    """Blocks of keys and values, (layers, P, X, E)."""

    def __init__(
        self, shape: Shape, blocks: int, singles: AttendSingles | None = None, packed: AttendPacked | None = None
    ) -> None:
        """`singles` and `packed` are the device's own attention; None: gather the blocks, then torch's."""
        self._shape = shape
        self._singles, self._packed = singles, packed
        self._data = torch.zeros(
            shape.layers, blocks * BLOCK, 2 * shape.key_heads, shape.head, dtype=shape.dtype, device=shape.device
        )
        self._view: _View | None = None

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._data.numel() * self._data.element_size()

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block into another."""
        begin, end = source * BLOCK, target * BLOCK
        self._data[:, end : end + tokens] = self._data[:, begin : begin + tokens]

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step, tables_SB: Tensor) -> Tensor:
        """Keep the step's keys and values; what each token makes of its row, (T, H E)."""
        view = self._view
        if view is None or view.step is not step:
            view = self._view = _View(step, tables_SB, packs=self._packed is not None)
        kv_PXE = self._data[layer]
        kv_PXE.index_copy_(0, view.places_T, kv_TXE)
        parts = []
        if step.singles:
            parts.append(self._attend_singles(kv_PXE, window, q_THE[: step.singles], view))
        if view.places_M is not None:
            parts.append(self._attend_packed(kv_PXE, window, q_THE[step.singles :], view))
        else:
            for number, segment in enumerate(step.segments):
                q_SHE = q_THE[segment.begin : segment.end]
                parts.append(self._attend_segment(kv_PXE, q_SHE, view, segment, step.segment_mask(number, window)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_singles(self, kv_PXE: Tensor, window: int, q_NHE: Tensor, view: "_View") -> Tensor:
        shape, step, n = self._shape, view.step, q_NHE.shape[0]
        if self._singles is not None:
            slots_N, positions_N = step.slots_T[:n], step.positions_T[:n]
            return self._singles(q_NHE, kv_PXE, view.tables_SB, slots_N, positions_N, window, shape.scale)
        tables_NB = view.tables_SB[step.slots_T[:n], : blocks_of(step.span)]
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

    def _attend_segment(
        self, kv_PXE: Tensor, q_THE: Tensor, view: "_View", segment: Segment, mask_TL: Tensor | None
    ) -> Tensor:
        stop = segment.start + segment.end - segment.begin
        kv_1LXE = _gathered(kv_PXE, view.tables_SB[segment.slot, : blocks_of(stop)].unsqueeze(0))[:, :stop]
        keys_1KLE, values_1KLE = (half.transpose(1, 2) for half in kv_1LXE.chunk(2, dim=2))
        return attend_row(q_THE, keys_1KLE, values_1KLE, mask_TL, self._shape.scale)


class _View:
    """Where a step's tokens are among the blocks; the same for all layers.

    `places_M` are those of all tokens of the rows that feed several, one after the other, where these are attended to
    at once; `queries` and `keys` are where each of them begins, and the end.
    """

    def __init__(self, step: Step, tables_SB: Tensor, *, packs: bool) -> None:
        self.step = step
        self.tables_SB = tables_SB
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
                (tables_SB[segment.slot, : blocks_of(span), None].long() * BLOCK + inside_B).flatten()[:span]
                for segment, span in zip(step.segments, spans, strict=True)
            ]
            self.places_M = torch.cat(rows)


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return torch.tensor(ends, dtype=torch.int32, device=device)


def _gathered(kv_PXE: Tensor, tables_NB: Tensor) -> Tensor:
    """Keys and values of some rows, (N, B tokens, X, E): a copy."""
    return kv_PXE.view(-1, BLOCK, *kv_PXE.shape[1:])[tables_NB].flatten(1, 2)
