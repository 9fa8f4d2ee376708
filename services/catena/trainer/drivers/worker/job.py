"""One order from beginning to end: load, train, export, measure."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from catena.kit.errors import Invalid
from catena.trainer.core.order import Measuring, Order, Report, Result
from catena.trainer.drivers.worker.encoding import Encoded, encode_row
from catena.trainer.drivers.worker.measuring import accuracy
from catena.trainer.drivers.worker.model import choose_device, export, load, most_tokens, trained_tensors
from catena.trainer.drivers.worker.training import last_loss, train
from catena.trainer.drivers.workers import ADAPTER


def carry_out(order: Order, folder: Path, tell: Callable[[Report], None]) -> Result:
    """Train and measure; the adapter lies in `folder`/adapter when this returns.

    Raises Invalid when the order cannot be carried out, however often it is tried.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(order.threads)
    device = choose_device(order.device)
    model, tokenizer = load(order, device)
    data, skipped = _encode(order, tokenizer, most_tokens(model, order.training.max_tokens))
    losses = train(model, order, data, folder, tell)
    tell(Measuring())
    export(model, order, folder / ADAPTER)
    return Result(
        metrics={"loss": last_loss(losses), **_measure(model, tokenizer, order)},
        steps=len(losses),
        rows=sum(len(rows) for rows in data),
        skipped=skipped,
        trainable_parameters=sum(tensor.numel() for tensor in trained_tensors(model).values()),
    )


def _encode(order: Order, tokenizer: Any, longest: int) -> tuple[list[list[Encoded]], int]:
    """Each portion's rows that are short enough, and how many are not: half an answer would teach to stop midway."""
    data = [[encode_row(tokenizer, row) for row in portion.rows] for portion in order.portions]
    fitting = [[row for row in rows if len(row.tokens) <= longest] for rows in data]
    skipped = sum(map(len, data)) - sum(map(len, fitting))
    if not any(rows for rows, portion in zip(fitting, order.portions, strict=True) if not portion.retention):
        raise Invalid(f"every row is longer than {longest} tokens; raise training.max_tokens", code="rows_too_long")
    return fitting, skipped


def _measure(model: Any, tokenizer: Any, order: Order) -> dict[str, float]:
    """Accuracy on each kind of rows, with the adapter and without it."""
    metrics = {}
    for kind, rows in order.measured.items():
        name = kind if kind == "retention" else f"{kind}_accuracy"
        metrics[name] = accuracy(model, tokenizer, rows)
        with model.disable_adapter():
            metrics[f"base_{name}"] = accuracy(model, tokenizer, rows)
    return metrics
