from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from catena.adapters.drivers.engine.decoder import Segment, Step
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.kv_places import Places
from catena.adapters.drivers.engine.prefix import BLOCK, PrefixCache
from catena.adapters.drivers.engine.shape import Shape

SHAPE = Shape(
    layers=2,
    width=8,
    heads=4,
    key_heads=2,
    head=4,
    turned=4,
    scale=0.5,
    embed_scale=1.0,
    feed_forward=16,
    activation="silu",
    vocabulary=10,
    epsilon=1e-6,
    context=128,
    dtype=torch.float32,
    device=torch.device("cpu"),
)
BLOCK_BYTES = BLOCK * SHAPE.kv_bytes_per_token
LONG = 2 * BLOCK + BLOCK // 2
"""Two blocks and a part of one."""


def blocks(count: int, *, rows: int = 4, spare: int = 0) -> KvBlocks:
    return KvBlocks(SHAPE, count * BLOCK_BYTES, rows=rows, spare=spare * BLOCK_BYTES, store=Places)


def written(kv: KvBlocks, slot: int, start: int, values: list[float]) -> None:
    """Let a row's tokens have these values as keys and values, in every layer."""
    count = len(values)
    step = Step(
        tokens_T=torch.zeros(count, dtype=torch.long),
        positions_T=torch.arange(start, start + count),
        slots_T=torch.full((count,), slot),
        singles=0,
        span=0,
        segments=[Segment(0, count, slot, start)],
        wanted_W=None,
    )
    kv_TXE = torch.tensor(values)[:, None, None].expand(count, 2 * SHAPE.key_heads, SHAPE.head)
    for layer in range(SHAPE.layers):
        kv.attend(layer, 0, torch.zeros(count, SHAPE.heads, SHAPE.head), kv_TXE, step)


def held(kv: KvBlocks, slot: int, count: int) -> list[float]:
    """What a row has, read through the tables that the device sees."""
    kv.fit([])
    places = [int(kv._tables_SB[slot, at // BLOCK]) * BLOCK + at % BLOCK for at in range(count)]
    rows = kv._store._data[:, places]
    assert bool((rows == rows[:1, :, :1, :1]).all())
    found: list[float] = rows[0, :, 0, 0].tolist()
    return found


def test_rows_grow_by_blocks_and_give_all_of_them_back() -> None:
    kv = blocks(6)
    kv.fit([1, BLOCK, BLOCK + 1])
    assert kv.free == 2
    assert kv.fits([BLOCK, 3 * BLOCK, 2 * BLOCK])
    assert not kv.fits([BLOCK + 1, 3 * BLOCK])

    for slot in range(3):
        kv.drop(slot)

    assert kv.free == 6


def test_equal_beginnings_are_the_same_blocks_but_for_a_part_of_one() -> None:
    kv = blocks(8)
    first = [float(n) for n in range(LONG)]
    kv.fit([LONG, LONG])
    written(kv, 0, 0, first)
    free = kv.free

    kv.copy(0, 1, LONG)
    written(kv, 1, LONG, [-1.0])
    written(kv, 0, LONG, [-2.0])

    assert kv.free == free + 2
    assert held(kv, 0, LONG + 1) == [*first, -2.0]
    assert held(kv, 1, LONG + 1) == [*first, -1.0]
    kv.drop(0)
    assert held(kv, 1, LONG + 1) == [*first, -1.0]
    kv.drop(1)
    assert kv.free == 8


def test_what_is_remembered_outlives_its_row_without_a_copy() -> None:
    kv, cache = blocks(4, spare=2), PrefixCache(2 * BLOCK_BYTES)
    tokens = list(range(LONG))
    kv.fit([LONG])
    written(kv, 0, 0, [float(token) for token in tokens])
    cache.keep(kv, 0, [""], tokens, [])
    kv.drop(0)
    assert kv.free == 6 - 2

    kv.fit([LONG])
    assert cache.fill(kv, 0, [""], tokens, []) == 2 * BLOCK

    assert held(kv, 0, 2 * BLOCK) == [float(token) for token in tokens[: 2 * BLOCK]]
    assert kv.free == 6 - 3


def test_a_row_that_moves_keeps_its_blocks() -> None:
    kv = blocks(8)
    kv.fit([LONG - BLOCK, LONG - BLOCK, LONG - BLOCK])
    written(kv, 2, 0, [float(n) for n in range(LONG - BLOCK)])
    kv.drop(0)
    kv.move(2, 0)

    assert held(kv, 0, LONG - BLOCK) == [float(n) for n in range(LONG - BLOCK)]
    assert kv.free == 4


@pytest.mark.parametrize("context", [1, BLOCK, BLOCK + 1])
def test_one_row_of_the_whole_context_has_its_place(context: int) -> None:
    kv = KvBlocks(replace(SHAPE, context=context), 2 * BLOCK_BYTES, rows=1, store=Places)
    assert kv.fits([context])
    kv.fit([context])


class Sharing(RuleBasedStateMachine):
    """Rows that come, grow, share, move and go, beside plain lists of what each must have."""

    SLOTS = 4

    @initialize()
    def begin(self) -> None:
        self.kv = blocks(24, rows=self.SLOTS)
        self.rows: list[list[float]] = []
        self.kept: list[tuple[int, list[float]]] = []
        self.next = 0.0

    def fresh(self, count: int) -> list[float]:
        self.next += count
        return [self.next - n for n in range(count)]

    @precondition(lambda self: len(self.rows) < self.SLOTS)
    @rule()
    def come(self) -> None:
        if self.kv.fits([*map(len, self.rows), 1]):
            self.rows.append([])

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), count=st.integers(1, LONG))
    def grow(self, data: st.DataObject, count: int) -> None:
        slot = data.draw(st.integers(0, len(self.rows) - 1))
        count = min(count, SHAPE.context - len(self.rows[slot]))
        lengths = [len(row) + (count if at == slot else 0) for at, row in enumerate(self.rows)]
        if count and self.kv.fits(lengths):
            self.kv.fit(lengths)
            values = self.fresh(count)
            written(self.kv, slot, len(self.rows[slot]), values)
            self.rows[slot] += values

    @precondition(lambda self: len(self.rows) > 1 and not self.rows[-1] and self.rows[0])
    @rule()
    def share(self) -> None:
        lengths = [*map(len, self.rows[:-1]), len(self.rows[0])]
        if self.kv.fits(lengths):
            self.kv.fit(lengths)
            self.kv.copy(0, len(self.rows) - 1, len(self.rows[0]))
            self.rows[-1] = list(self.rows[0])

    @precondition(lambda self: self.rows and len(self.rows[0]) >= BLOCK and len(self.kept) < 4)
    @rule()
    def keep(self) -> None:
        block = self.kv.take(0, 0)
        self.kept.append((block, self.rows[0][:BLOCK]))

    @precondition(lambda self: self.kept)
    @rule()
    def forget(self) -> None:
        self.kv.release(self.kept.pop()[0])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        slot = data.draw(st.integers(0, len(self.rows) - 1))
        self.kv.drop(slot)
        last = self.rows.pop()
        if slot < len(self.rows):
            self.kv.move(len(self.rows), slot)
            self.rows[slot] = last

    @invariant()
    def every_row_has_its_own_and_no_block_is_lost(self) -> None:
        for slot, row in enumerate(self.rows):
            assert held(self.kv, slot, len(row)) == row
        for block, values in self.kept:
            assert self.kv._store._data[0, block * BLOCK : (block + 1) * BLOCK, 0, 0].tolist() == values
        used = {block for blocks in self.kv._rows for block in blocks} | {block for block, _ in self.kept}
        assert 0 not in used
        assert self.kv.free + len(used) == 24


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
