"""One weak and one strong model: which requests deserve the strong one, before and after the weak one's answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.metrics import Curve, curve, spread
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table
from catena.plan.answer import answer_features
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Shape
from catena.router.core.guarantee import Promise, certify, paired

Rows = NDArray[np.int64]
LEVELS = tuple(float(level) for level in np.linspace(0.3, 1.0, 141))
CERTAINTY = 0.9
COLUMNS = ("scored by", "labels", "APGR", "CPT50", "CPT80")


async def pairs(report: Report, table: Table, seeds: int) -> None:
    """APGR and calls at half and four fifths of the gain, over seeds that draw other labels."""
    rows: list[Sequence[Cell]] = []
    for part in (0.2, 0.5):
        found: dict[str, list[Curve]] = {}
        for seed in report.along(f"1. {table.name}, {part:.0%} of the labels, seeds", range(seeds)):
            for name, scored in (await _seed(table, part, seed)).items():
                found.setdefault(name, []).append(scored)
        rows += [_row(name, part, scored) for name, scored in found.items()]
    report.add(
        f"1. {table.name}: the weak or the strong model",
        COLUMNS,
        rows,
        f"{len(table.texts)} questions, {seeds} seeds; labels: the share of the questions, drawn by the seed, whose "
        f"outcomes by both models were learned from; the rest is scored. {table.note}",
    )
    if table.words:
        await _promises(report, table, 4 * seeds)


async def _seed(table: Table, part: float, seed: int) -> dict[str, Curve]:
    rng = np.random.default_rng(seed)
    learned, scored = _cut(table, part, seed)
    weak, strong = weak_and_strong(table, learned)
    w, s = table.right[scored, weak], table.right[scored, strong]
    async with open_room(table, seed=seed) as room:
        await room.teach(learned)
        before, strong_right = await _expected(room, scored, table.models[weak], table.models[strong])
        after = _after(room, scored, weak)
    lengths = np.array([float(len(table.texts[row])) for row in scored])
    told = {"router, before any answer": curve(strong_right - before, w, s)}
    if after is not None:
        told["router, after the weak answer"] = curve(strong_right - after, w, s)
    return told | {
        "length alone": curve(lengths, w, s),
        "random": curve(rng.random(len(scored)), w, s),
        "oracle": curve(s - w, w, s),
    }


def _cut(table: Table, part: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to score."""
    order = np.random.default_rng(seed).permutation(len(table.texts))
    return order[: int(part * len(order))], order[int(part * len(order)) :]


async def _expected(room: Room, rows: Rows, weak: str, strong: str) -> tuple[Array, Array]:
    """How likely either model is right, by the room's own predictions."""
    told = []
    for row in rows:
        decision = await room.router.explain(TENANT, room.ask(int(row)))
        by_model = {c.plan.main_model: c.prediction.quality.mean for c in decision.ranked if len(c.plan.stages) == 1}
        told.append((by_model[weak], by_model[strong]))
    both = np.array(told)
    return both[:, 0], both[:, 1]


def _after(room: Room, rows: Rows, weak: int) -> Array | None:
    """How sure the room is of the weak model's answers; None where the table tells no words."""
    known = room.router.knowledge(TENANT)
    scorer = known.scorers.get(room.table.models[weak]) if known is not None else None
    if room.table.words is None or scorer is None:
        return None
    sure = [
        scorer.sureness(answer_features(room.table.texts[row], room.table.words[row][weak]), room.features(int(row)))
        for row in rows
    ]
    return np.array([0.0 if one is None else one for one in sure])


async def _promises(report: Report, table: Table, seeds: int) -> None:
    """How often a certified threshold loses more than it promised, on the half that nothing was learned from."""
    rows: list[Sequence[Cell]] = []
    for limit in (0.02, 0.05):
        lost, asked, accuracy = [], [], []
        for seed in report.along(f"1. {table.name}, at most {limit:.0%} lost, seeds", range(seeds)):
            learned, scored = _cut(table, 0.5, seed)
            weak, strong = weak_and_strong(table, learned)
            async with open_room(table, seed=seed) as room:
                await room.teach(learned)
                sure = _after(room, scored, weak)
                known = room.router.knowledge(TENANT)
            assert known is not None and known.evidence is not None and sure is not None
            config = ShapeConfig(fast=table.models[weak], main=table.models[strong])
            seen = paired(build(Shape.CASCADE, config), known.evidence)
            found = certify(*seen, LEVELS, Promise(max_loss=limit, probability=CERTAINTY))
            kept = sure >= (found.threshold if found is not None else np.inf)
            w, s = table.right[scored, weak], table.right[scored, strong]
            lost.append(float((kept & (s > w)).mean()))
            asked.append(1.0 - float(kept.mean()))
            accuracy.append(float(np.where(kept, w, s).mean() - s.mean()))
        broken = float(np.mean([one > limit for one in lost]))
        rows.append((f"at most {limit:.0%} lost", spread(lost), broken, spread(asked), spread(accuracy)))
    report.add(
        f"1. {table.name}: cascades with a promise",
        ("promise", "lost", "promises broken", "strong calls", "accuracy beside the strong model's"),
        rows,
        f"{seeds} seeds, half learned from and certified on, half scored; lost: wrong where the strong model is right; "
        f"promised with probability {CERTAINTY:g}, so that {1.0 - CERTAINTY:.2f} may be broken, and the half that is "
        "scored scatters besides",
    )


def weak_and_strong(table: Table, rows: Rows) -> tuple[int, int]:
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
