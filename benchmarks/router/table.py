"""Outcome tables: which model answered which question how, whether that was right, and what it cost."""

import csv
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
_PRICES = {WEAK: (0.6, 0.6), STRONG: (10.0, 30.0)}
"""USD per million tokens read and written, list prices of early 2024."""
CHARS_PER_TOKEN = 4.0
_OPTION_CHARS = 40
"""MMLU-Pro's published outputs leave out the options' texts: a guess at the length of one."""
NO_PRICE = 0.001
"""USD of a call where a table tells no costs at all."""
_COLUMNS = ("query_id", "text", "category", "model", "answer", "correct", "usd", "latency_ms")
_WORKED_CHARS = 40
"""Mean length from which a table's answers are taken for worked ones, of which only the result is compared."""
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")
csv.field_size_limit(1 << 30)


@dataclass(frozen=True, kw_only=True)
class Table:
    """n questions, m models.

    `right`, `usd`, `latency_ms` (n, m), NaN where a model was not asked; `answers` (n, m)
    texts, empty: none. `words` (n, m): whole answers where they are known. `note`: what is assumed.
    """

    name: str
    texts: Sequence[str]
    categories: Sequence[str]
    models: Sequence[str]
    answers: Sequence[Sequence[str]]
    right: Array
    usd: Array
    latency_ms: Array
    tokens_in: Array
    tokens_out: Array
    prices: Sequence[tuple[float, float]]
    words: Sequence[Sequence[str]] | None = None
    note: str = ""


def routellm(folder: Path) -> Table:
    """GSM8K by the pair of RouteLLM, without the questions known to be contaminated."""
    left_out = {json.loads(line)["eval_prompt"] for line in (folder / "gsm8k_contaminated.jsonl").open()}
    rows = [row for row in _rows(folder / "gsm8k_responses.csv") if row["prompt"] not in left_out]
    models = [WEAK, STRONG]
    texts = [row["prompt"] for row in rows]
    words = [[row[f"{model}_response"] for model in models] for row in rows]
    written = np.array([[len(answer) / CHARS_PER_TOKEN for answer in pair] for pair in words])
    prices = [_PRICES[model] for model in models]
    return _priced(
        name="RouteLLM GSM8K",
        texts=texts,
        categories=[""] * len(rows),
        models=models,
        answers=[[final(answer) for answer in pair] for pair in words],
        right=np.array([[float(row[model] == "True") for model in models] for row in rows]),
        written=written,
        prices=prices,
        words=words,
        note="prices of early 2024, four characters a token; published before any answer: best .622, a judge's labels",
    )


def mmlu_pro(folder: Path) -> Table:
    """12,002 questions in 14 categories by 28 models."""
    rows = _rows(folder / "outcomes.csv.gz")
    models = list(rows[0])[5:]
    lengths = {row["question_id"]: row for row in _rows(folder / "answer_characters.csv.gz")}
    listed = {row["model"]: row for row in _rows(folder / "prices.csv")}
    keys = ("usd_per_million_input_tokens", "usd_per_million_output_tokens")
    return _priced(
        name="MMLU-Pro",
        texts=[row["question"] for row in rows],
        categories=[row["category"].replace(" ", "-") for row in rows],
        models=models,
        answers=[[row[model] for model in models] for row in rows],
        right=np.array([[float(row[model] == row["answer"]) for model in models] for row in rows]),
        written=np.array([[float(lengths[r["question_id"]][m] or 0) / CHARS_PER_TOKEN for m in models] for r in rows]),
        prices=[(float(listed[m][keys[0]]), float(listed[m][keys[1]])) for m in models],
        extra=np.array([_OPTION_CHARS * float(row["options"]) for row in rows]),
        note="list prices of 2024, real answer lengths at four characters a token, 40 characters an option",
    )


def read_table(path: Path) -> Table:
    """Any other table with the named columns; `answer`, `usd` and `latency_ms` may be empty.

    Raises ValueError that names what is missing.
    """
    by_query: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
    for row in _rows(path):
        lacking = [name for name in _COLUMNS if row.get(name) is None]
        if lacking:
            raise ValueError(f"{path} lacks the columns {', '.join(lacking)}; it needs {', '.join(_COLUMNS)}")
        by_query[row["query_id"]][row["model"]] = row
    models = sorted({model for rows in by_query.values() for model in rows})
    firsts = [next(iter(rows.values())) for rows in by_query.values()]
    if len(models) < 2 or len(firsts) < 20:
        raise ValueError(f"{path} holds {len(models)} models and {len(firsts)} questions; 2 and 20 are the least")
    usd = _column(by_query.values(), models, "usd")
    filled = _filled(usd)
    texts = [row["text"] for row in firsts]
    said = [[rows[m]["answer"] if m in rows else "" for m in models] for rows in by_query.values()]
    worked = sum(map(len, (answer for row in said for answer in row))) > _WORKED_CHARS * len(models) * len(said)
    return Table(
        name=path.stem,
        texts=texts,
        categories=[row["category"] for row in firsts],
        models=models,
        answers=[[final(answer) for answer in row] for row in said] if worked else said,
        words=said if worked else None,
        right=_column(by_query.values(), models, "correct"),
        usd=filled,
        latency_ms=_column(by_query.values(), models, "latency_ms"),
        tokens_in=np.array([[len(text) / CHARS_PER_TOKEN] * len(models) for text in texts]),
        tokens_out=np.ones((len(texts), len(models))),
        prices=[(0.0, float(price) * 1e6) for price in filled.mean(axis=0)],
        note="no costs told: every call counts the same" if np.isnan(usd).all() else "",
    )


def final(answer: str) -> str:
    """What a worked answer comes to, as votes compare it: the number marked as its result, else its last, else all."""
    numbers = _NUMBER.findall(answer.rpartition("####")[2])
    if not numbers:
        return answer.strip().lower()
    return (numbers[0] if "####" in answer else numbers[-1]).replace(",", "").rstrip(".")


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return list(csv.DictReader(lines))


def _filled(usd: Array) -> Array:
    """Costs that are not told as their model's mean, of a model that tells none as the mean of all."""
    told = [column[~np.isnan(column)] for column in usd.T]
    usual = float(np.concatenate(told).mean()) if any(map(len, told)) else NO_PRICE
    means = np.array([float(column.mean()) if len(column) else usual for column in told])
    return np.where(np.isnan(usd), means, usd)


def _column(rows: Iterable[Mapping[str, Mapping[str, str]]], models: Sequence[str], name: str) -> Array:
    truths = {"true": 1.0, "false": 0.0, "": np.nan}

    def value(told: str) -> float:
        return truths[told.strip().lower()] if told.strip().lower() in truths else float(told)

    return np.array([[value(row[m][name]) if m in row else np.nan for m in models] for row in rows])


def _priced(*, texts: Sequence[str], written: Array, prices: Sequence[tuple[float, float]], **told: object) -> Table:
    extra = told.pop("extra", None)
    chars = np.array([float(len(text)) for text in texts]) + (0.0 if extra is None else extra)  # type: ignore[operator]
    read = np.repeat(chars[:, None] / CHARS_PER_TOKEN, written.shape[1], axis=1)
    rates = np.array(prices)
    usd = (read * rates[:, 0] + written * rates[:, 1]) / 1e6
    return Table(
        texts=texts,
        usd=usd,
        latency_ms=np.full_like(usd, np.nan),
        tokens_in=read,
        tokens_out=written,
        prices=prices,
        **told,  # type: ignore[arg-type]
    )
