"""What the benchmarks tell of what they measured."""

from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks.adapters.report import Missing, Report, Row, at_least, at_most, quantile


@pytest.fixture
def report() -> Report:
    made = Report(Console(file=StringIO(), width=200), rounds=3)
    made.setting = "tiny float32"
    return made


def test_each_side_takes_its_turn_and_its_median_is_told(report: Report) -> None:
    turns, values = [], {"ours": iter([3.0, 9.0, 1.0]), "other": iter([5.0, 4.0, 8.0])}

    def measure(side: str) -> float:
        turns.append(side)
        return next(values[side])

    assert report.medians("x", lambda: measure("ours"), lambda: measure("other")) == [3.0, 5.0]
    assert turns == ["ours", "other"] * 3


async def test_sides_in_other_processes_take_turns_too(report: Report) -> None:
    values = iter([3.0, 9.0, 1.0])

    async def measure() -> float:
        return next(values)

    assert await report.medians_of("x", measure) == [3.0]


def test_figures_are_kept_with_whether_they_hold_and_so_are_parts_that_gave_none(
    report: Report, tmp_path: Path
) -> None:
    report.add(Row(part="b", what="fast", unit="tok/s", ours=3.0, other=2.0, figure=1.5, aim=at_least(1.4)))
    report.add(Row(part="g", what="slow", unit="ms", ours=9.0, other=3.0, figure=3.0, aim=at_most(2)))
    report.add(Row(part="h", what="told", unit="ms", ours=1.0, figure=1.0))
    report.add(Missing(part="j", why="install it"))
    assert not report.failed
    report.add(Missing(part="k", why="it ended", failed=True))
    assert report.failed

    report.write(tmp_path / "out.json", {"threads": 1})

    told = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert (told["threads"], told["rounds"]) == (1, 3)
    assert [row.get("held") for row in told["rows"]] == [True, False, None, None, None]
    assert [row.get("aim") for row in told["rows"]] == [">= 1.4", "<= 2", "", None, None]
    assert {row["of"] for row in told["rows"]} == {"tiny float32"}
    said = report.progress.console.file.getvalue()
    assert "skipped: install it" in said
    assert "failed: it ended" in said


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, -1, -1)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 50.0, 99.0, 100.0]
