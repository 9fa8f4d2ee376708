"""The second part of the tour: users correct a skill that both bases lack, and the platform learns it by itself."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
from rich.console import Console
from rich.progress import Progress

from demo.desk import Desk, Row, accuracy
from demo.questions import PRESENT, Question, corrupted, questions

SKILL, SPOILED_SKILL = "swapcase", "double"
CORRECTIONS = 260
SPOILED_SHARE = 0.5
HELD_OUT, OLD_SKILLS, CANARY_BATCH = 60, 60, 16
SEED = 21
CANARY_ROUNDS = 60
PATIENCE_S = 240.0
REFIT_S = 2.0
"""A changed domain counts once the router has fitted its domains again, half a second later at most when idle."""
RETAINED = 0.05
AUTO = Row(name="auto", objective="quality")
FIGURES = ("accuracy", "base_accuracy", "retention", "base_retention")
ENDED = ("promoted", "rejected", "rolled_back", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the loop did for one skill."""

    before: float
    after: float
    old_before: float
    old_after: float
    promotion: dict[str, Any]
    evaluation: dict[str, float]


def retention_rows(path: Path, count: int = 1500) -> None:
    """Write questions of the old skills with their answers, which training mixes in so that none is forgotten."""
    rows = questions(count, SEED + 1, skills=PRESENT, part="training")
    path.write_text("".join(json.dumps({"prompt": row.text, "completion": row.answer}) + "\n" for row in rows))


async def teach(desk: Desk, progress: Progress, promotions: "Promotions") -> Lesson:
    """Correct `SKILL` until an adapter for it is promoted; before and after on questions that were never corrected."""
    practice = questions(CORRECTIONS, SEED, skills=[SKILL], part="training")
    held_out = questions(HELD_OUT, SEED + 2, skills=[SKILL])
    old = questions(OLD_SKILLS, SEED + 3, skills=PRESENT)
    bar = progress.add_task("before", total=len(held_out) + len(old))
    before = await desk.ask_all(held_out, AUTO, progress, bar)
    old_before = await desk.ask_all(old, AUTO, progress, bar)
    await correct(desk, progress, practice)
    promotion = await promotions.until(SKILL, ("canary", *ENDED), progress)
    if promotion["state"] == "canary":
        promotion = await walk_canary(desk, progress, promotions)
    await asyncio.sleep(REFIT_S)
    bar = progress.add_task("after", total=len(held_out) + len(old))
    after = await desk.ask_all(held_out, AUTO, progress, bar)
    old_after = await desk.ask_all(old, AUTO, progress, bar)
    return Lesson(
        before=accuracy(before),
        after=accuracy(after),
        old_before=accuracy(old_before),
        old_after=accuracy(old_after),
        promotion=promotion,
        evaluation=promotions.evaluations.get(f"{promotion['candidate']}", {}),
    )


async def mislead(desk: Desk, progress: Progress, promotions: "Promotions") -> dict[str, Any]:
    """Correct another skill with answers half of which are wrong; where its promotion ended."""
    chance = random.Random(SEED)
    practice = [
        Question(q.skill, q.text, corrupted(q.answer, chance) if chance.random() < SPOILED_SHARE else q.answer)
        for q in questions(CORRECTIONS, SEED + 4, skills=[SPOILED_SKILL], part="training")
    ]
    await correct(desk, progress, practice)
    return await promotions.until(SPOILED_SKILL, ("canary", *ENDED), progress)


async def correct(desk: Desk, progress: Progress, practice: list[Question]) -> None:
    """Ask, and correct every answer, as users would."""
    skill = practice[0].skill
    bar = progress.add_task(f"correcting {skill}", total=len(practice))
    asked = await desk.ask_all(practice, AUTO, progress, bar, task=skill)
    await desk.feedback_all(
        (one, {"thumbs": -1, "correction": one.question.answer, "task": skill}) for one in asked if not one.error
    )


async def walk_canary(desk: Desk, progress: Progress, promotions: "Promotions", skill: str = SKILL) -> dict[str, Any]:
    """Go on using the skill, with a thumb for each answer, until the canary has its verdict."""
    bar = progress.add_task("canary traffic", total=None)
    for number in range(CANARY_ROUNDS):
        some = questions(CANARY_BATCH, 1000 + number, skills=[skill])
        asked = await desk.ask_all(some, AUTO, progress, bar, task=skill, agent_id=f"round-{number}")
        await desk.feedback_all((one, {"thumbs": 1 if one.right else -1}) for one in asked if not one.error)
        latest = promotions.latest.get(skill, {})
        if latest.get("state") in ENDED:
            progress.remove_task(bar)
            return latest
    return await promotions.until(skill, ENDED, progress)


class Promotions:
    """The learner's and trainer's events, heard over NATS as any outsider may."""

    def __init__(self, console: Console) -> None:
        """Print each step as it comes."""
        self.latest: dict[str, dict[str, Any]] = {}
        self.evaluations: dict[str, dict[str, float]] = {}
        self._console = console
        self._moved = asyncio.Condition()

    async def until(self, domain: str, states: tuple[str, ...], progress: Progress) -> dict[str, Any]:
        """Wait until the promotion of `domain` is in one of `states`. Raises TimeoutError after `PATIENCE_S`."""
        bar = progress.add_task(f"learning {domain}", total=None)
        async with asyncio.timeout(PATIENCE_S), self._moved:
            await self._moved.wait_for(lambda: self.latest.get(domain, {}).get("state") in states)
        progress.remove_task(bar)
        return self.latest[domain]

    async def hear(self, type_: str, told: dict[str, Any]) -> None:
        """Take one event."""
        figures = told.get("metrics", {}) if type_ == "trainer.job.finished" else {}
        shown = {**told, **{name: value for name, value in figures.items() if name in FIGURES}}
        words = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in shown.items()
            if isinstance(value, str | int | float) and value != "" and not name.endswith(("_id", "digest"))
        )
        self._console.print(f"  [cyan]{type_}[/cyan] {words}", highlight=False)
        if type_ == "trainer.job.finished" and told.get("model"):
            self.evaluations[told["model"]] = told.get("metrics", {})
        if type_ == "learner.promotion.decided":
            async with self._moved:
                self.latest[told["domain"]] = told
                self._moved.notify_all()


@asynccontextmanager
async def listening(home: Path, console: Console) -> AsyncIterator[Promotions]:
    """Subscribe with the plain NATS client to what the loop tells."""
    from google.protobuf import json_format

    from catena.sdk.commands.events import BODIES

    heard = Promotions(console)
    types = [name for name in BODIES if name.split(".")[0] in ("learner", "trainer", "adapters", "router")]
    quiet = ("learner.feedback.recorded", "trainer.job.progressed", "adapters.residency.changed")

    async def on_message(message: Any) -> None:
        type_ = message.headers["ce-type"]
        body = BODIES[type_].FromString(message.data)
        await heard.hear(type_, json_format.MessageToDict(body, preserving_proto_field_name=True))

    client = await nats.connect((home / "run" / "nats.url").read_text().strip())
    try:
        for type_ in types:
            if type_ not in quiet:
                await client.subscribe(f"catena.*.{type_}.v1", cb=on_message)
        yield heard
    finally:
        await client.drain()


def show(lesson: Lesson, stopped: dict[str, Any], console: Console) -> None:
    """Print what was learned and what was refused."""
    console.print(
        f"{SKILL}: held-out accuracy {lesson.before:.2f} before, [bold]{lesson.after:.2f}[/bold] after "
        f"({lesson.promotion['candidate']} {lesson.promotion['state']}: {lesson.promotion.get('reason', '')})"
    )
    kept = ", ".join(
        f"{where} {before:.3f} before, {after:.3f} after" for where, (before, after) in old(lesson).items()
    )
    console.print(f"old skills: {kept}")
    console.print(
        f"{SPOILED_SKILL}, half of its corrections wrong: [bold]{stopped['state']}[/bold] ({stopped.get('reason', '')})"
    )


def old(lesson: Lesson) -> dict[str, tuple[float, float]]:
    """Accuracy on the old skills, before and after: as users met it, and as the trainer measured base and adapter."""
    measured = lesson.evaluation
    return {
        "through auto": (lesson.old_before, lesson.old_after),
        "with the adapter on": (measured.get("base_retention", 0.0), measured.get("retention", 0.0)),
    }


def failures(lesson: Lesson, stopped: dict[str, Any]) -> list[str]:
    """What did not come out as it must; empty when all did."""
    wrong = []
    if lesson.promotion["state"] != "promoted":
        wrong.append(f"the adapter for {SKILL} was {lesson.promotion['state']}, not promoted")
    if lesson.after < 0.8:
        wrong.append(f"{SKILL} reached {lesson.after:.2f}, not 0.80")
    wrong += [
        f"old skills were lost {where}: {before:.3f} before, {after:.3f} after"
        for where, (before, after) in old(lesson).items()
        if after < before - RETAINED
    ]
    if stopped["state"] != "rejected":
        wrong.append(f"the adapter from wrong corrections was {stopped['state']}, not rejected")
    return wrong
