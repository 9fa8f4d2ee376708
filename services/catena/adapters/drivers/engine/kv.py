"""Keys and values of running rows: one slab, a contiguous stretch per row, grown when needed.

Contiguous rows make decoding on a CPU a plain batched product. Legend: S slots, K key heads, L tokens, E head size,
T packed tokens, N rows, X the 2K heads of keys and values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from catena.adapters.drivers.engine.shape import Shape

FIRST_TOKENS = 64
Kept = Tensor | int
"""A stretch of a row that outlives it: a copy, or the number of a block that is shared."""


class KvSlab:
    """Slots 0..S-1, each with room for L tokens, in every layer, within a budget of bytes."""

    def __init__(self, shape: Shape, budget: int) -> None:
        """Start empty; `fit` makes room. `budget` is in bytes."""
        self._heads = shape.key_heads
        self._budget = budget
        self._data = torch.zeros(
            shape.layers, 0, 2 * shape.key_heads, 0, shape.head, dtype=shape.dtype, device=shape.device
        )

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._data.numel() * self._data.element_size()

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token of a row takes."""
        layers, _, heads, _, head = self._data.shape
        return layers * heads * head * self._data.element_size()

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths, by slot, are within the budget."""
        slots, tokens = len(lengths), max(lengths)
        return self._bytes(_doubled(slots, 1), _doubled(tokens, FIRST_TOKENS)) <= self._budget

    def fit(self, lengths: Sequence[int]) -> None:
        """Have room for rows of these lengths, which must fit; doubles, so that growing costs little per token."""
        slots, tokens = len(lengths), max(lengths)
        _, had, _, length, _ = self._data.shape
        if slots <= had and tokens <= length:
            return
        wanted = _doubled(slots, 1), _doubled(tokens, FIRST_TOKENS)
        grown = max(wanted[0], had), max(wanted[1], length)
        self._resize(*(grown if self._bytes(*grown) <= self._budget else wanted))

    def write(self, layer: int, slots_T: Tensor, positions_T: Tensor, kv_TXE: Tensor) -> None:
        """Put keys and values, heads one after the other."""
        self._data[layer][slots_T, :, positions_T] = kv_TXE

    def read(self, layer: int, count: int, slots_N: Tensor | None, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (N, K, span, E), of `slots_N`, or without a copy of the first `count` slots."""
        data = self._data[layer]
        rows = data[:count, :, :span] if slots_N is None else data[:, :, :span].index_select(0, slots_N)
        return rows[:, : self._heads], rows[:, self._heads :]

    def row(self, layer: int, slot: int, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one row, (1, K, span, E)."""
        rows = self._data[layer, slot : slot + 1, :, :span]
        return rows[:, : self._heads], rows[:, self._heads :]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy a row's first `tokens` into another slot."""
        self._data[:, target, :, :tokens] = self._data[:, source, :, :tokens]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let the row be in another slot, which is free."""
        self.copy(source, target, tokens)

    def drop(self, slot: int) -> None:
        """Let go of a row: the next one writes over it."""

    def take(self, slot: int, begin: int, end: int) -> Kept:
        """A copy of a stretch of a row, (layers, X, tokens, E)."""
        return self._data[:, slot, :, begin:end].clone()

    def put(self, slot: int, begin: int, stretch: Kept) -> None:
        """Write a stretch back."""
        assert isinstance(stretch, Tensor)
        self._data[:, slot, :, begin : begin + stretch.shape[2]] = stretch

    def release(self, stretch: Kept) -> None:
        """A stretch is needed no more; it was a copy."""

    def _bytes(self, slots: int, tokens: int) -> int:
        return slots * tokens * self.bytes_per_token

    def _resize(self, slots: int, tokens: int) -> None:
        old = self._data
        layers, had, heads, length, head = old.shape
        self._data = torch.zeros(layers, slots, heads, tokens, head, dtype=old.dtype, device=old.device)
        rows, span = min(had, slots), min(length, tokens)
        self._data[:, :rows, :, :span] = old[:, :rows, :, :span]


def longest_row(*, bytes_per_token: int, budget: int) -> int:
    """The most tokens that one row can have within `budget` bytes; 0 when not even the shortest slab fits."""
    tokens = FIRST_TOKENS
    while 2 * tokens * bytes_per_token <= budget:
        tokens *= 2
    return tokens if tokens * bytes_per_token <= budget else 0


def _doubled(wanted: int, size: int) -> int:
    while size < wanted:
        size *= 2
    return size
