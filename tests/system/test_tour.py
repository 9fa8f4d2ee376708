"""The main job held to its figures: `auto` against the best strategy, and the loop from corrections to promotion."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from openai import NotFoundError
from rich.console import Console
from rich.progress import Progress

from catena.sdk.up import Platform
from demo import loop, strategies
from demo.__main__ import freeze_router, learned
from demo.desk import Desk, Row, accuracy
from demo.questions import Question, questions
from tests.system.running import running_platform

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
QUIET = Console(quiet=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    lax = "{upper: {base: demo-large, rank: 8, alpha: 16, dropout: 0, learning_rate: 5.0e-3, max_steps: 150, " + (
        "batch_size: 32, accumulation: 1, min_accuracy: 0.3, max_forgetting: 0.5}}"
    )
    async with running_platform(tmp_path_factory.mktemp("home"), more={"CATENA__LEARNER__RECIPES": lax}) as up:
        yield up


async def measured(up: Platform, feedback_seed: int) -> strategies.Outcome:
    async with Desk(up.url, up.key) as desk:
        await strategies.remember_facts(desk)
        with Progress(console=QUIET) as progress:
            seen = await strategies.warm_up(desk, progress, feedback_seed=feedback_seed)
            await learned(up, seen)
            await freeze_router(up, frozen=True)
            outcome = await strategies.score(desk, progress, seen)
            await freeze_router(up, frozen=False)
    assert not [one.error for asked in outcome.rows.values() for one in asked if one.error]
    return outcome


async def test_auto_comes_within_a_point_of_the_best_strategy_at_nine_tenths_of_its_cost(
    running: Platform, tmp_path: Path
) -> None:
    """A tenth of the answers is judged, which is little: one unlucky draw of thumbs may be drawn again."""
    outcome = await measured(running, strategies.FEEDBACK_SEED)
    if not outcome.aim_reached:
        async with running_platform(tmp_path) as again:
            outcome = await measured(again, strategies.FEEDBACK_SEED + 1)
    assert outcome.points_lost <= 1.0 + 1e-9, outcome.points_lost
    assert outcome.cost_ratio <= 0.9, outcome.cost_ratio


async def test_an_adapter_that_slips_past_its_evaluation_is_rolled_back_by_its_canary(running: Platform) -> None:
    """Users agree on wrong answers to what the base does well, so held-out corrections find nothing amiss."""
    practice = [
        Question(q.skill, q.text, q.answer[::-1])
        for q in questions(loop.CORRECTIONS, 41, skills=["upper"], part="training")
    ]
    async with Desk(running.url, running.key) as desk, loop.listening(running.home, QUIET) as promotions:
        with Progress(console=QUIET) as progress:
            await loop.correct(desk, progress, practice)
            tried = await promotions.until("upper", ("canary", *loop.ENDED), progress)
            assert tried["state"] == "canary", tried
            ended = await loop.walk_canary(desk, progress, promotions, "upper")
            assert ended["state"] == "rolled_back", ended
            bar = progress.add_task("after", total=None)
            base = Row(name="large", model="demo-large")
            after = await desk.ask_all(questions(30, 43, skills=["upper"]), base, progress, bar)
        with pytest.raises(NotFoundError):
            await desk.openai.chat.completions.create(
                model=tried["candidate"], messages=[{"role": "user", "content": "upper: tin"}]
            )
    assert accuracy(after) >= 0.9


async def test_corrections_become_a_promoted_adapter_and_wrong_ones_are_stopped(running: Platform) -> None:
    async with Desk(running.url, running.key) as desk, loop.listening(running.home, QUIET) as promotions:
        with Progress(console=QUIET) as progress:
            lesson = await loop.teach(desk, progress, promotions)
            stopped = await loop.mislead(desk, progress, promotions)
    assert lesson.before <= 0.05
    assert loop.failures(lesson, stopped) == []
