"""Weighted sums of table rows, at the speed of memory: what LoRA and attention of single rows come to on a CPU."""

import torch
from torch import Tensor

Sums = tuple[Tensor, Tensor]
"""The table rows that all sums take, one sum after the other, and where each begins."""


def summed(table_XO: Tensor, sums: Sums, weights: Tensor) -> Tensor:
    """Each sum of the rows that it takes, times their weights; an empty one is zeros."""
    found: Tensor = torch.embedding_bag(table_XO, *sums, False, 0, False, weights.flatten())[0]
    return found


def picked(rows: Tensor, size: int) -> Tensor:
    """Each row's `size` rows in a table that is so much finer."""
    return (rows.int()[:, None] * size + torch.arange(size, dtype=torch.int32, device=rows.device)).flatten()


def starts(counts: Tensor, size: int) -> Tensor:
    """Where each sum begins, when it takes `size` times its count."""
    sizes = counts.flatten().int() * size
    return sizes.cumsum(0, dtype=torch.int32) - sizes
