"""Many models: accuracy against cost, learned from a slice of the questions, at budgets that the room keeps."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.metrics import best_within, crossing, spread
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, open_room
from benchmarks.router.table import Array, Table
from catena.plan.build import ShapeConfig
from catena.plan.model import Shape

SLICE = 0.2
BUDGETS = (1.0, 0.7, 0.45)
COLUMNS = ("plan", "accuracy", "points over best single", "cost over best single's")
Point = tuple[float, float]


async def many(report: Report, table: Table, seeds: int) -> None:
    """Baselines, the router at several budgets, and where its line crosses the best single model's."""
    found: dict[str, list[Point]] = {}
    best, equal, parity = [], [], []
    for seed in range(seeds):
        learned, scored = rows = split(table, seed)
        single = best_single(table, learned)
        usd, base = float(table.usd[scored, single].mean()), float(table.right[scored, single].mean())
        best.append(base)
        told = baselines(table, learned, scored, seed) | await _budgets(report, table, rows, seed)
        for name, (accuracy, cost) in told.items():
            found.setdefault(name, []).append((accuracy - base, cost / usd))
        ours = [(cost / usd, accuracy - base) for name, (accuracy, cost) in told.items() if name.startswith("router")]
        equal.append(best_within(ours, 1.0))
        parity.append(crossing(ours, 0.0))
    rows: list[Sequence[Cell]] = [
        (
            name,
            spread([one + start for (one, _), start in zip(points, best, strict=True)]),
            spread([100.0 * one for one, _ in points]),
            spread([cost for _, cost in points]),
        )
        for name, points in found.items()
    ]
    rows.append(("router's line at no more cost", "", spread([100.0 * one for one in equal]), 1.0))
    rows.append(("router's line at parity", "", 0.0, spread(parity)))
    report.add(
        f"2. {table.name}: {len(table.models)} models, accuracy against cost",
        COLUMNS,
        rows,
        f"{len(table.texts)} questions, {seeds} seeds; a fifth, drawn by the seed, is learned from, all the rest is "
        f"scored; budgets are shares of the best single model's cost on the learned part. {table.note}",
    )


def split(table: Table, seed: int) -> tuple[Array, Array]:
    """Rows to learn from and rows to score."""
    order = np.random.default_rng(seed).permutation(len(table.texts))
    cut = int(SLICE * len(order))
    return order[:cut], order[cut:]


def best_single(table: Table, rows: Array) -> int:
    """The model that is right most often there."""
    return int(np.argmax(np.nanmean(table.right[rows], axis=0)))


def shapes_of(table: Table, rows: Array) -> Mapping[Shape, ShapeConfig]:
    """What a house would configure after the learned part: nothing where the table tells no answers.

    Its best model behind the next two, which have to agree, and a vote of the three.
    """
    if not any(any(said) for said in table.answers[:100]) or len(table.models) < 3:
        return {}
    rates, usd = np.nanmean(table.right[rows], axis=0), np.nanmean(table.usd[rows], axis=0)
    main = int(np.argmax(rates))
    cheaper = [n for n in np.argsort(-rates) if n != main and usd[n] < usd[main]]
    fast = [table.models[n] for n in (cheaper or [n for n in np.argsort(-rates) if n != main])[:2]]
    if len(fast) < 2:
        return {}
    return {
        Shape.CASCADE: ShapeConfig(fast=fast, main=table.models[main], checks=["agreement"], min_chars=0),
        Shape.CONSENSUS: ShapeConfig(members=[table.models[main], *fast]),
    }


def baselines(table: Table, learned: Array, scored: Array, seed: int) -> dict[str, Point]:
    """Accuracy and USD a question of what needs no router."""
    right, usd = table.right[scored], table.usd[scored]
    single = best_single(table, learned)
    rng = np.random.default_rng(seed)
    lengths = np.array([float(len(table.texts[row])) for row in scored])
    costs, rates = table.usd[learned].mean(axis=0), np.nanmean(table.right[learned], axis=0)
    half = [n for n in range(len(rates)) if costs[n] <= costs[single] / 2.0]
    cheap = max(half, key=lambda n: rates[n]) if half else single
    by_length = np.where(lengths > np.median([len(table.texts[row]) for row in learned]), single, cheap)
    able = np.where(np.nan_to_num(right) == 1.0, usd, np.inf)
    oracle = np.where(np.isfinite(able.min(axis=1)), able.argmin(axis=1), int(np.argmin(costs)))
    picks = {
        "best single": np.full(len(scored), single),
        "random model": rng.integers(len(rates), size=len(scored)),
        "length alone: the longer half to the best": by_length,
        "oracle: the cheapest that is right": oracle,
    }
    named = np.array(table.categories)
    if len(set(table.categories)) > 1:
        picks["best of each category"] = _by_category(table, learned, named)[scored]
    at = np.arange(len(scored))
    return {name: (float(np.nanmean(right[at, pick])), float(usd[at, pick].mean())) for name, pick in picks.items()}


def _by_category(table: Table, learned: Array, named: NDArray[np.str_]) -> Array:
    picks = np.full(len(named), best_single(table, learned))
    for name in set(named[learned]):
        own = learned[named[learned] == name]
        picks[named == name] = best_single(table, own)
    return picks


async def _budgets(report: Report, table: Table, rows: tuple[Array, Array], seed: int) -> dict[str, Point]:
    learned, scored = rows
    usual = float(table.usd[learned, best_single(table, learned)].mean())
    told = {}
    for share in BUDGETS:
        async with open_room(table, shapes=shapes_of(table, learned), seed=seed, budget_usd=share * usual) as room:
            await room.teach(learned)
            right, usd = [], []
            for row in report.along(f"2. {table.name}, seed {seed}, budget {share:.0%}", scored):
                decision = await room.router.recommend(TENANT, room.ask(int(row)))
                observation, hit = room.run(decision.plan, int(row))
                right.append(hit)
                usd.append(observation.cost_usd)
        told[f"router, budget {share:.0%}"] = (float(np.mean(right)), float(np.mean(usd)))
    return told
