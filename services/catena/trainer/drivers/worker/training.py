"""The training loop: answer-only cross-entropy, AdamW, linear schedule, clipped gradients.

Tensors: B rows, T positions, N positions kept, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from catena.kit.errors import Invalid
from catena.trainer.core.order import Order, Point
from catena.trainer.core.schedule import Pool, extent, learning_rate, steps
from catena.trainer.drivers.worker import checkpoint
from catena.trainer.drivers.worker.encoding import Encoded
from catena.trainer.drivers.worker.model import trained_tensors

MAX_GRADIENT = 1.0
LAST_SHARE = 0.1


class Diverged(Invalid):
    """The loss is no number any more."""

    default_code = "diverged"


def train(
    model: Any, order: Order, data: Sequence[Sequence[Encoded]], folder: Path, tell: Callable[[Point], None]
) -> list[float]:
    """Train `model` on `data`, one sequence per portion, from the last checkpoint on; the loss of every step.

    The model ends as it would have without interruptions. Raises Diverged, Invalid when no row is left.
    """
    pools = [
        Pool(lengths=[len(row.tokens) for row in rows], weight=portion.weight, retention=portion.retention)
        for rows, portion in zip(data, order.portions, strict=True)
    ]
    training = order.training
    total = extent([(len(pool.lengths), pool.weight, pool.retention) for pool in pools], training).steps
    optimiser = torch.optim.AdamW(trained_tensors(model).values(), lr=training.learning_rate, weight_decay=0.0)
    done, losses = checkpoint.restore(folder, model, optimiser)
    curve = Curve(tell, total, done, order.point_s)
    model.train()
    for step, batches in enumerate(steps(pools, training)):
        if step < done:
            continue
        rate = learning_rate(step, total, training.learning_rate)
        rows = [[data[pool][row] for pool, row in batch] for batch in batches]
        losses.append(_step(model, optimiser, rows, rate))
        if not math.isfinite(losses[-1]):
            raise Diverged(f"the loss is {losses[-1]} at step {step + 1}; lower training.learning_rate ({rate:g} then)")
        kept = (step + 1) % training.checkpoint_steps == 0 or step + 1 == total
        if kept:
            checkpoint.save(folder, model, optimiser, step + 1, losses)
        curve.add(step + 1, losses[-1], rate, rows, kept=kept)
    return losses


def last_loss(losses: Sequence[float]) -> float:
    """The mean loss of the last tenth of the steps."""
    tail = losses[-max(1, round(len(losses) * LAST_SHARE)) :]
    return sum(tail) / len(tail)


def _step(model: Any, optimiser: torch.optim.Optimizer, batches: list[list[Encoded]], rate: float) -> float:
    """One optimiser step over all micro-batches, each learned token weighing the same; its mean loss."""
    learned = sum(sum(row.learned) for batch in batches for row in batch)
    loss_sum = 0.0
    for batch in batches:
        loss = batch_loss(model, batch) / learned
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.item()
    torch.nn.utils.clip_grad_norm_(trained_tensors(model).values(), MAX_GRADIENT)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad()
    return loss_sum


def batch_loss(model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
    """The summed cross-entropy of the learned tokens of a micro-batch.

    Pads stand at the right, where causal attention never looks; logits are made only where something is learned.
    """
    longest = max(len(row.tokens) for row in batch)
    device = next(model.parameters()).device
    tokens_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    learned_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for i, row in enumerate(batch):
        tokens_BT[i, : len(row.tokens)] = torch.tensor(row.tokens)
        learned_BT[i, : len(row.tokens)] = torch.tensor(row.learned)
    tokens_BT, learned_BT = tokens_BT.to(device), learned_BT.to(device)
    kept_N = learned_BT[:, 1:].any(0).nonzero().squeeze(1)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        output = model(input_ids=tokens_BT[:, :-1], use_cache=False, logits_to_keep=kept_N)
    learned_BN = learned_BT[:, 1:][:, kept_N]
    targets_BN = tokens_BT[:, 1:][:, kept_N]
    return cross_entropy(output.logits[learned_BN].float(), targets_BN[learned_BN], reduction="sum")


class Curve:
    """Tells points of the curve, not more often than asked, and at every checkpoint."""

    def __init__(self, tell: Callable[[Point], None], total: int, done: int, every_s: float) -> None:
        """Go on after step `done` of `total`."""
        self._tell = tell
        self._total = total
        self._every_s = every_s
        self._began_step = self._checkpoint = done
        self._began_s = self._told_s = time.monotonic()
        self._losses: list[float] = []
        self._tokens = 0

    def add(self, step: int, loss: float, rate: float, batches: list[list[Encoded]], *, kept: bool) -> None:
        """Note a finished step; `kept` when it was checkpointed."""
        now_s = time.monotonic()
        self._losses.append(loss)
        self._tokens += sum(len(row.tokens) for batch in batches for row in batch)
        self._checkpoint = step if kept else self._checkpoint
        if now_s - self._told_s < self._every_s and step < self._total and not kept:
            return
        took_s = max(now_s - self._began_s, 1e-9)
        rows = sum(len(batch) for batch in batches)
        self._tell(
            Point(
                step=step,
                total_steps=self._total,
                loss=sum(self._losses) / len(self._losses),
                learning_rate=rate,
                tokens_per_s=self._tokens / took_s,
                remaining_s=(self._total - step) * took_s / (step - self._began_step),
                rows=step * rows,
                checkpoint=self._checkpoint,
            )
        )
        self._told_s, self._losses = now_s, []
