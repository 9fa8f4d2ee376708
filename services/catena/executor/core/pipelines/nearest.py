"""Classification without a classifier: the label whose examples are nearest to the text."""

import math
from collections.abc import Sequence
from typing import Any

from catena.executor.core.voting import cosine

SHARPNESS = 20.0
"""Cosines of sentences lie close together; the soft maximum is taken over this multiple of them."""


def nearest_label(
    vector: Sequence[float], examples: Sequence[Sequence[float]], owners: Sequence[str]
) -> dict[str, Any]:
    """`label` with `scores` by label (soft maximum of each label's best cosine); examples[i] is one of owners[i]."""
    best: dict[str, float] = {}
    for example, owner in zip(examples, owners, strict=True):
        best[owner] = max(best.get(owner, -1.0), cosine(vector, example))
    top = max(best.values())
    heat = {label: math.exp(SHARPNESS * (value - top)) for label, value in best.items()}
    total = sum(heat.values())
    scores = {label: value / total for label, value in heat.items()}
    return {"label": max(scores, key=lambda label: scores[label]), "scores": scores}
