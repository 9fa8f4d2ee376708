"""Keys and values as tables of rows: what a CPU reads, by weighted sums of just the rows that a token sees.

A row's scores are the sum of its keys' rows, one for each place of the head, weighted by its query; what it makes of
them is the sum of the values' rows, weighted by the scores. `embedding_bag` does both at the speed of memory, over
blocks wherever they lie and rows of any lengths; torch's attention takes two to four times as long for one query.
Long prompts are gathered and go through torch's attention.

Legend: T packed tokens, N those served by sums, B blocks that the longest of them sees, L = 32 B tokens, H query heads,
K key heads, E head size, X the 2K heads of keys and values, S slots.
"""

import torch
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Segment, Step, attend_row
from catena.adapters.drivers.engine.prefix import BLOCK, blocks_of
from catena.adapters.drivers.engine.shape import Shape
from catena.adapters.drivers.engine.sums import picked, starts, summed

FEW = 8
"""Tokens of a row in one step up to which each is served by sums of its own, as verified proposals are."""


class Bags:
    """Blocks of keys, (K, E, 32), and of values, (K, 32, E), in every layer."""

    def __init__(self, shape: Shape, blocks: int) -> None:
        """Memory is taken from the machine when it is first written."""
        self._shape = shape
        heads, size = shape.key_heads, shape.head
        self._keys = torch.empty(shape.layers, blocks, heads, size, BLOCK, dtype=shape.key_dtype)
        self._values = torch.empty(shape.layers, blocks, heads, BLOCK, size, dtype=shape.dtype)
        self._sums: dict[int, _Sums] = {}
        self._step: Step | None = None

    @property
    def bytes(self) -> int:
        """Bytes allotted."""
        return sum(table.numel() * table.element_size() for table in (self._keys, self._values))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block into another."""
        self._keys[:, target, :, :, :tokens] = self._keys[:, source, :, :, :tokens]
        self._values[:, target, :, :tokens] = self._values[:, source, :, :tokens]

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step, tables_SB: Tensor) -> Tensor:
        """Keep the step's keys and values, heads one after the other; what each token makes of its row, (T, H E)."""
        if self._step is not step:
            self._step, self._sums = step, {}
            self._blocks_T = tables_SB[step.slots_T, step.positions_T // BLOCK].long()
            self._inside_T = step.positions_T % BLOCK
        sums = self._sums.get(window)
        if sums is None:
            sums = self._sums[window] = _Sums(step, tables_SB, self._shape, window)
        keys, values = self._keys[layer], self._values[layer]
        keys_TKE, values_TKE = kv_TXE.chunk(2, dim=1)
        keys[self._blocks_T, :, :, self._inside_T] = keys_TKE.to(keys.dtype)
        values[self._blocks_T, :, self._inside_T] = values_TKE
        if not sums.long:
            return sums.of(q_THE, keys, values)
        out_TO = q_THE.new_empty(q_THE.shape[0], self._shape.heads * self._shape.head)
        if len(sums.rows_N):
            out_TO[sums.rows_N] = sums.of(q_THE[sums.rows_N], keys, values)
        for number, segment in sums.long:
            here, mask_TL = slice(segment.begin, segment.end), step.segment_mask(number, window)
            row = self._row(layer, segment, tables_SB) if segment.start else (keys_TKE[here], values_TKE[here])
            keys_1KLE, values_1KLE = (half_LKE.transpose(0, 1)[None] for half_LKE in row)
            out_TO[here] = attend_row(q_THE[here], keys_1KLE, values_1KLE, mask_TL, self._shape.scale)
        return out_TO

    def _row(self, layer: int, segment: Segment, tables_SB: Tensor) -> tuple[Tensor, Tensor]:
        """A copy of a row's keys and values, (L, K, E)."""
        stop = segment.start + segment.end - segment.begin
        blocks_B = tables_SB[segment.slot, : blocks_of(stop)]
        keys_LKE = self._keys[layer].index_select(0, blocks_B).permute(0, 3, 1, 2).flatten(0, 1)
        values_LKE = self._values[layer].index_select(0, blocks_B).transpose(1, 2).flatten(0, 1)
        return keys_LKE[:stop].to(values_LKE.dtype), values_LKE[:stop]


class _Sums:
    """Which rows of the tables each token of a step sums; the same for all layers of one window.

    Blocks before a window are left out. `long` are the segments that are not served by sums, `rows_N` the tokens that
    are.
    """

    def __init__(self, step: Step, tables_SB: Tensor, shape: Shape, window: int) -> None:
        few = [*range(step.singles)]
        self.long: list[tuple[int, Segment]] = []
        for number, segment in enumerate(step.segments):
            if segment.end - segment.begin > FEW:
                self.long.append((number, segment))
            else:
                few += range(segment.begin, segment.end)
        self.rows_N = torch.tensor(few, dtype=torch.long)
        self._shape = shape
        if not few:
            return
        slots_N, last_N = step.slots_T[self.rows_N], step.positions_T[self.rows_N]
        first_N = (last_N - window + 1).clamp_min_(0) if window else torch.zeros_like(last_N)
        begin_N = first_N // BLOCK
        count_N = last_N // BLOCK - begin_N + 1
        most = int(count_N.max())
        number_NB = begin_N[:, None] + torch.arange(most)
        blocks_NB = tables_SB[slots_N[:, None], number_NB.clamp_max_(tables_SB.shape[1] - 1)]
        heads_H = torch.arange(shape.heads, dtype=torch.int32) // (shape.heads // shape.key_heads)
        rows_NHB = (blocks_NB * shape.key_heads)[:, None] + heads_H[:, None]
        there_NHB = (torch.arange(most) < count_N[:, None])[:, None].expand_as(rows_NHB)
        self._owners = there_NHB.flatten().nonzero()[:, 0] // most
        self._keys = picked(rows_NHB[there_NHB], shape.head), starts(there_NHB, shape.head)
        place_NL = begin_N[:, None] * BLOCK + torch.arange(most * BLOCK)
        seen_NL = (place_NL >= first_N[:, None]) & (place_NL <= last_N[:, None])
        self._unseen_N1L = ~seen_NL[:, None]
        seen_NHL = seen_NL[:, None].expand(-1, shape.heads, -1)
        self._seen = seen_NHL.flatten().nonzero()[:, 0]
        values = picked(rows_NHB.flatten(), BLOCK)[self._seen]
        seen_N = (last_N - first_N + 1)[:, None].expand(-1, shape.heads)
        self._values = values, starts(seen_N, 1)

    def of(self, q_NHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What these tokens make of their rows, (N, H E)."""
        n, heads, size = q_NHE.shape
        q_XE = (q_NHE * self._shape.scale).to(keys.dtype).view(n * heads, size).index_select(0, self._owners)
        scores_NHL = summed(keys.view(-1, BLOCK), self._keys, q_XE).view(n, heads, -1)
        weights_NHL = torch.softmax(scores_NHL.masked_fill_(self._unseen_N1L, -torch.inf), -1)
        weights = weights_NHL.flatten().index_select(0, self._seen).to(values.dtype)
        return summed(values.view(-1, size), self._values, weights).view(n, heads * size)
