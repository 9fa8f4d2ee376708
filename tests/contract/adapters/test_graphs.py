"""Graphs, captured on a CPU as a list of tensor operations: a replay runs no line of Python, as on CUDA."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.decoder import Decoder, Segment, Step
from catena.adapters.drivers.engine.graphs import Graphs, padded
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.kv_places import Places
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.lora_mask import MaskStacks
from catena.adapters.drivers.engine.ways import Means
from tests.contract.adapters.making import make_adapter, make_base, part_of

SLOTS, MOST_ROWS = 12, 8


def recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The computation's operations, on the very tensors that it used."""
    made: Any = make_fx(run)()
    return lambda: made()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, list[Adapter]]:
    torch.set_num_threads(1)
    root: Path = tmp_path_factory.mktemp("graphs")
    base = make_base(root / "base", kind="mistral")
    decoder = read_base(base, dtype="auto", device=torch.device("cpu"), kv_bytes=1 << 24)
    made = [make_adapter(base, root / str(n), seed=n, r=r, use_dora=n == 3) for n, r in enumerate((4, 8, 40, 8, 16))]
    return decoder, [read_adapter(folder.name, [part_of(base, folder)], decoder) for folder in made]


def means_of(decoder: Decoder, *, graphs: bool) -> Means:
    kv, stacks = KvBlocks(decoder.shape, 1 << 22, rows=SLOTS, store=Places), MaskStacks(decoder.shape)
    made = Graphs(decoder, kv, stacks, most_rows=MOST_ROWS, capture=recorded) if graphs else None
    return Means(decoder=decoder, kv=kv, stacks=stacks, graphs=made)


def step_of(feeds: dict[int, list[int]], lengths: list[int], wanted: list[int] | None) -> Step:
    """Rows by slot, those with one token first."""
    order = sorted(feeds, key=lambda slot: (len(feeds[slot]) > 1, slot))
    singles = sum(len(feeds[slot]) == 1 for slot in order)
    segments, at = [], singles
    for slot in order[singles:]:
        segments.append(Segment(at, at + len(feeds[slot]), slot, lengths[slot]))
        at += len(feeds[slot])
    return Step(
        tokens_T=torch.tensor([token for slot in order for token in feeds[slot]]),
        positions_T=torch.tensor([lengths[slot] + n for slot in order for n in range(len(feeds[slot]))]),
        slots_T=torch.tensor([slot for slot in order for _ in feeds[slot]]),
        singles=singles,
        span=max((lengths[slot] + 1 for slot in order[:singles]), default=0),
        segments=segments,
        wanted_W=None if wanted is None else torch.tensor(wanted),
    )


def test_replays_are_the_plain_forward_whoever_comes_and_goes(known: tuple[Decoder, list[Adapter]]) -> None:
    decoder, adapters = known
    plain, graphed = means_of(decoder, graphs=False), means_of(decoder, graphs=True)
    assert graphed.graphs is not None
    chance = random.Random(0)
    lengths = [0] * SLOTS
    served: dict[int, Adapter | None] = {}
    for turn in range(120):
        slots = chance.sample(range(SLOTS), chance.choice([1, 2, 3, 3, 5, 8, 8, 10]))
        feeds = {slot: [chance.randrange(97, 122)] for slot in slots}
        if turn % 10 == 0:
            feeds[slots[0]] = [chance.randrange(97, 122) for _ in range(chance.randrange(2, 16))]
        for slot in slots:
            if lengths[slot] + len(feeds[slot]) > 16:
                for means in (plain, graphed):
                    means.kv.drop(slot)
                lengths[slot] = 0
            if lengths[slot] == 0:
                # A DoRA adapter and one that needs more columns come late.
                served[slot] = chance.choice([None, *adapters[: 3 if turn < 60 else 5]])
        lengths_after = [length + len(feeds.get(slot, [])) for slot, length in enumerate(lengths)]
        wanted = [0] if turn % 7 == 0 else None
        step = step_of(feeds, lengths, wanted)
        rows = [served[slot] for slot in step.slots_T.tolist()]
        got = []
        for means in (plain, graphed):
            means.kv.fit(lengths_after)
            got.append(means.forward(step_of(feeds, lengths, wanted), rows).clone())
        assert got[0].shape[0] == (1 if wanted else len(rows))
        assert torch.allclose(got[0], got[1], atol=2e-4), turn
        lengths = lengths_after

    assert graphed.graphs.replayed > 60


def test_rows_are_rounded_up_little() -> None:
    assert [padded(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 32]


def test_prompts_and_crowds_are_left_to_the_plain_forward(known: tuple[Decoder, list[Adapter]]) -> None:
    decoder, _ = known
    means = means_of(decoder, graphs=True)
    assert means.graphs is not None
    means.kv.fit([2] * SLOTS)
    one, many = {0: [99, 98]}, {slot: [97] for slot in range(MOST_ROWS + 1)}
    for feeds in (one, many):
        assert means.graphs.forward(step_of(feeds, [0] * SLOTS, None), None) is None
