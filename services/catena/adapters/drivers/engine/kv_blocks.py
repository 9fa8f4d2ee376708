"""Keys and values of running rows in blocks: a row is a list of them, and equal beginnings are the same blocks.

Nothing is copied when a row grows, moves or shares what another has read, and any free block serves any row. Only whole
blocks are shared, and a row writes only behind what it has, so a shared block is never written to. Block 0 is no row's:
there goes what the rows that pad a batch write. How a device likes its blocks laid out is the store's matter.

Legend: S slots, B blocks of a row, T packed tokens, X the 2K heads of keys and values, H query heads, E head size.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Step
from catena.adapters.drivers.engine.prefix import BLOCK, blocks_of
from catena.adapters.drivers.engine.shape import Shape


class Store(Protocol):
    """The blocks themselves."""

    @property
    def bytes(self) -> int:
        """Bytes allotted."""

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a block into another."""

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step, tables_SB: Tensor) -> Tensor:
        """Keep the step's keys and values, heads one after the other; what each token makes of its row, (T, H E)."""


class KvBlocks:
    """Blocks for all rows, allotted at once: `budget` bytes for running rows, `spare` for what the prefix cache keeps.

    Rows have slots 0..S-1; slot S, `padding`, is that of rows that pad a batch.
    """

    def __init__(
        self, shape: Shape, budget: int, *, rows: int, store: Callable[[Shape, int], Store], spare: int = 0
    ) -> None:
        """`store` makes the blocks, so many of them."""
        self.bytes_per_token = shape.kv_bytes_per_token
        size = BLOCK * self.bytes_per_token
        count = 1 + budget // size + spare // size
        self.padding = rows
        self._store = store(shape, count)
        self._free = list(range(count - 1, 0, -1))
        self._uses = [0] * count
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._wanted = torch.zeros(rows + 1, blocks_of(shape.context), dtype=torch.int32)
        self._tables_SB = self._wanted.to(shape.device, copy=True)
        self._stale = False

    @property
    def bytes(self) -> int:
        """Bytes allotted."""
        return self._store.bytes

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free)

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether there are blocks for rows of these lengths, by slot."""
        more = (max(blocks_of(length) - len(self._rows[slot]), 0) for slot, length in enumerate(lengths))
        return sum(more) <= self.free

    def fit(self, lengths: Sequence[int]) -> None:
        """Have blocks for rows of these lengths, which must fit, and let the device know whose are whose."""
        for slot, length in enumerate(lengths):
            while len(self._rows[slot]) < blocks_of(length):
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
            self.put(target, number, self._rows[source][number])
        if rest:
            self._store.copy(self._rows[source][whole], self._rows[target][whole], rest)

    def move(self, source: int, target: int) -> None:
        """Let the row be in another slot, which is free."""
        self._rows[target], self._rows[source] = self._rows[source], []
        self._wanted[target] = self._wanted[source]
        self._stale = True

    def drop(self, slot: int) -> None:
        """Let go of a row's blocks; those that nobody shares are free."""
        for block in self._rows[slot]:
            self.release(block)
        self._rows[slot] = []

    def take(self, slot: int, number: int) -> int:
        """The row's block of that number, to be released once."""
        block = self._rows[slot][number]
        self._uses[block] += 1
        return block

    def put(self, slot: int, number: int, block: int) -> None:
        """Let a row have a block that was taken, in the place of its own."""
        self._uses[block] += 1
        self.release(self._rows[slot][number])
        self._rows[slot][number] = block
        self._wanted[slot, number] = block
        self._stale = True

    def release(self, block: int) -> None:
        """A block has one user less."""
        self._uses[block] -= 1
        if not self._uses[block]:
            self._free.append(block)

    def attend(self, layer: int, window: int, q_THE: Tensor, kv_TXE: Tensor, step: Step) -> Tensor:
        """Keep the step's keys and values, heads one after the other; what each token makes of its row, (T, H E)."""
        return self._store.attend(layer, window, q_THE, kv_TXE, step, self._tables_SB)
