"""The library's folder: what is registered from it, and what follows a change in it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catena.adapters.config import AdaptersConfig, conduct
from catena.adapters.core.adapters import Adapters
from catena.adapters.core.manner import Manner
from catena.adapters.core.records import AdapterRecord, Admitted
from catena.adapters.core.resident import Budget
from catena.adapters.core.work import Part
from catena.adapters.drivers.library import Library
from catena.adapters.drivers.registry import SqlRegistry
from catena.adapters.drivers.tables import METADATA, MIGRATIONS
from catena.artifacts import manifest
from catena.artifacts.digest import folder_digest
from catena.kit.clock import still_world
from catena.kit.errors import Denied
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, sqlite_url
from tests.unit.adapters.fakes import FakeBases, FakeEngine

CARD = manifest.Manifest(
    name="code", version="1", base_name="base", base_digest="b" * 64, rank=8, alpha=16, target_modules=("q_proj",)
)


class TruthfulGate:
    """Admits a folder whose manifest tells the digest that it has."""

    async def admit_folder(self, folder: Path) -> Admitted:
        card = manifest.read(folder)
        if card.digest != folder_digest(folder):
            raise Denied("the files are not those of the manifest", code="adapter_tampered")
        return Admitted(
            name=card.name,
            version=card.version,
            digest=card.digest,
            base=card.base_name,
            base_digest=card.base_digest,
            bytes=100,
            rank=card.rank,
            tasks=card.tasks,
            metrics=card.metrics,
            training_rows=0,
            signer="",
        )

    async def admit_file(self, file: Path, *, base: str, called: str) -> Admitted:
        raise AssertionError("nobody gives files")

    async def admit_archive(self, archive: bytes) -> Admitted:
        raise AssertionError("a library has folders")

    async def check(self, record: AdapterRecord) -> Part:
        return Part(folder=f"/{record.digest}", modules=(), digest="", dtype="F32")


class Bench:
    def __init__(self, folder: Path, registry: SqlRegistry) -> None:
        self.folder = folder
        self.registry = registry
        self.adapters = Adapters(
            engine=FakeEngine(),
            registry=registry,
            bases=FakeBases(),
            gate=TruthfulGate(),
            world=still_world(),
            manner=Manner(budget=Budget(bytes=1000, count=10)),
            free=lambda: None,
        )

    def library(self, *, watched: bool = True, reseal: bool = False) -> Library:
        return Library(self.folder, self.adapters, self.registry, watched=watched, reseal=reseal)

    def write(self, weights: str, *, seal: bool = True, version: str = "1") -> Path:
        path = self.folder / "code"
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps({"r": 8}))
        (path / "adapter_model.safetensors").write_text(weights)
        if seal:
            manifest.seal(path, manifest.Manifest(**{**_fields(CARD), "version": version}))
        return path

    async def stable(self) -> str:
        return (await self.registry.find("shared", "base", "code", "stable")).version


def _fields(card: manifest.Manifest) -> dict[str, object]:
    return {name: getattr(card, name) for name in card.__struct_fields__}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    folder = tmp_path / "library"
    folder.mkdir()
    async with open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store:
        world = still_world()
        yield Bench(folder, SqlRegistry(store, Outbox(store, MemoryBus(), world), world, replica="r1"))


def models(records: list[AdapterRecord]) -> list[str]:
    return [record.model for record in records]


async def test_what_changed_and_settled_is_registered_under_the_next_version_and_stable_follows(bench: Bench) -> None:
    library = bench.library()
    bench.write("one")
    assert models(await library.register_all()) == ["base@code:1"]
    assert await library.turn() == []

    bench.write("two, longer")
    assert await library.turn() == []
    assert models(await library.turn()) == ["base@code:2"]
    assert await library.turn() == []

    assert await bench.stable() == "2"
    digests = {r.version: r.digest for r in await bench.registry.versions("shared", "base", "code")}
    assert digests["1"] != digests["2"]


async def test_what_is_still_being_written_waits(bench: Bench) -> None:
    library = bench.library()
    for weights in ("o", "on", "one"):
        bench.write(weights)
        assert await library.turn() == []

    assert models(await library.turn()) == ["base@code:1"]


async def test_a_restart_registers_nothing_twice(bench: Bench) -> None:
    for weights in ("one", "two"):
        bench.write(weights)
        await bench.library().register_all()

    again = await bench.library().register_all()

    assert models(again) == ["base@code:2"]
    assert len(await bench.registry.versions("shared", "base", "code")) == 2


async def test_a_stable_version_that_was_chosen_by_hand_stays(bench: Bench) -> None:
    library = bench.library()
    for weights in ("one", "two"):
        bench.write(weights)
        await library.register_all()
    two = await bench.registry.find("shared", "base", "code", "2")
    await bench.registry.set_alias("shared", "base", "code", "stable", version="1", expected=two.digest)

    bench.write("three")
    await library.register_all()

    assert await bench.stable() == "1"


async def test_a_version_of_its_own_is_kept(bench: Bench) -> None:
    library = bench.library()
    bench.write("one", version="1.4.0")
    await library.register_all()
    bench.write("two", version="1.5.0")
    await library.register_all()
    bench.write("three", version="1.5.0")
    await library.register_all()

    versions = await bench.registry.versions("shared", "base", "code")
    assert sorted(record.version for record in versions) == ["1.4.0", "1.5.0", "1.5.1"]
    assert await bench.stable() == "1.5.1"


async def test_edited_weights_are_sealed_anew_only_where_no_signature_is_needed(bench: Bench) -> None:
    strict, free = bench.library(), bench.library(reseal=True)
    path = bench.write("one")
    await strict.register_all()
    before = (path / "catena.json").read_bytes()
    bench.write("edited by hand", seal=False)

    assert await strict.register_all() == []
    assert models(await free.register_all()) == ["base@code:2"]
    assert models(await bench.library(reseal=True).register_all()) == ["base@code:2"]
    assert (path / "catena.json").read_bytes() == before


async def test_a_folder_that_is_not_watched_never_takes_another_version(bench: Bench) -> None:
    bench.write("one")
    await bench.library(watched=False).register_all()
    bench.write("two")

    assert await bench.library(watched=False).register_all() == []
    assert await bench.stable() == "1"


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("development", (False, "off", True)),
        ("staging", (True, "likely", False)),
        ("production", (True, "eager", False)),
    ],
)
def test_a_profile_decides_what_the_configuration_leaves_open(profile: str, expected: tuple[bool, str, bool]) -> None:
    chosen = conduct(AdaptersConfig(), profile)
    said = conduct(AdaptersConfig(warm=False, preload="likely"), profile)

    assert (chosen.warm, chosen.preload, chosen.hot_reload) == expected
    assert (said.warm, said.preload, said.hot_reload) == (False, "likely", expected[2])
