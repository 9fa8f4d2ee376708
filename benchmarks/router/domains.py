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
from catena.router.core.strangers import EVEN, LATEST, estimate, moved, strangeness

SHOTS = (4, 16, 64)
THRESHOLD = 0.85
SCORED, MOST = 1500, 400
"""Texts that are scored at most, and texts of a domain that are looked at."""
BINS = 10
MIXTURES = (0.0, 0.1, 0.5)
"""Shares of strangers among what is asked."""
COLUMNS = (
    "examples each, by, strangers",
    "accuracy",
    "held to be strangers",
    "share at .85",
    "right there",
    "calibration error",
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


Told = tuple[NDArray[np.intp], Array, Array]
"""The likeliest domain of n texts, how sure that is, and how sure that it is none, were every other one a stranger."""
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
            found = [(way(split.shown, split.scored), way(split.shown, split.strange)) for split in splits]
            for share in MIXTURES:
                parts = zip(splits, found, strict=True)
                figures = [_figures(told, split, both, share) for split, both in parts]
                # Where nothing is surer than the threshold there is no accuracy to tell.
                columns = [[one for one in column if one == one] for column in zip(*figures, strict=True)]
                cells = [spread(column) if column else "none" for column in columns]
                rows.append((f"{shots}, {name}, {share:.0%}", *cells))
    report.add(
        f"6. {told.name}: {len(told.names)} domains",
        COLUMNS,
        rows,
        f"{seeds} seeds draw the examples, and a seventh of the domains (one at least) that are not shown: their texts "
        f"are strangers. Up to {SCORED} of the other texts are asked, among as many strangers as the share says; from "
        "the first third the room reads, without labels, how many are strangers, the rest is scored. Accuracy: of "
        "those that are none; right there: a stranger never is. Calibration error of the likeliest domain's "
        f"probability, {BINS} bins of equal count. {told.note}",
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
    scores = [classify(head, row) for row in rows[asked]]
    place = {name: number for number, name in enumerate(told.names)}
    found = np.array([place[one[0].domain] for one in scores])
    return found, np.array([one[0].probability for one in scores]), np.array([strangeness(one) for one in scores])


def _by_cosine(told: Texts, shown: NDArray[np.intp], asked: NDArray[np.intp]) -> Told:
    """The nearest mean of a domain's examples by meaning, its cosine taken for a probability, whatever is asked."""
    owners = sorted(set(told.domains[shown].tolist()))
    centres = np.array([told.vectors[shown[told.domains[shown] == owner]].mean(axis=0) for owner in owners])
    cosines = told.vectors[asked] @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    return np.array(owners)[cosines.argmax(axis=1)], cosines.max(axis=1), np.full(len(asked), EVEN)


def _figures(told: Texts, split: Split, asked: tuple[Told, Told], share: float) -> tuple[float, ...]:
    """A row's figures: `asked` are known texts and strangers."""
    known, strange = asked
    owners, shown = told.domains[split.scored], len(set(told.domains[split.shown].tolist()))
    right = (known[0] == owners).astype(np.float64)
    others = min(len(strange[0]), round(len(owners) * share / (1.0 - share)))
    own = round(others * (1.0 - share) / share) if share else len(owners)
    hits = np.concatenate([right[:own], np.zeros(others)])
    sure, none = (np.concatenate([known[n][:own], strange[n][:others]]) for n in (1, 2))
    order = np.random.default_rng(0).permutation(len(hits))
    before, after = order[: len(order) // 3], order[len(order) // 3 :]
    held = estimate(none[before][-LATEST:], shown)
    sure, hits = (sure * moved(none, held))[after], hits[after]
    at = sure >= THRESHOLD
    there = float(hits[at].mean()) if at.any() else float("nan")
    return float(right.mean()), held, float(at.mean()), there, calibration_error(sure, hits)


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
