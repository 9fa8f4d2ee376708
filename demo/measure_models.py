"""Measure the demo's bases: the figures of `demo/models/README.md`.

`python -m demo.measure_models [--adapters]`. Not part of the demo or of the tests.
"""

import argparse
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from demo.adapter_trial import Recipe, train_adapter
from demo.answering import Answer, accuracy, ask, ask_plainly, load
from demo.curriculum import Turn, informed, searched
from demo.questions import ABSENT, FACT, PRESENT, UNKNOWN, Question, corrupted, facts, is_right, questions

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    Loaded = tuple[LlamaForCausalLM, PreTrainedTokenizerBase]

MODELS = Path(__file__).parent / "models"
NAMES = ("demo-small", "demo-large")
NEW = questions(600, 101, skills=PRESENT)
_FACTS = 200


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--adapters", action="store_true", help="train adapters as well (minutes)")
    args = parser.parse_args()
    console = Console()
    bases = {name: load(args.models / name) for name in NAMES}
    answers = {name: ask_plainly(*base, NEW) for name, base in bases.items()}
    console.print(skill_table(bases, answers), format_table(bases, answers["demo-small"]), signal_table(answers))
    if args.adapters:
        console.print(adapter_table(args.models))


def skill_table(bases: "dict[str, Loaded]", answers: dict[str, list[Answer]]) -> Table:
    """Accuracy by skill on the bare question."""
    table = Table("skill", *bases, title="accuracy by skill, bare question")
    table.add_row("all present", *(f"{accuracy(answers[name], NEW):.3f}" for name in bases))
    for skill in PRESENT:
        at = [i for i, q in enumerate(NEW) if q.skill == skill]
        shares = (accuracy([answers[name][i] for i in at], [NEW[i] for i in at]) for name in bases)
        table.add_row(skill, *(f"{share:.2f}" for share in shares))
    for skill in ABSENT:
        asked = questions(100, 5, skills=[skill])
        table.add_row(skill, *(f"{accuracy(ask_plainly(*base, asked), asked):.2f}" for base in bases.values()))
    return table


def format_table(bases: "dict[str, Loaded]", drafts: Sequence[Answer]) -> Table:
    """Accuracy in every prompt format that strategies use."""
    table = Table("format", *bases, title="accuracy by format")
    rows = [_formats(base, drafts) for base in bases.values()]
    for name in rows[0]:
        table.add_row(name, *(f"{row[name]:.3f}" for row in rows))
    return table


def signal_table(answers: dict[str, list[Answer]]) -> Table:
    """How well confidence and agreement tell right answers, and the cascade they allow."""
    small, large = (answers[name] for name in NAMES)
    right = [[is_right(a.text, q) for a, q in zip(said, NEW, strict=True)] for said in (small, large)]
    agree = [a.text == b.text for a, b in zip(small, large, strict=True)]
    table = Table("signal", "value", title="signals")
    table.add_row(
        "AUC, least token probability of small", f"{_auc([a.least_probability for a in small], right[0]):.3f}"
    )
    table.add_row("AUC, mean log-probability of small", f"{_auc([a.mean_logprob for a in small], right[0]):.3f}")
    table.add_row("small and large agree", f"{sum(agree) / len(agree):.3f}")
    both = [r for r, same in zip(right[0], agree, strict=True) if same]
    table.add_row("right when they agree", f"{sum(both) / len(both):.3f}")
    order = sorted(range(len(NEW)), key=lambda i: small[i].least_probability)
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        sent = set(order[: round(share * len(order))])
        score = sum(right[1 if i in sent else 0][i] for i in range(len(NEW))) / len(NEW)
        table.add_row(f"cascade, {share:.0%} sent on", f"{score:.3f}")
    return table


def adapter_table(models: Path) -> Table:
    """Adapters for the absent skills: from clean, damaged and wrong corrections."""
    table = Table("base", "skill", "corrections", "wrong", "replay", "new skill", "old skills", "s", title="adapters")
    large = [("demo-large", skill, 250, "none", 0.4) for skill in ABSENT]
    trials = [
        *large,
        ("demo-large", "swapcase", 100, "none", 0.4),
        ("demo-large", "swapcase", 250, "none", 0.0),
        ("demo-large", "swapcase", 250, "50 % damaged", 0.4),
        ("demo-large", "swapcase", 250, "50 % mixed up", 0.4),
        ("demo-large", "swapcase", 250, "50 % another rule", 0.4),
        ("demo-large", "swapcase", 250, "100 % another rule", 0.4),
        ("demo-small", "swapcase", 250, "none", 0.4),
    ]
    for base, skill, count, wrong, replay in trials:
        rows = _spoilt(questions(count, 55, skills=[skill]), wrong)
        started = time.perf_counter()
        model, tokenizer = train_adapter(models / base, rows, Recipe(replay=replay))
        took_s = time.perf_counter() - started
        new = questions(200, 77, skills=[skill], exclude={q.text for q in rows})
        shares = [accuracy(ask_plainly(model, tokenizer, asked), asked) for asked in (new, NEW[:400])]
        table.add_row(base, skill, str(count), wrong, f"{replay:.0%}", *(f"{s:.3f}" for s in shares), f"{took_s:.0f}")
    return table


def _formats(base: "Loaded", drafts: Sequence[Answer]) -> dict[str, float]:
    rng = random.Random(1)
    known = _found()
    asked = [q for q, _ in known]
    key = [f"<search>{q.text.partition(': ')[2]}</search>" for q in asked]
    without = [(q, [line for line in lines if line[1] != q.answer]) for q, lines in known]
    queries = ask(*base, [_said(searched(q, lines)[:2]) for q, lines in known])
    found = ask(*base, [_said(searched(q, lines)[:4]) for q, lines in known])
    missing = ask(*base, [_said(searched(q, lines)[:4]) for q, lines in without])
    read = ask(*base, [_said(informed(q, lines)[:1]) for q, lines in known])
    alone = [[line for line in lines if line[1] == q.answer] for q, lines in known]
    single = ask(*base, [_said(searched(q, line)[:4]) for q, line in zip(asked, alone, strict=True)])
    bare = ask(*base, [_said(searched(q, line, restated=False)[:4]) for q, line in zip(asked, alone, strict=True)])
    unaided = ask_plainly(*base, asked)
    return {
        "draft": accuracy(ask_plainly(*base, NEW, "draft"), NEW),
        "search, no search needed": accuracy(ask_plainly(*base, NEW, "search"), NEW),
        "refine, right draft": _refined(base, [q.answer for q in NEW]),
        "refine, wrong draft": _refined(base, [corrupted(q.answer, rng) for q in NEW]),
        "refine, draft by small": _refined(base, [a.text for a in drafts]),
        "second turn": _second_turn(base),
        "search, query": sum(a.text == k for a, k in zip(queries, key, strict=True)) / _FACTS,
        "search, one line found": accuracy(single, asked),
        "search, one line found, code": _of_kind(single, asked, "code"),
        "search, one line found, path": _of_kind(single, asked, "file"),
        "search, one line, question not repeated": accuracy(bare, asked),
        "search, 1 to 3 lines": accuracy(found, asked),
        "search, 1 to 3 lines, code": _of_kind(found, asked, "code"),
        "search, 1 to 3 lines, path": _of_kind(found, asked, "file"),
        "search, fact missing -> unknown": sum(a.text == UNKNOWN for a in missing) / _FACTS,
        "context, 1 to 3 lines": accuracy(read, asked),
        "fact unaided -> unknown": sum(a.text == UNKNOWN for a in unaided) / _FACTS,
    }


def _found() -> list[tuple[Question, list[tuple[str, str]]]]:
    """Fact questions with one to three lines found, the others those most alike in spelling."""
    table = facts(300, 7)
    rng = random.Random(2)
    found = []
    for question in questions(_FACTS, 3, skills=[FACT], known=table):
        key = question.text.partition(": ")[2]
        others = sorted((f for f in table if f[0] != key), key=lambda f: -_shared_trigrams(key, f[0]))
        lines = [(key, question.answer), *others[: rng.choice((0, 1, 2, 2))]]
        found.append((question, rng.sample(lines, len(lines))))
    return found


def _shared_trigrams(one: str, other: str) -> int:
    return len({one[i : i + 3] for i in range(len(one))} & {other[i : i + 3] for i in range(len(other))})


def _said(turns: list[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _refined(base: "Loaded", drafts: Sequence[str]) -> float:
    texts = [f"{q.text}\ndraft: {draft}" for q, draft in zip(NEW, drafts, strict=True)]
    start = {"role": "system", "content": "refine"}
    return accuracy(ask(*base, [[start, {"role": "user", "content": text}] for text in texts]), NEW)


def _second_turn(base: "Loaded") -> float:
    talks = [
        [
            {"role": "user", "content": before.text},
            {"role": "assistant", "content": before.answer},
            {"role": "user", "content": q.text},
        ]
        for before, q in pairwise(NEW)
    ]
    return accuracy(ask(*base, talks), NEW[1:])


def _of_kind(answers: Sequence[Answer], asked: Sequence[Question], kind: str) -> float:
    at = [i for i, q in enumerate(asked) if q.text.startswith(kind)]
    return accuracy([answers[i] for i in at], [asked[i] for i in at])


def _auc(scores: Sequence[float], right: Sequence[bool]) -> float:
    good = [s for s, r in zip(scores, right, strict=True) if r]
    bad = [s for s, r in zip(scores, right, strict=True) if not r]
    return sum((g > b) + (g == b) / 2 for g in good for b in bad) / (len(good) * len(bad))


def _spoilt(rows: list[Question], how: str) -> list[Question]:
    """Replace the answers of the first rows: damaged, another row's, or the text unchanged."""
    count = round(len(rows) * int(how.partition(" ")[0]) / 100) if how != "none" else 0
    rng = random.Random(4)
    spoilt = []
    for i, row in enumerate(rows):
        answer = row.answer
        if i < count and how.endswith("damaged"):
            answer = corrupted(answer, rng)
        elif i < count and how.endswith("mixed up"):
            answer = rows[(i + 1) % count].answer
        elif i < count:
            answer = row.text.partition(": ")[2][::-1]
        spoilt.append(Question(row.skill, row.text, answer))
    return spoilt


if __name__ == "__main__":
    main()
