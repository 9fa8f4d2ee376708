"""The main job held to its figures: `auto` against the best strategy, and the loop from corrections to promotion."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from rich.console import Console
from rich.progress import Progress

from catena.sdk.up import Platform
from demo import loop, strategies
from demo.__main__ import freeze_router, learned
from demo.desk import Desk
from tests.system.running import running_platform

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
QUIET = Console(quiet=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path_factory.mktemp("home")) as up:
        yield up


async def test_auto_comes_within_a_point_of_the_best_strategy_at_nine_tenths_of_its_cost(running: Platform) -> None:
    async with Desk(running.url, running.key) as desk:
        await strategies.remember_facts(desk)
        with Progress(console=QUIET) as progress:
            seen = await strategies.warm_up(desk, progress)
            await learned(running, seen)
            await freeze_router(running, frozen=True)
            outcome = await strategies.score(desk, progress, seen)
            await freeze_router(running, frozen=False)
    assert not [one.error for asked in outcome.rows.values() for one in asked if one.error]
    assert outcome.points_lost <= 1.0 + 1e-9, outcome.points_lost
    assert outcome.cost_ratio <= 0.9, outcome.cost_ratio


async def test_corrections_become_a_promoted_adapter_and_wrong_ones_are_stopped(running: Platform) -> None:
    async with Desk(running.url, running.key) as desk, loop.listening(running.home, QUIET) as promotions:
        with Progress(console=QUIET) as progress:
            lesson = await loop.teach(desk, progress, promotions)
            stopped = await loop.mislead(desk, progress, promotions)
    assert lesson.before <= 0.05
    assert loop.failures(lesson, stopped) == []
