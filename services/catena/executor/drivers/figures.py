"""Counts and averages per pipeline, stage and model, kept as sums so that they outlive the records."""

import functools
from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from catena.executor.core.events import Record
from catena.executor.core.figures import PipelineFigures, StageFigures
from catena.executor.drivers import tables
from catena.kit.store import Store, upsert_for


async def count(conn: AsyncConnection, records: Sequence[Record]) -> None:
    """Add records to the figures, in the transaction that writes them."""
    pipelines: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    stages: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0])
    calls: dict[str, int] = defaultdict(int)
    for record in records:
        name = record.plan.pipeline or str(record.plan.shape)
        sums = pipelines[record.tenant, name]
        sums[0] += 1
        sums[1] += record.outcome == "succeeded"
        sums[2] += record.cost_usd
        for stage in record.stages:
            # A hit counts as a call of stage `cache`, but of no model: over the executions it is the rate of hits.
            one = stages[record.tenant, name, stage.name]
            one[0] += 1
            one[1] += stage.duration_ms
            one[2] += stage.usage.input_tokens + stage.usage.output_tokens
            calls[stage.model] += stage.outcome != "cached"
    await _add(conn, tables.pipeline_figures, [(*key, *sums) for key, sums in sorted(pipelines.items())])
    await _add(conn, tables.stage_figures, [(*key, *sums) for key, sums in sorted(stages.items())])
    await _add(conn, tables.model_calls, sorted((name, many) for name, many in calls.items() if many))


async def read_figures(store: Store, tenant: str, name: str) -> list[PipelineFigures]:
    """The tenant's figures by name; `name` empty: all."""
    totals, parts = tables.pipeline_figures, tables.stage_figures
    every = sa.select(totals).where(totals.c.tenant == tenant).order_by(totals.c.name)
    each = sa.select(parts).where(parts.c.tenant == tenant).order_by(parts.c.stage)
    async with store.connect() as conn:
        rows = (await conn.execute(every)).mappings().all()
        of_stage = (await conn.execute(each)).mappings().all()
    return [
        PipelineFigures(
            name=row["name"],
            executions=row["executions"],
            successes=row["successes"],
            cost_usd=row["cost_usd"],
            stages=tuple(
                StageFigures(
                    name=stage["stage"],
                    calls=stage["calls"],
                    mean_duration_ms=stage["duration_ms"] / stage["calls"],
                    total_tokens=stage["tokens"],
                )
                for stage in of_stage
                if stage["name"] == row["name"]
            ),
        )
        for row in rows
        if not name or row["name"] == name
    ]


async def _add(conn: AsyncConnection, table: sa.Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows, or add their figures to those there; sorted, so that two writers never wait in a circle."""
    if not rows:
        return
    names = table.columns.keys()
    await conn.execute(_adding(table, conn.dialect.name), [dict(zip(names, row, strict=True)) for row in rows])


@functools.cache
def _adding(table: sa.Table, dialect: str) -> sa.Insert:
    """Made once a table: to make and name it anew costs more than to run it."""
    keys = [column.name for column in table.primary_key]
    insert = upsert_for(table, dialect)
    sums = {column.name: column + insert.excluded[column.name] for column in table.columns if column.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=sums)
