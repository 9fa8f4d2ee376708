"""Which rows each optimiser step sees: a pure function of rows, weights and seed.

Because it is, a resumed job needs only its step to stand at the same data position as if it had never stopped.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from catena.kit.errors import Invalid
from catena.trainer.core.spec import Training

WARM_UP_SHARE = 0.05
MAX_WARM_UP = 100
WINDOW_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One source as the schedule sees it: how many rows of which length, and its weight in the mix."""

    lengths: Sequence[int]
    weight: float
    retention: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much training is: rows of an epoch, and optimiser steps in all."""

    epoch_rows: int
    steps: int


def extent(sizes: Sequence[tuple[int, float, bool]], training: Training) -> Extent:
    """The extent for sources of (rows, weight, retention).

    An epoch is as many draws as show each new row once on average; retained rows come on top by their share.
    Raises Invalid when nothing new is left to learn or neither epochs nor steps are asked for.
    """
    present = [(rows, weight, retention) for rows, weight, retention in sizes if rows]
    new_rows = sum(rows for rows, _, retention in present if not retention)
    if not new_rows:
        raise Invalid("no row is left to learn from once the hold-out is set aside; give more rows", code="no_rows")
    total = sum(weight for _, weight, _ in present)
    new_share = sum(weight for _, weight, retention in present if not retention) / total
    epoch_rows = math.ceil(new_rows / new_share)
    by_epochs = math.ceil(training.epochs * epoch_rows / training.step_rows) if training.epochs > 0 else math.inf
    steps = min(by_epochs, training.max_steps or math.inf)
    if steps == math.inf:
        raise Invalid("neither training.epochs nor training.max_steps is above 0; set one", code="no_steps")
    return Extent(epoch_rows=epoch_rows, steps=max(1, int(steps)))


def steps(pools: Sequence[Pool], training: Training) -> Iterator[list[list[tuple[int, int]]]]:
    """For each optimiser step its micro-batches of (pool, row); rows of like length lie together."""
    size = extent([(len(pool.lengths), pool.weight, pool.retention) for pool in pools], training).steps
    rng = random.Random(f"rows {training.seed}")
    drawn = _draws(pools, rng)
    for first in range(0, size, WINDOW_STEPS):
        count = min(WINDOW_STEPS, size - first)
        rows = [next(drawn) for _ in range(count * training.step_rows)]
        # Sorted within a window of steps only: fewer pads, and the order of lengths stays random over time.
        rows.sort(key=lambda at: pools[at[0]].lengths[at[1]])
        batches = [rows[i : i + training.batch_size] for i in range(0, len(rows), training.batch_size)]
        rng.shuffle(batches)
        for i in range(0, len(batches), training.accumulation):
            yield batches[i : i + training.accumulation]


def learning_rate(step: int, total: int, peak: float) -> float:
    """Rises linearly to `peak` over the first 5 % (100 steps at most), then falls linearly to 0 after the last step."""
    warm_up = min(MAX_WARM_UP, max(1, round(total * WARM_UP_SHARE)))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (total - step) / max(1, total - warm_up)


def _draws(pools: Sequence[Pool], rng: random.Random) -> Iterator[tuple[int, int]]:
    """Rows for ever, at each moment in the proportion of the weights; each pool in shuffled passes of its own."""
    present = [i for i, pool in enumerate(pools) if pool.lengths]
    total = sum(pools[i].weight for i in present)
    passes = {i: _passes(len(pools[i].lengths), rng) for i in present}
    credit = dict.fromkeys(present, 0.0)
    while True:
        for i in present:
            credit[i] += pools[i].weight / total
        chosen = max(present, key=lambda i: (credit[i], -i))
        credit[chosen] -= 1.0
        yield chosen, next(passes[chosen])


def _passes(count: int, rng: random.Random) -> Iterator[int]:
    while True:
        order = list(range(count))
        rng.shuffle(order)
        yield from order
