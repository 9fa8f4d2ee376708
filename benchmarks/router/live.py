"""The questions in order, a tenth of the answers judged, and the same with a model that silently gets worse halfway."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchmarks.router.many import best_single, shapes_of
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table
from catena.plan.model import Plan, describe
from catena.router.core.observation import Observation

QUESTIONS, FEEDBACK, SETTLE, PARTS = 6000, 0.1, 100, 6
BROKEN = 0.6
"""Share of its right answers that the worsened model loses."""
BUDGET = 0.7
COLUMNS = ("stream, questions", "accuracy", "of budget spent", "best fixed plan", "its accuracy", "points lost")
_SETTINGS = {
    "exploration": 0.2,
    "exploration_floor": 0.02,
    "half_life": 1000,
    "window": 4000,
    "min_judged": 20,
}


async def live(report: Report, table: Table, seed: int = 0) -> None:
    """Both streams, by sixths."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(table.texts))[:QUESTIONS]
    told: list[Sequence[Cell]] = []
    covered: list[str] = []
    for name, world in (("as it is", table), ("worse from the middle on", worsened(table, rows, rng))):
        parts, shares = await _stream(name, world, rows, seed)
        told += parts
        covered.append(f"{shares[0]:.3f} and {shares[1]:.3f} ({name})")
    report.add(
        f"3. {table.name}: on line, feedback on {FEEDBACK:.0%} of {len(rows)} answers, seed {seed}",
        COLUMNS,
        told,
        "nothing is known beforehand but prices; lost: against the one plan, known only in hindsight, that is right "
        f"most often over that part within the budget ({BUDGET:.0%} of the best single model's cost); the model that "
        f"gets worse is the best single one, which then loses {BROKEN:.0%} of its right answers; "
        f"90 % intervals of cost and time covered {', '.join(covered)}",
    )


def worsened(table: Table, rows: Array, rng: np.random.Generator) -> Table:
    """The table with the best single model failing from the middle of the rows on."""
    model = best_single(table, rows)
    right, answers = table.right.copy(), [list(said) for said in table.answers]
    for row in rows[len(rows) // 2 :]:
        if right[row, model] == 1.0 and rng.random() < BROKEN:
            right[row, model] = 0.0
            answers[row][model] = "wrong"
    return replace(table, right=right, answers=answers)


async def _stream(name: str, table: Table, rows: Array, seed: int) -> tuple[list[Sequence[Cell]], tuple[float, float]]:
    budget = BUDGET * float(table.usd[rows, best_single(table, rows[: len(rows) // 2])].mean())
    right, usd, held = [], [], []
    shapes = shapes_of(table, rows[: len(rows) // 5])
    async with open_room(table, shapes=shapes, seed=seed, budget_usd=budget, **_SETTINGS) as room:
        for start in range(0, len(rows), SETTLE):
            ran = []
            for row in rows[start : start + SETTLE]:
                decision = await room.router.recommend(TENANT, room.ask(int(row)))
                ran.append(room.run(decision.plan, int(row)))
            right += [float(hit) for _, hit in ran]
            usd += [one.cost_usd for one, _ in ran]
            held += [_within(one) for one, _ in ran]
            await room.hear(ran, feedback=FEEDBACK)
        fixed = [(plan, *_fixed(room, plan, rows)) for plan in room.plans]
    told: list[Sequence[Cell]] = []
    for part in np.array_split(np.arange(len(rows)), PARTS):
        accuracy, spent = float(np.mean(np.array(right)[part])), float(np.mean(np.array(usd)[part]))
        within = [
            (float(hits[part].mean()), describe(plan)) for plan, hits, cost in fixed if cost[part].mean() <= budget
        ]
        best, plan = max(within)
        label = f"{name}, {part[0] + 1} to {part[-1] + 1}"
        told.append((label, accuracy, spent / budget, plan, best, 100.0 * (best - accuracy)))
    cost, latency = np.mean(held, axis=0)
    return told, (float(cost), float(latency))


def _within(ran: Observation) -> tuple[bool, bool]:
    """Whether cost and time lay between the ends that were predicted."""
    expected = ran.plan.prediction
    assert expected is not None
    usd, taken = expected.cost_usd, expected.latency_ms
    return usd.low <= ran.cost_usd <= usd.high, taken.low <= ran.latency_ms <= taken.high


def _fixed(room: Room, plan: Plan, rows: Array) -> tuple[Array, Array]:
    """Right or not, and USD, of every row by one plan."""
    ran = [room.run(plan, int(row)) for row in rows]
    return np.array([float(hit) for _, hit in ran]), np.array([one.cost_usd for one, _ in ran])
