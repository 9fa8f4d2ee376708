"""To which domain a request belongs: seeded with a few examples of each, scored on texts that were not among them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.metrics import spread
from benchmarks.router.report import Cell, Report
from benchmarks.router.table import Array, mmlu_pro
from catena.embed import Embedder
from catena.router.core.domains import Domain, classify, fit_head, gists, represent

SHOTS = (4, 16, 64)
THRESHOLD = 0.85
SCORED, MOST = 1500, 400
"""Texts that are scored at most, and texts of a domain that are looked at."""
BINS = 10
COLUMNS = (
    "examples each, by",
    "accuracy",
    "share at .85",
    "accuracy there",
    "calibration error",
    "strangers at .85",
    "error, half strangers",
)
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts with the domain that each is of; `vectors` (n, d) by meaning."""

    name: str
    texts: Sequence[str]
    domains: NDArray[np.intp]
    names: Sequence[str]
    vectors: Array
    note: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows: examples, texts of the same domains to score, and texts of domains that are not shown."""

    shown: NDArray[np.intp]
    scored: NDArray[np.intp]
    strange: NDArray[np.intp]


Told = tuple[NDArray[np.intp], Array]
"""The likeliest domain of n texts, and how sure that is."""
Way = Callable[[NDArray[np.intp], NDArray[np.intp]], Told]
"""From rows of examples and rows to tell."""


def domains(report: Report, folder: Path, embedder: Embedder, seeds: int) -> None:
    """Both sets of texts, by MiniLM with wording, by wording alone, and by raw cosine."""
    for name, told, note in (_sources(folder), _categories(folder)):
        texts = [text for part in told.values() for text in part[:MOST]]
        owner = np.repeat(np.arange(len(told)), [len(part[:MOST]) for part in told.values()])
        vectors = np.asarray(embedder.embed(gists(texts)), np.float64)
        _score(report, Texts(name=name, texts=texts, domains=owner, names=[*told], vectors=vectors, note=note), seeds)


def _score(report: Report, told: Texts, seeds: int) -> None:
    meaning = represent(told.texts, told.vectors)
    wording = represent(told.texts, np.empty((len(told.texts), 0)))
    ways: dict[str, Way] = {
        "meaning and wording": lambda shown, asked: _by_head(told, meaning, shown, asked),
        "wording alone": lambda shown, asked: _by_head(told, wording, shown, asked),
        "raw cosine": lambda shown, asked: _by_cosine(told, shown, asked),
    }
    rows: list[Sequence[Cell]] = []
    for shots in report.along(f"6. {told.name}, examples a domain", SHOTS):
        splits = [_split(told, shots, seed) for seed in range(seeds)]
        for name, way in ways.items():
            figures = [_figures(told, way, split) for split in splits]
            # Where nothing is surer than the threshold there is no accuracy to tell.
            columns = [[one for one in column if one == one] for column in zip(*figures, strict=True)]
            rows.append((f"{shots}, {name}", *(spread(column) if column else "none" for column in columns)))
    report.add(
        f"6. {told.name}: {len(told.names)} domains",
        COLUMNS,
        rows,
        f"{seeds} seeds draw the examples, and a seventh of the domains (one at least) that are not shown: their texts "
        f"are strangers. {SCORED} of the other texts are scored. Calibration error of the likeliest domain's "
        f"probability, {BINS} bins of equal count; in the last column on as many strangers as others, which is what "
        f"the room reckons with. {told.note}",
    )


def _split(told: Texts, shots: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(told.texts))
    left_out = rng.choice(len(told.names), max(1, len(told.names) // 7), replace=False)
    strange = order[np.isin(told.domains[order], left_out)]
    others = order[~np.isin(told.domains[order], left_out)]
    shown = np.concatenate([others[told.domains[others] == d][:shots] for d in range(len(told.names))])
    return Split(shown=shown, scored=others[~np.isin(others, shown)][:SCORED], strange=strange[:SCORED])


def _by_head(told: Texts, rows: Array, shown: NDArray[np.intp], asked: NDArray[np.intp]) -> Told:
    """The room's own classifier."""
    owners = sorted(set(told.domains[shown].tolist()))
    parts = [shown[told.domains[shown] == owner] for owner in owners]
    made = [
        Domain(name=told.names[owner], tenant="bench", examples=tuple(told.texts[row] for row in part))
        for owner, part in zip(owners, parts, strict=True)
    ]
    head = fit_head(made, [rows[part] for part in parts])
    best = [classify(head, row)[0] for row in rows[asked]]
    place = {name: number for number, name in enumerate(told.names)}
    return np.array([place[one.domain] for one in best]), np.array([one.probability for one in best])


def _by_cosine(told: Texts, shown: NDArray[np.intp], asked: NDArray[np.intp]) -> Told:
    """The nearest mean of a domain's examples by meaning, its cosine taken for a probability."""
    owners = sorted(set(told.domains[shown].tolist()))
    centres = np.array([told.vectors[shown[told.domains[shown] == owner]].mean(axis=0) for owner in owners])
    cosines = told.vectors[asked] @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    return np.array(owners)[cosines.argmax(axis=1)], cosines.max(axis=1)


def _figures(told: Texts, way: Way, split: Split) -> tuple[float, ...]:
    found, sure = way(split.shown, split.scored)
    _, strange = way(split.shown, split.strange)
    right = (found == told.domains[split.scored]).astype(np.float64)
    at = sure >= THRESHOLD
    there = float(right[at].mean()) if at.any() else float("nan")
    even = min(len(sure), len(strange))
    mixed = np.concatenate([sure[:even], strange[:even]]), np.concatenate([right[:even], np.zeros(even)])
    return (
        float(right.mean()),
        float(at.mean()),
        there,
        calibration_error(sure, right),
        float((strange >= THRESHOLD).mean()),
        calibration_error(*mixed),
    )


def calibration_error(sure: Array, right: Array) -> float:
    """How far probabilities are from shares of right answers, on average over bins of equal count."""
    parts = np.array_split(np.argsort(sure), BINS)
    gaps = [abs(float(sure[part].mean()) - float(right[part].mean())) * len(part) for part in parts if len(part)]
    return sum(gaps) / len(sure)


def _sources(folder: Path) -> tuple[str, Mapping[str, Sequence[str]], str]:
    """Where a text comes from: four kinds of request."""
    bfcl = [json.loads(line)["question"][0][-1]["content"] for line in (folder / "bfcl/simple_python.jsonl").open()]
    told = {
        "word-problems": [json.loads(line)["question"] for line in (folder / "gsm8k/test.jsonl").open()],
        "function-calls": bfcl,
        "claims": [json.loads(line)["text"] for line in (folder / "scifact/queries.jsonl").open()],
        "aerodynamics": [" ".join(title.split()) for title in _TITLE.findall(_text(folder / "cranfield/queries.xml"))],
    }
    return "Requests by source", told, "GSM8K, BFCL, SciFact's claims, Cranfield's queries"


def _categories(folder: Path) -> tuple[str, Mapping[str, Sequence[str]], str]:
    table = mmlu_pro(folder / "mmlu_pro")
    told: dict[str, list[str]] = {}
    for text, category in zip(table.texts, table.categories, strict=True):
        told.setdefault(category, []).append(text)
    return "MMLU-Pro by category", told, "questions without their options; `other` is a category like any"


def _text(path: Path) -> str:
    return path.read_text(errors="replace")
