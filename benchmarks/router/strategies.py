"""Chains made of the table's answers: what the room expects of them, and what they then do."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from benchmarks.router.many import best_single, shapes_of, split
from benchmarks.router.report import Cell, Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table
from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Plan, Shape, describe
from catena.router.core.outlook import Length

COLUMNS = ("plan", "accuracy expected", "got", "USD per 1000 expected", "got", "cost within its interval")
_FIRST = 5


async def strategies(report: Report, table: Table, seed: int = 0) -> None:
    """Expected against realised: singles, agreement gates, votes."""
    learned, scored = split(table, seed)
    async with open_room(table, shapes=shapes_of(table, learned), seed=seed) as room:
        await room.teach(learned)
        plans = chains(table, learned)
        rows = [_row(room, plan, scored) for plan in report.along(f"4. {table.name}, chains", plans)]
    gaps = np.array([abs(float(row[1]) - float(row[2])) for row in rows])
    ratios = np.array([float(row[3]) / float(row[4]) for row in rows])
    covered = [float(row[5]) for row in rows]
    report.add(
        f"4. {table.name}: chains, expected and realised, seed {seed}",
        COLUMNS,
        rows,
        f"a fifth is learned from, {len(scored)} questions scored; mean gap in accuracy {gaps.mean():.4f}, "
        f"expected over realised cost {ratios.min():.3f} to {ratios.max():.3f}, mean coverage of the cost's 90 % "
        f"interval {np.mean(covered):.3f}. {table.note}",
    )


def chains(table: Table, learned: Array) -> list[Plan]:
    """The five models that are right most often alone, pairs of them before the best, votes of three."""
    rates = np.nanmean(table.right[learned], axis=0)
    best = [table.models[n] for n in np.argsort(-rates)[:_FIRST]]
    strongest = table.models[best_single(table, learned)]
    plans = [sequential(name) for name in best]
    if not shapes_of(table, learned):
        return plans
    for pair in combinations([name for name in best if name != strongest], 2):
        config = ShapeConfig(fast=list(pair), main=strongest, checks=["agreement"], min_chars=0)
        plans.append(build(Shape.CASCADE, config))
    plans += [build(Shape.CONSENSUS, ShapeConfig(members=list(three))) for three in combinations(best[:4], 3)]
    return plans


def _row(room: Room, plan: Plan, scored: Array) -> Sequence[Cell]:
    known = room.router.knowledge(TENANT)
    assert known is not None
    told, got, within = [], [], []
    for row in scored:
        ask = room.ask(int(row))
        expected = known.predict(plan, ask.task, Length(chars=ask.chars), known.outcome.shifts(room.features(int(row))))
        observation, hit = room.run(plan, int(row))
        told.append((expected.quality.mean, expected.cost_usd.mean))
        got.append((float(hit), observation.cost_usd))
        within.append(expected.cost_usd.low <= observation.cost_usd <= expected.cost_usd.high)
    expect, real = np.mean(told, axis=0), np.mean(got, axis=0)
    return (
        describe(plan),
        float(expect[0]),
        float(real[0]),
        1000.0 * float(expect[1]),
        1000.0 * float(real[1]),
        float(np.mean(within)),
    )
