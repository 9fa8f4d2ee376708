import itertools
import math
from pathlib import Path

import pytest

from catena.adapters.core.pressure import LEVELS, Bounds, Level, level, share
from catena.adapters.drivers.memory import free_memory

BOUNDS = Bounds(medium=0.6, high=0.85, critical=1.0, hysteresis=0.05)


@pytest.mark.parametrize(
    ("now", "before", "after"),
    [
        (0.5, "low", "low"),
        (0.61, "low", "medium"),
        (0.58, "medium", "medium"),
        (0.54, "medium", "low"),
        (0.9, "low", "high"),
        (0.82, "high", "high"),
        (0.82, "medium", "medium"),
        (0.79, "high", "medium"),
        (1.0, "high", "high"),
        (1.01, "high", "critical"),
        (0.97, "critical", "critical"),
        (0.9, "critical", "high"),
        (0.1, "critical", "low"),
        (math.inf, "low", "critical"),
    ],
)
def test_levels_rise_at_once_and_fall_late(now: float, before: Level, after: Level) -> None:
    assert level(now, before, BOUNDS) == after


def test_a_share_that_trembles_around_a_bound_changes_the_level_once() -> None:
    seen: list[Level] = ["low"]
    for step in range(100):
        seen.append(level(0.6 + (0.02 if step % 2 else -0.02), seen[-1], BOUNDS))

    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert changes == 1


def test_every_share_has_one_level_and_higher_shares_no_lower_one() -> None:
    for before in LEVELS:
        ranks = [LEVELS.index(level(step / 100, before, BOUNDS)) for step in range(150)]
        assert ranks == sorted(ranks)


@pytest.mark.parametrize(
    ("used", "free", "expected"),
    [(50, None, 0.5), (50, 1000, 0.5), (50, 35, 50 / 75), (50, 5, 50 / 45), (50, 0, 50 / 40), (0, 5, math.inf)],
)
def test_what_there_is_is_the_budget_or_what_the_machine_has_left(used: int, free: int | None, expected: float) -> None:
    assert share(used, 100, free, 10) == expected


def test_free_memory_is_bounded_by_the_container(tmp_path: Path) -> None:
    unbounded = free_memory(tmp_path)
    assert unbounded > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    assert free_memory(tmp_path) > 1000

    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory(tmp_path) == 400
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 250\n")
    assert free_memory(tmp_path) == 650
