import torch

from catena.adapters.drivers.engine.lora import Adapter, Block, Site
from catena.adapters.drivers.engine.lora_mask import KEEP_STEPS, MaskStacks
from tests.unit.adapters.test_kv_blocks import SHAPE

QKV = SHAPE.outputs[0]


def adapter(name: str, rank: int, *, site: int = 1, seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    outputs = SHAPE.outputs[site]
    a_RI = torch.randn(rank, SHAPE.width, generator=generator)
    b_OR = torch.randn(outputs, rank, generator=generator)
    return Adapter(name, {(0, site): Site((Block(a_RI, b_OR, 0, 0.5),))}, 0)


def added(stacks: MaskStacks, rows: list[Adapter | None], x_TI: torch.Tensor, site: int = 1) -> torch.Tensor:
    y_TO = torch.zeros(len(rows), SHAPE.outputs[site])
    step = stacks.step(rows)
    assert step is not None
    step.add(y_TO, x_TI, 0, site)
    return y_TO


def wanted(rows: list[Adapter | None], x_TI: torch.Tensor, site: int = 1) -> torch.Tensor:
    y_TO = torch.zeros(len(rows), SHAPE.outputs[site])
    for row, one in enumerate(rows):
        if one is not None and (0, site) in one.sites:
            found = one.sites[0, site]
            for block in found.blocks:
                y_O = block.scale * block.b_OR @ (block.a_RI @ x_TI[row])
                y_TO[row, block.out : block.out + block.b_OR.shape[0]] += y_O
    return y_TO


def test_rows_of_many_adapters_get_their_own_whatever_came_and_went() -> None:
    stacks = MaskStacks(SHAPE)
    known = [adapter(f"a{n}", 1 + 5 * n, seed=n) for n in range(8)]
    chance = torch.Generator().manual_seed(1)
    for _ in range(3 * KEEP_STEPS):
        picked = torch.randint(0, 9, (6,), generator=chance).tolist()
        rows = [None if at == 8 else known[at] for at in picked]
        if not any(rows):
            continue
        x_TI = torch.randn(6, SHAPE.width, generator=chance)
        assert torch.allclose(added(stacks, rows, x_TI), wanted(rows, x_TI), atol=1e-4)


def test_a_block_over_several_parts_and_one_of_another_site_are_exact() -> None:
    whole, plain = adapter("whole", 3, site=0), adapter("plain", 4, site=1)
    stacks = MaskStacks(SHAPE)
    x_TI = torch.randn(3, SHAPE.width, generator=torch.Generator().manual_seed(2))
    rows = [whole, plain, None]

    for site in (0, 1):
        assert torch.allclose(added(stacks, rows, x_TI, site), wanted(rows, x_TI, site), atol=1e-5)


def test_long_runs_take_their_window_and_short_rows_the_mask() -> None:
    one, two = adapter("one", 4, seed=1), adapter("two", 4, seed=2)
    rows: list[Adapter | None] = [one, two, None, *[two] * 20, *[None] * 20, *[one] * 3]
    x_TI = torch.randn(len(rows), SHAPE.width)
    for most_runs in (0, 8):
        stacks = MaskStacks(SHAPE, most_runs=most_runs)
        step = stacks.step(rows)
        assert step is not None
        assert step.masked == (2 if most_runs else len(rows))
        assert torch.allclose(added(stacks, rows, x_TI), wanted(rows, x_TI), atol=1e-5)


def test_what_overflows_in_anothers_columns_reaches_nobody_else() -> None:
    wild = adapter("wild", 4)
    wild.sites[0, 1].blocks[0].a_RI[:] = torch.inf
    tame = adapter("tame", 4, seed=1)
    rows: list[Adapter | None] = [tame, wild, None]

    got = added(MaskStacks(SHAPE), rows, torch.ones(3, SHAPE.width))

    assert bool(torch.isfinite(got[[0, 2]]).all())
    assert not bool(torch.isfinite(got[1]).any())


def test_factors_stay_where_they_are_while_adapters_come_and_go_within_their_room() -> None:
    stacks = MaskStacks(SHAPE)
    stacks.step([adapter("first", 8)])
    factors, epoch = stacks.pairs[0, 1].a_PCI, stacks.epoch

    for number in range(7):
        stacks.step([adapter(f"a{number}", 8)])
    assert (stacks.pairs[0, 1].a_PCI is factors, stacks.epoch) == (True, epoch)

    stacks.step([adapter("large", 64)])
    assert stacks.epoch > epoch


def test_who_is_left_alone_needs_few_columns_again() -> None:
    stacks, last = MaskStacks(SHAPE), adapter("last", 8)
    step = stacks.step([*(adapter(f"a{number}", 8) for number in range(7)), last])
    assert step is not None
    assert step.width == 64

    for _ in range(KEEP_STEPS + 1):
        step = stacks.step([last])

    assert step is not None
    assert step.width == 16
    assert stacks.keys == ["last"]


def test_nothing_is_held_once_all_are_forgotten() -> None:
    stacks, only = MaskStacks(SHAPE), adapter("only", 8)
    x_TI = torch.ones(1, SHAPE.width)
    added(stacks, [only], x_TI)

    stacks.forget("only")

    assert not stacks.pairs
    assert torch.allclose(added(stacks, [only], x_TI), wanted([only], x_TI))
