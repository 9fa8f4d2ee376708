"""How a job's material is divided: what is trained on, what is held out, what is trusted."""

from collections.abc import Sequence

from catena.trainer.core.job import Material
from catena.trainer.core.order import Portion
from catena.trainer.core.rows import Row, sample, split, without
from catena.trainer.core.schedule import extent
from catena.trainer.core.spec import JobSpec


def portions(spec: JobSpec, material: Material) -> list[Portion]:
    """What is trained on, source by source; neither held-out nor trusted questions are in it."""
    made = []
    for source, rows in zip(spec.sources, material.sources, strict=True):
        kept, _ = split(without(rows, material.trusted), spec.training.holdout, spec.training.seed)
        made.append(Portion(weight=source.weight, retention=source.retention, rows=kept))
    return made


def step_count(spec: JobSpec, parts: Sequence[Portion]) -> int:
    """Optimiser steps in all. Raises Invalid when nothing is left to learn."""
    return extent([(len(part.rows), part.weight, part.retention) for part in parts], spec.training).steps


def measured(spec: JobSpec, material: Material, most: int) -> dict[str, tuple[Row, ...]]:
    """The rows to measure on, at most `most` of each: `heldout`, `trusted`, `retention`; empty ones left out."""
    found: dict[str, list[Row]] = {"heldout": [], "trusted": list(material.trusted), "retention": []}
    for source, rows in zip(spec.sources, material.sources, strict=True):
        _, held = split(without(rows, material.trusted), spec.training.holdout, spec.training.seed)
        found["retention" if source.retention else "heldout"] += held
    return {name: sample(rows, most, spec.training.seed) for name, rows in found.items() if rows}
