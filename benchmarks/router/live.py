"""The questions in order, a tenth of the answers judged, and the same with a model that silently gets worse halfway."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from benchmarks.router.many import best_single, shapes_of
from benchmarks.router.metrics import spread
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table
from catena.plan.model import Plan, describe
from catena.router.core.observation import Observation, family_of

QUESTIONS, FEEDBACK, SETTLE, PARTS = 6000, 0.1, 100, 6
BROKEN = 0.6
"""Share of its right answers that the worsened model loses."""
BUDGET = 0.7
OFTEN = 200
"""Runs of a chain, over all seeds, from which its own coverage is shown: 2 points are then its deviation."""
COLUMNS = ("stream, questions", "accuracy", "of budget spent", "best fixed plan's", "points lost")
_SETTINGS = {
    "exploration": 0.2,
    "exploration_floor": 0.02,
    "half_life": 1000,
    "window": 4000,
    "min_judged": 20,
}
FIRST = 20
"""Runs of a chain in a stream that count as its first ones, where least is known of it."""


class Held(NamedTuple):
    """A run: its chain, its number among the chain's runs, whether cost and time lay between the ends predicted."""

    chain: str
    number: int
    cost: bool
    time: bool


@dataclass(kw_only=True)
class Told:
    """One stream: by sixth accuracy, share of the budget spent, the best fixed plan's accuracy; what intervals held.

    `changed`: by model the question after which it was first held to have changed.
    """

    parts: list[tuple[float, float, float]] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    changed: dict[str, int] = field(default_factory=dict)


async def live(report: Report, table: Table, seeds: int) -> None:
    """Both streams, by sixths, over the seeds."""
    found: dict[str, list[Told]] = {"as it is": [], "worse from the middle on": []}
    worse = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(table.texts))[:QUESTIONS]
        worse.append(table.models[best_single(table, rows)])
        worlds = (table, worsened(table, rows, rng))
        for name, world in zip(found, worlds, strict=True):
            starts = report.along(f"3. {table.name}, {name}, seed {seed}", range(0, len(rows), SETTLE))
            found[name].append(await _stream(world, rows, starts, seed))
    count = min(QUESTIONS, len(table.texts))
    rows_told = [row for name, told in found.items() for row in _parts(name, told, count)]
    report.add(
        f"3. {table.name}: on line, feedback on {FEEDBACK:.0%} of {count} answers",
        COLUMNS,
        rows_told,
        f"{seeds} seeds; nothing is known beforehand but prices; lost: against the one plan, known only in hindsight, "
        f"that is right most often over that part within the budget ({BUDGET:.0%} of the best single model's cost); "
        f"the model that gets worse is the best single one, which then loses {BROKEN:.0%} of its right answers; "
        + _alarms(found, worse, count),
    )
    held = [one for told in found["as it is"] for one in told.held]
    report.add(
        f"3. {table.name}: intervals that are to hold nine in ten",
        ("chain", "runs", "cost within", "time within"),
        _coverage(held),
        f"{seeds} seeds, the stream as it is, from its first question on; chains that ran {OFTEN} times or more",
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


async def _stream(table: Table, rows: Array, starts: Iterable[int], seed: int) -> Told:
    budget = BUDGET * float(table.usd[rows, best_single(table, rows[: len(rows) // 2])].mean())
    right: list[float] = []
    usd: list[float] = []
    told, chains = Told(), Counter[str]()
    shapes = shapes_of(table, rows[: len(rows) // 5])
    async with open_room(table, shapes=shapes, seed=seed, budget_usd=budget, **_SETTINGS) as room:
        for start in starts:
            for row in rows[start : start + SETTLE]:
                decision = await room.router.recommend(TENANT, room.ask(int(row)))
                one, hit = room.run(decision.plan, int(row))
                await room.hear(one, hit, feedback=FEEDBACK)
                right.append(float(hit))
                usd.append(one.cost_usd)
                told.held.append(_within(one, chains))
            await room.router.settle()
            known = room.router.knowledge(TENANT)
            for model in known.changes if known is not None else ():
                told.changed.setdefault(model, len(right))
        fixed = [_fixed(room, plan, rows) for plan in room.plans]
    for part in np.array_split(np.arange(len(rows)), PARTS):
        best = max(float(hits[part].mean()) for hits, cost in fixed if cost[part].mean() <= budget)
        told.parts.append((float(np.mean(np.array(right)[part])), float(np.mean(np.array(usd)[part])) / budget, best))
    return told


def _parts(name: str, told: Sequence[Told], count: int) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for number, part in enumerate(np.array_split(np.arange(count), PARTS)):
        accuracy, spent, best = np.array([one.parts[number] for one in told]).T
        label = f"{name}, {part[0] + 1} to {part[-1] + 1}"
        rows.append((label, spread(accuracy), spread(spent), spread(best), spread(100.0 * (best - accuracy))))
    return rows


def _alarms(found: dict[str, list[Told]], worse: Sequence[str], count: int) -> str:
    """When the change was seen, and how often one was that there was not, in words."""
    changed = found["worse from the middle on"]
    after = [one.changed.get(model, 0) - count // 2 for one, model in zip(changed, worse, strict=True)]
    seen = ", ".join(str(questions) if questions > 0 else "never" for questions in after)
    false = sum(len(one.changed) for one in found["as it is"])
    false += sum(len(one.changed.keys() - {model}) for one, model in zip(changed, worse, strict=True))
    return f"questions until that was seen: {seen}; other models held to have changed: {false} in all streams"


def _coverage(held: Sequence[Held]) -> list[Sequence[Cell]]:
    by_chain: dict[str, list[Held]] = defaultdict(list)
    for one in held:
        by_chain[one.chain].append(one)
    often = sorted((told for told in by_chain.values() if len(told) >= OFTEN), key=len, reverse=True)
    rows: list[Sequence[Cell]] = [("all", len(held), *_shares(held))]
    rows += [(told[0].chain, len(told), *_shares(told)) for told in often]
    rest = [one for told in by_chain.values() if len(told) < OFTEN for one in told]
    first = [one for one in held if one.number < FIRST]
    rows += [("all that ran less often, together", len(rest), *_shares(rest))] if rest else []
    return [*rows, (f"the first {FIRST} runs of each in a stream, together", len(first), *_shares(first))]


def _shares(held: Sequence[Held]) -> tuple[float, float]:
    return float(np.mean([one.cost for one in held])), float(np.mean([one.time for one in held]))


def _within(ran: Observation, chains: Counter[str]) -> Held:
    """The run, counted among those of its chain so far."""
    expected = ran.plan.prediction
    assert expected is not None
    usd, taken = expected.cost_usd, expected.latency_ms
    chain = describe(ran.plan) if len(ran.plan.stages) == 1 else family_of(ran.plan)
    chains[chain] += 1
    return Held(
        chain=chain,
        number=chains[chain] - 1,
        cost=usd.holds(ran.cost_usd),
        time=taken.holds(ran.latency_ms),
    )


def _fixed(room: Room, plan: Plan, rows: Array) -> tuple[Array, Array]:
    """Right or not, and USD, of every row by one plan."""
    ran = [room.run(plan, int(row)) for row in rows]
    return np.array([float(hit) for _, hit in ran]), np.array([one.cost_usd for one, _ in ran])
