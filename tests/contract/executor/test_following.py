"""Models of the configuration file that change while streams run."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from catena.executor.app import seeds
from catena.executor.config import ExecutorConfig
from catena.executor.drivers.catalogue import Served, SqlCatalogue
from catena.executor.drivers.following import follow_models
from catena.executor.drivers.tables import METADATA, MIGRATIONS
from catena.kit.clock import SystemClock, World
from catena.kit.config import House, Section, load
from catena.kit.errors import Missing
from catena.kit.store import Store, open_store
from catena.kit.testing import eventually, running, sqlite_url
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import bed, plan, stage


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(sqlite_url(tmp_path), METADATA, room="executor", migrations=MIGRATIONS) as opened:
        yield opened


def written(path: Path, *models: dict[str, Any], text: str = "") -> House:
    path.write_text(text or yaml.safe_dump({"models": list(models)}))
    return load(path, "", Section, {})[0]


async def catalogue_of(store: Store, house: House) -> SqlCatalogue:
    async def nobody() -> Served:
        return Served()

    catalogue = SqlCatalogue(store, nobody, lambda model, bases: "", SystemClock())
    await catalogue.seed(seeds(house.models, ExecutorConfig()))
    return catalogue


FAR = {"name": "far", "provider": "openai", "price": {"input": 1.0}}
ALONE = {"name": "near", "provider": "openai"}
NEAR = {"name": "near", "provider": "openai", "fallbacks": ["far"], "rate": {"at_once": 3}, "version": "2"}


async def test_models_come_change_and_go_with_the_file_and_a_file_that_is_wrong_changes_nothing(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "catena.yaml"
    house = written(path, FAR)
    catalogue = await catalogue_of(store, house)

    async def take(models: Any) -> None:
        await catalogue.seed(seeds(models, ExecutorConfig()))

    async with running(follow_models(house, take, every_s=0.02)):
        written(path, FAR | {"price": {"input": 2.0, "cached": 0.5, "reasoning": 3.0}}, NEAR)
        await eventually(lambda: "near" in catalogue.models)
        far, near = catalogue.models["far"], catalogue.models["near"]
        assert (far.price_input, far.price_cached_input, far.price_reasoning) == (2.0, 0.5, 3.0)
        assert (near.fallbacks, near.at_once, near.version) == (("far",), 3, "2")
        path.write_text("models: [{name: ")
        await asyncio.sleep(0.2)
        path.write_text("")
        await asyncio.sleep(0.2)
        written(path, NEAR | {"fallbacks": ["gone"]})
        await asyncio.sleep(0.2)
        assert {"far", "near"} <= catalogue.models.keys()
        written(path, ALONE)
        await eventually(lambda: "far" not in catalogue.models)
    assert "near" in catalogue.models


async def test_a_stream_ends_on_the_model_that_it_began_with_though_that_is_gone(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "catena.yaml"
    house = written(path, FAR)
    catalogue = await catalogue_of(store, house)
    table = bed(World(), far="one two three")
    table.parts = replace(table.parts, catalogue=catalogue)
    table.provider.late = [0.5]
    question = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "far"))
    stream = asyncio.create_task(table.run(question, stream=True))
    await eventually(lambda: len(table.provider.asked) == 1)
    await catalogue.seed(seeds(written(path, ALONE).models, ExecutorConfig()))
    assert "far" not in catalogue.models
    finished, _ = await stream
    assert finished.choices[0].text == "one two three"
    with pytest.raises(Missing, match="unknown model 'far'"):
        await table.run(question, no_cache=True)


async def test_a_house_without_a_file_follows_nothing() -> None:
    async def never(models: Any) -> None:
        raise AssertionError("there is no file")

    await asyncio.wait_for(follow_models(House(), never, every_s=0.01), 30)
