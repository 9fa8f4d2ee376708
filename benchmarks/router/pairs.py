"""One weak and one strong model: which requests deserve the strong one, before and after the weak one's answer."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.router.metrics import Curve, curve, spread
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table

Score = Callable[[Room, Sequence[int]], Array]
COLUMNS = ("scored by", "labels", "APGR", "CPT50", "CPT80")


async def pairs(report: Report, table: Table, seeds: int) -> None:
    """APGR and calls at half and four fifths of the gain, over seeds that draw other labels."""
    rows: list[Sequence[Cell]] = []
    for part in (0.2, 0.5):
        found: dict[str, list[Curve]] = {}
        for seed in range(seeds):
            for name, scored in (await _seed(table, part, seed)).items():
                found.setdefault(name, []).append(scored)
        rows += [_row(name, part, scored) for name, scored in found.items()]
    report.add(
        f"1. {table.name}: the weak or the strong model, before any answer",
        COLUMNS,
        rows,
        f"{len(table.texts)} questions, {seeds} seeds; labels: the share of the questions, drawn by the seed, whose "
        f"outcomes by both models were learned from; the rest is scored. {table.note}. Published: best .622",
    )


async def _seed(table: Table, part: float, seed: int) -> dict[str, Curve]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.texts))
    cut = int(part * len(order))
    learned, scored = order[:cut], order[cut:]
    weak, strong = weak_and_strong(table, learned)
    w, s = table.right[scored, weak], table.right[scored, strong]
    async with open_room(table, seed=seed) as room:
        await room.teach(learned)
        gains = await _gains(room, scored, table.models[weak], table.models[strong])
    lengths = np.array([float(len(table.texts[row])) for row in scored])
    return {
        "router": curve(gains, w, s),
        "length alone": curve(lengths, w, s),
        "random": curve(rng.random(len(scored)), w, s),
        "oracle": curve(s - w, w, s),
    }


async def _gains(room: Room, rows: Sequence[int], weak: str, strong: str) -> Array:
    """What the strong model is expected to add, by the room's own predictions."""
    gains = []
    for row in rows:
        decision = await room.router.explain(TENANT, room.ask(int(row)))
        told = {c.plan.main_model: c.prediction.quality.mean for c in decision.ranked if len(c.plan.stages) == 1}
        gains.append(told[strong] - told[weak])
    return np.array(gains)


def weak_and_strong(table: Table, rows: Sequence[int]) -> tuple[int, int]:
    """The model that is right most often on these rows, and the best of those that cost at most half of it."""
    rates, usd = np.nanmean(table.right[rows], axis=0), np.nanmean(table.usd[rows], axis=0)
    strong = int(np.argmax(rates))
    cheaper = [n for n in range(len(rates)) if n != strong and usd[n] <= usd[strong] / 2.0]
    others = cheaper or [n for n in range(len(rates)) if n != strong]
    return max(others, key=lambda n: rates[n]), strong


def _row(name: str, part: float, curves: Sequence[Curve]) -> Sequence[Cell]:
    return (
        name,
        f"{part:.0%}",
        spread([one.apgr for one in curves]),
        spread([one.calls_at(0.5) for one in curves]),
        spread([one.calls_at(0.8) for one in curves]),
    )
