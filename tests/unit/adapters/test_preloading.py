import asyncio
from pathlib import Path

import pytest

from catena.adapters.core.asking import Question
from catena.adapters.core.errors import UnknownAdapter
from catena.adapters.core.preloading import Preload, Preloading
from catena.adapters.core.pressure import Level
from catena.adapters.drivers.shipped import read_workflows
from catena.kit.clock import ManualClock
from catena.kit.errors import Invalid

SETS = {"writing": ["draft", "polish", "gone"], "*": ["intent"]}


class Bench:
    def __init__(self, mode: Preload = "likely") -> None:
        self.clock = ManualClock()
        self.level: Level = "low"
        self.loads: list[tuple[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.preloading = Preloading(self.load, level=lambda: self.level, clock=self.clock, mode=mode, workflows=SETS)

    async def load(self, tenant: str, model: str) -> bool:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if model.endswith("gone"):
            raise UnknownAdapter("no such adapter")
        self.loads.append((tenant, model))
        return not model.endswith("polish")

    def use(self, *models: str, user: str = "", workflow: str = "", tenant: str = "acme", each_s: float = 20.0) -> None:
        for model in models:
            self.preloading.used(tenant, Question(model=model, user=user, workflow=workflow))
            self.clock.advance(each_s)


async def test_a_habit_is_loaded_ahead_when_half_of_the_usual_wait_is_over() -> None:
    bench = Bench()
    bench.use(*["base@a", "base@b"] * 4, user="ann")
    await bench.preloading.turn()
    bench.loads.clear()

    bench.use("base@a", user="ann", each_s=9.0)
    assert await bench.preloading.turn() == []
    bench.clock.advance(1.1)
    done = await bench.preloading.turn()

    assert [(one.model, one.resident) for one in done] == [("base@b", True)]
    assert await bench.preloading.turn() == []


async def test_what_was_asked_for_meanwhile_is_not_loaded_ahead() -> None:
    bench = Bench()
    bench.use(*["base@a", "base@b"] * 4, user="ann")
    bench.use("base@a", "base@b", user="ann", each_s=1.0)
    bench.clock.advance(5.0)

    await bench.preloading.turn()

    assert ("acme", "base@b") not in bench.loads


@pytest.mark.parametrize(("mode", "loaded"), [("off", 0), ("likely", 0), ("eager", 1)])
async def test_boldness_decides_from_which_chance_on(mode: Preload, loaded: int) -> None:
    bench = Bench(mode)
    bench.use("base@a", "base@b", "base@a", "base@b", "base@a", user="ann")

    await bench.preloading.turn()

    assert bench.loads.count(("acme", "base@b")) == loaded


async def test_habits_of_others_and_uses_by_nobody_known_load_nothing() -> None:
    bench = Bench()
    bench.use(*["base@a", "base@b"] * 5)
    bench.use(*["base@a", "base@b"] * 5, "base@a", user="ann", tenant="other")
    bench.loads.clear()
    bench.use("base@a", user="ann")

    done = await bench.preloading.turn()

    assert ("acme", "base@b") not in bench.loads
    assert all(one.model != "base@a" for one in done)


@pytest.mark.parametrize("level", ["medium", "high", "critical"])
async def test_nothing_is_loaded_ahead_once_memory_is_tighter(level: Level) -> None:
    bench = Bench()
    bench.use("base@x", workflow="writing")
    bench.level = level

    assert await bench.preloading.turn() == []
    assert bench.loads == []


async def test_a_workflow_begins_with_its_set_loaded_at_once_and_in_parallel() -> None:
    bench = Bench()
    bench.use("base", workflow="writing", user="ann", each_s=0.0)
    async with asyncio.timeout(30):
        await bench.preloading.rest(1000)

    done = await bench.preloading.turn()

    assert [(one.model, one.resident, one.reason) for one in done] == [
        ("base@draft", True, ""),
        ("base@polish", False, "no_adapter_room"),
        ("base@gone", False, "unknown_adapter"),
    ]
    assert bench.most_at_once == 3
    bench.use("base", workflow="writing", user="ann")
    assert await bench.preloading.turn() == []


async def test_any_other_workflow_has_the_set_of_any_other() -> None:
    bench = Bench()

    done = await bench.preloading.load_workflow("acme", "gardening", "base")

    assert [one.model for one in done] == ["base@intent"]


def test_the_shipped_sets_are_those_of_the_product() -> None:
    sets = read_workflows()

    assert sets["content-creation"] == ["intent-classifier", "content-generator", "blog-writer"]
    assert sets["*"] == ["intent-classifier"]
    assert set(sets) == {"content-creation", "workflow-building", "research-synthesis", "*"}


def test_a_file_of_ones_own_replaces_them_and_a_wrong_one_is_refused_with_its_place(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("support: [triage]\n")
    assert read_workflows(str(own)) == {"support": ["triage"]}

    own.write_text("support: [no spaces allowed]\n")
    with pytest.raises(Invalid, match=r"mine\.yaml"):
        read_workflows(str(own))
    with pytest.raises(Invalid, match="cannot read"):
        read_workflows(str(tmp_path / "absent.yaml"))
