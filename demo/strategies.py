"""The first part of the tour: every strategy and the router on the same questions, as one table."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from demo.desk import Asked, Desk, Row, accuracy
from demo.questions import FACT, FACTS_COUNT, FACTS_SEED, PRESENT, Question, facts, questions

FIXED = (
    Row(name="sequential small", model="demo-small", shape="sequential"),
    Row(name="sequential large", model="demo-large", shape="sequential"),
    Row(name="cascade", shape="cascade"),
    Row(name="draft-refine", shape="draft-refine"),
    Row(name="consensus", shape="consensus"),
    Row(name="speculative", shape="speculative"),
    Row(name="search", shape="search"),
)
AUTO = Row(name="auto", objective="cost")
WARM_UP, SCORED = 200, 300
WARM_UP_SEED, SCORED_SEED, FEEDBACK_SEED = 11, 12, 13
FEEDBACK_SHARE = 0.1
LARGE = "demo-large"
NOTES = (
    "USD/1k: dollars per 1000 questions; of large: that over what always asking the large model costs.",
    "auto: the router with objective cost, which chooses among single models and the strategies above. A fifth of the",
    "  questions need a fact from memory, which only search finds, by two calls and a longer prompt: auto can so cost",
    "  more than the large model alone, which gets those questions wrong.",
    "oracle: the cheapest row that was right, question by question (of none, the cheapest): known only afterwards,",
    "  nothing that could be asked, and a bound on what any router can do.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the strategies did: answers by row, in the order of the questions."""

    rows: dict[str, list[Asked]]

    @property
    def best_fixed(self) -> str:
        """The fixed row with the highest accuracy; of equals, the cheapest."""
        return max(
            (row.name for row in FIXED), key=lambda name: (accuracy(self.rows[name]), -mean_cost(self.rows[name]))
        )

    @property
    def cost_ratio(self) -> float:
        """Cost of `auto` over that of the best fixed row."""
        return mean_cost(self.rows[AUTO.name]) / mean_cost(self.rows[self.best_fixed])

    @property
    def points_lost(self) -> float:
        """Accuracy of the best fixed row less that of `auto`, in points."""
        return 100 * (accuracy(self.rows[self.best_fixed]) - accuracy(self.rows[AUTO.name]))

    @property
    def aim_reached(self) -> bool:
        """Whether `auto` is within one point of the best fixed row at 0.9 of its cost or less."""
        return self.points_lost <= 1.0 + 1e-9 and self.cost_ratio <= 0.9


async def remember_facts(desk: Desk) -> int:
    """Put the facts that no model can know into memory; how many."""
    known = facts(FACTS_COUNT, FACTS_SEED)
    documents = [{"id": key, "title": key, "text": f"{key}: {value}"} for key, value in known]
    await desk.call("POST", "/v1/memory/documents", {"collection": "facts", "documents": documents})
    return len(known)


def mixed(count: int, seed: int, exclude: Sequence[str] = ()) -> list[Question]:
    """Questions of every skill in random order, exactly a fifth of which need a fact from memory."""
    needing = count // 5
    drawn = questions(count - needing, seed, skills=PRESENT, exclude=exclude)
    drawn += questions(needing, seed, skills=[FACT], exclude=exclude)
    random.Random(seed).shuffle(drawn)
    return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What the warm-up asked, and how much the router has to hear of."""

    questions: list[Question]
    answers: int
    judged: int


async def warm_up(desk: Desk, progress: Progress, count: int = WARM_UP, feedback_seed: int = FEEDBACK_SEED) -> WarmUp:
    """Ask every fixed row; a tenth of the answers get a thumb, from which, and from verifiers, the router learns."""
    asked_for = mixed(count, WARM_UP_SEED)
    bar = progress.add_task("warming up", total=count * len(FIXED))
    chance = random.Random(feedback_seed)
    answered = thumbs = 0
    for row in FIXED:
        answers = await desk.ask_all(asked_for, row, progress, bar)
        judged = [one for one in answers if not one.error and chance.random() < FEEDBACK_SHARE]
        await desk.feedback_all((one, {"thumbs": 1 if one.right else -1}) for one in judged)
        answered += sum(not one.error for one in answers)
        thumbs += len(judged)
    return WarmUp(questions=asked_for, answers=answered, judged=thumbs)


async def score(desk: Desk, progress: Progress, seen: WarmUp, count: int = SCORED) -> Outcome:
    """Ask new questions by every row and by `auto`."""
    new = mixed(count, SCORED_SEED, exclude=[question.text for question in seen.questions])
    bar = progress.add_task("scoring", total=count * (len(FIXED) + 1))
    return Outcome(rows={row.name: await desk.ask_all(new, row, progress, bar) for row in (*FIXED, AUTO)})


def mean_cost(asked: Sequence[Asked]) -> float:
    """USD per question."""
    return sum(one.cost_usd for one in asked) / len(asked)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    z = 1.959964
    share, spread = right / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return centre - half, centre + half


def oracle(rows: dict[str, list[Asked]]) -> list[Asked]:
    """Per question the cheapest fixed row that is right, or the cheapest of all."""
    columns = [rows[row.name] for row in FIXED]
    return [min(answers, key=lambda one: (not one.right, one.cost_usd)) for answers in zip(*columns, strict=True)]


def show(outcome: Outcome, console: Console) -> None:
    """Print the table, what the drafts were worth, and whether `auto` reached its aim."""
    table = Table(title="Strategies on the same new questions", title_justify="left")
    for name in ("row", "accuracy", "95 % interval", "USD/1k", "of large", "p50 ms", "p95 ms", "tokens", "large used"):
        table.add_column(name, justify="left" if name == "row" else "right")
    always_large = mean_cost(outcome.rows["sequential large"])
    for name, asked in {**outcome.rows, "oracle": oracle(outcome.rows)}.items():
        style = "bold" if name == AUTO.name else "dim" if name == "oracle" else ""
        table.add_row(name, *cells(asked, always_large), style=style)
    console.print(table)
    for line in NOTES:
        console.print(line, style="dim", highlight=False)
    console.print()
    console.print(drafts_table(outcome))
    verdict = "[green]reached[/green]" if outcome.aim_reached else "[yellow]missed[/yellow]"
    console.print(
        f"aim {verdict}: auto loses {outcome.points_lost:.1f} points to {outcome.best_fixed} (at most 1.0) "
        f"at {outcome.cost_ratio:.2f} of its cost (at most 0.90)"
    )
    failed = sum(bool(one.error) for asked in outcome.rows.values() for one in asked)
    if failed:
        console.print(f"[red]{failed} requests failed and count as wrong[/red]")


def cells(asked: Sequence[Asked], always_large: float) -> list[str]:
    """One row of the table, its name left out."""
    low, high = wilson(sum(one.right for one in asked), len(asked))
    times = sorted(one.duration_ms for one in asked)
    touched = sum(any(LARGE in stage["model"] for stage in one.stages) for one in asked)
    return [
        f"{100 * accuracy(asked):.1f} %",
        f"{100 * low:.1f}-{100 * high:.1f}",
        f"{1000 * mean_cost(asked):.4f}",
        f"{100 * mean_cost(asked) / always_large:.0f} %",
        f"{times[len(times) // 2]:.0f}",
        f"{times[int(0.95 * len(times))]:.0f}",
        str(sum(one.tokens for one in asked)),
        f"{100 * touched / len(asked):.0f} %",
    ]


def drafts_table(outcome: Outcome) -> Table:
    """For strategies with several voices: whom the first one misled, how often they differ, what was accepted."""
    table = Table(title="What the second voice changed", title_justify="left")
    for name in ("row", "wrong to right", "right to wrong", "disagreement", "draft tokens accepted"):
        table.add_column(name, justify="left" if name == "row" else "right")
    right = right_digests(outcome)
    for name in ("draft-refine", "consensus", "speculative"):
        asked = outcome.rows[name]
        mended = spoiled = differed = 0
        for number, one in enumerate(asked):
            voices = [stage["answer_digest"] for stage in one.stages if stage["answer_digest"]]
            first_right = bool(voices) and voices[0] in right[number]
            mended += one.right and len(voices) > 1 and not first_right
            spoiled += not one.right and len(voices) > 1 and first_right
            differed += len(set(voices)) > 1
        drafted = sum(int(stage["drafted_tokens"]) for one in asked for stage in one.stages)
        accepted = sum(int(stage["accepted_tokens"]) for one in asked for stage in one.stages)
        share = f"{100 * accepted / drafted:.0f} %" if drafted else "-"
        counts = ["-", "-", "-"] if drafted else [str(mended), str(spoiled), f"{100 * differed / len(asked):.0f} %"]
        table.add_row(name, *counts, share)
    return table


def right_digests(outcome: Outcome) -> list[set[str]]:
    """Per question the digests of answers that some row gave and that were right."""
    count = len(next(iter(outcome.rows.values())))
    found: list[set[str]] = [set() for _ in range(count)]
    for asked in outcome.rows.values():
        for number, one in enumerate(asked):
            accepted = [stage["answer_digest"] for stage in one.stages if stage["outcome"] == "accepted"]
            if one.right and accepted:
                found[number].add(accepted[-1])
    return found
