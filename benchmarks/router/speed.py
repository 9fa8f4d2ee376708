"""How long a decision takes beyond the embedding, with 50 models and 200 adapters, and the memory that it takes."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import psutil

from benchmarks.router.report import Report
from benchmarks.router.room import TENANT, Room, open_room
from benchmarks.router.table import Array, Table
from catena.plan.build import ShapeConfig
from catena.plan.model import Shape
from catena.router.core.ask import Ask

MODELS, ADAPTERS, DECISIONS, TAUGHT = 50, 200, 4000, 600
LONG = 8000
LESSONS, BETWEEN = 20, 40
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
        asks = [room.ask(row) for row in range(TAUGHT, TAUGHT + DECISIONS)]
        caps = np.random.default_rng(1).uniform(table.usd[:, MODELS // 2].max(), table.usd.max(), DECISIONS)
        told = {
            "short texts": await _timed(room, asks),
            f"{LESSONS} times the first {BETWEEN} after something was learned": await _anew(room, asks),
            "each under a cap of its own": await _timed(
                room, [replace(ask, max_cost_usd=float(cap)) for ask, cap in zip(asks, caps, strict=True)]
            ),
            f"texts of {LONG} characters": await _timed(room, [_long(ask, n) for n, ask in enumerate(asks)]),
        }
        memory = psutil.Process().memory_info().rss / 2**20
    report.add(
        f"5. decisions with {MODELS} models and {ADAPTERS} adapters",
        ("decisions", "p50, ms", "p99, ms", "p99 of own time, ms", "a second"),
        [(name, *_figures(*found)) for name, found in told.items()],
        f"aim: p99 < {_AIM_MS:g} ms; the task is named, so that nothing is embedded; {DECISIONS} texts of 20 lengths, "
        "one after the other, the first tenth not counted; own time: what the process worked, whoever else ran; "
        f"{memory:.0f} MiB resident in all",
    )


async def _timed(room: Room, asks: Sequence[Ask], warm: int = DECISIONS // 10) -> tuple[Array, Array]:
    """Milliseconds of each decision, and those in which the process worked; the first `warm` are not counted."""
    took, worked = [], []
    for ask in asks:
        start, working = time.perf_counter(), time.process_time()
        await room.router.recommend(TENANT, ask)
        worked.append(1000.0 * (time.process_time() - working))
        took.append(1000.0 * (time.perf_counter() - start))
    return np.array(took[warm:]), np.array(worked[warm:])


async def _anew(room: Room, asks: Sequence[Ask]) -> tuple[Array, Array]:
    """The same of the first decisions each time that the room learned another answer."""
    found = []
    for lesson in range(LESSONS):
        decision = await room.router.recommend(TENANT, asks[lesson])
        await room.hear(*room.run(decision.plan, TAUGHT + lesson), feedback=1.0)
        await room.router.settle()
        found.append(await _timed(room, asks[lesson * BETWEEN : (lesson + 1) * BETWEEN], warm=0))
    return np.concatenate([took for took, _ in found]), np.concatenate([worked for _, worked in found])


def _figures(took: Array, worked: Array) -> tuple[float, float, float, float]:
    middle, high, own = np.quantile(took, 0.5), np.quantile(took, 0.99), np.quantile(worked, 0.99)
    return float(middle), float(high), float(own), 1000.0 / float(took.mean())


def _long(ask: Ask, number: int) -> Ask:
    """The request after much else, in which numbers, questions and code are met."""
    filler = f"Given {number} boxes of 12, which is more: x = 3.5 or half of it? if (x > 3) {{ return; }} Not all.\n"
    return replace(ask, text=(filler * (LONG // len(filler) + 1) + ask.text)[-LONG:], chars=LONG)


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
