"""How long a decision takes beyond the embedding, with 50 models and 200 adapters, and the memory that it takes."""

import time

import numpy as np
import psutil

from benchmarks.router.report import Report
from benchmarks.router.room import TENANT, open_room
from benchmarks.router.table import Table
from catena.plan.build import ShapeConfig
from catena.plan.model import Shape

MODELS, ADAPTERS, DECISIONS, TAUGHT = 50, 200, 4000, 600
_AIM_MS = 2.0


async def speed(report: Report) -> None:
    """Decisions on texts that were never seen, in eight domains, after the room has learned."""
    table = _table(np.random.default_rng(0))
    names = table.models
    shapes = {
        Shape.CASCADE: ShapeConfig(fast=[names[0], names[1]], main=names[-1], checks=["agreement"], min_chars=0),
        Shape.CONSENSUS: ShapeConfig(members=list(names[:3])),
        Shape.DRAFT_REFINE: ShapeConfig(draft=names[0], main=names[-1]),
    }
    async with open_room(table, shapes=shapes, adapters=ADAPTERS) as room:
        await room.teach(range(TAUGHT))
        took, worked = [], []
        for row in range(TAUGHT, TAUGHT + DECISIONS):
            ask = room.ask(row)
            start, working = time.perf_counter(), time.process_time()
            await room.router.recommend(TENANT, ask)
            took.append(1000.0 * (time.perf_counter() - start))
            worked.append(1000.0 * (time.process_time() - working))
        memory = psutil.Process().memory_info().rss / 2**20
    warm, busy = np.array(took[DECISIONS // 10 :]), np.array(worked[DECISIONS // 10 :])
    report.add(
        f"5. decisions with {MODELS} models and {ADAPTERS} adapters",
        ("figure", "value", "aim"),
        [
            ("p50, ms", float(np.quantile(warm, 0.5)), ""),
            ("p99, ms", float(np.quantile(warm, 0.99)), f"< {_AIM_MS:g}"),
            ("p99 of the process's own time, ms", float(np.quantile(busy, 0.99)), f"< {_AIM_MS:g}"),
            ("decisions a second, one after the other", 1000.0 / float(warm.mean()), ""),
            ("memory of the whole process, MiB", memory, ""),
        ],
        f"the task is named, so that nothing is embedded; {DECISIONS} texts of 20 lengths, a tenth not counted; "
        "its own time is what a decision takes where nothing else runs",
    )


def _table(rng: np.random.Generator) -> Table:
    """Made-up outcomes: only the time is of interest."""
    count = TAUGHT + DECISIONS
    able = np.linspace(0.3, 0.8, MODELS)
    right = (rng.random((count, MODELS)) < able).astype(float)
    lengths = rng.integers(1, 21, count)
    prices = [(0.05 * (n + 1), 0.2 * (n + 1)) for n in range(MODELS)]
    tokens = np.repeat(lengths[:, None] * 20.0, MODELS, axis=1)
    return Table(
        name="made up",
        texts=[f"{n} plus {' and '.join('ab' * int(k))}?" for n, k in enumerate(lengths)],
        categories=[f"domain-{n % 8}" for n in range(count)],
        models=[f"model-{n}" for n in range(MODELS)],
        answers=[["right" if hit else f"wrong-{rng.integers(4)}" for hit in row] for row in right],
        right=right,
        usd=tokens * np.array([read + written for read, written in prices]) / 1e6,
        latency_ms=np.full_like(right, np.nan),
        tokens_in=tokens,
        tokens_out=tokens,
        prices=prices,
    )
