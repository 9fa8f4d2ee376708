"""Classification without a classifier: the label whose examples are nearest to the text."""

import math
from collections.abc import Sequence
from typing import Any

SHARPNESS = 20.0
"""Cosines of sentences lie close together; the soft maximum is taken over this multiple of them."""


def nearest_label(
    vector: Sequence[float], examples: Sequence[Sequence[float]], owners: Sequence[str]
) -> dict[str, Any]:
    """`label` with `scores` by label (soft maximum of each label's best cosine); examples[i] is one of owners[i]."""
    best: dict[str, float] = {}
    for example, owner in zip(examples, owners, strict=True):
        best[owner] = max(best.get(owner, -1.0), _cosine(vector, example))
    top = max(best.values())
    heat = {label: math.exp(SHARPNESS * (value - top)) for label, value in best.items()}
    total = sum(heat.values())
    scores = {label: value / total for label, value in heat.items()}
    return {"label": max(scores, key=lambda label: scores[label]), "scores": scores}


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    size = math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    return dot / size if size else 0.0
