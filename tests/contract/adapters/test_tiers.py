"""Device, host memory and disk, with the real engine."""

import asyncio
import random
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio
import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.artifacts import manifest
from catena.artifacts.signature import make_key, sign
from catena.kit.config import House, ModelConfig
from catena.kit.errors import Denied, Missing, Unavailable
from catena.kit.testing import eventually
from tests.contract.adapters.conftest import Room, new_adapter, new_house, open_room
from tests.contract.adapters.making import make_adapter, make_base, seal
from tests.contract.adapters.test_room import question, text_of

DEVICE, HOST = 10, 25
"""Adapters that have room on the device and in host memory."""
WARM = 50
"""Adapters that are registered and used before memory is measured."""
CLIENTS = 8
LEAK_BYTES = 64 << 20
"""A third of what the loads of a thousand would leak if none of them were freed."""


async def tiers_of(room: Room) -> dict[str, pb.Tier]:
    told = await room.ask("GetResidency", pb.GetResidencyRequest())
    return {tier.name: tier for tier in told.tiers}


async def where(room: Room) -> dict[str, str]:
    told = await room.ask("GetResidency", pb.GetResidencyRequest())
    return {resident.model.partition("@")[2].partition(":")[0]: resident.tier for resident in told.residents}


async def ask(room: Room, name: str) -> str:
    return text_of(await room.stream(question(f"demo-large@{name}:1")))


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """Two adapters, `a` on the device and `b` in host memory, where one has room at a time."""
    house = new_house(tmp_path / "home")
    async with open_room(house, max_resident=1) as opened:
        for seed, name in enumerate("ba", 1):
            await opened.ask(
                "RegisterAdapter", pb.RegisterAdapterRequest(path=str(new_adapter(house, name, seed=seed)))
            )
        yield opened


async def test_what_left_the_device_comes_back_the_same_and_untouched_by_the_disk(room: Room) -> None:
    assert await where(room) == {"a": "device", "b": "host"}
    size = (await tiers_of(room))["device"].bytes
    loaded = {name: await ask(room, name) for name in "ab"}
    for file in room.house.folder("artifacts").rglob("*.safetensors"):
        file.write_bytes(b"the gate would not let this through")

    assert {name: await ask(room, name) for name in "ab"} == loaded
    tiers = await tiers_of(room)
    assert [(tier.name, tier.adapters, tier.bytes) for tier in list(tiers.values())[:2]] == [
        ("device", 1, size), ("host", 1, size),
    ]  # fmt: skip
    assert (tiers["disk"].adapters, tiers["disk"].hits) == (2, 2)
    assert (tiers["host"].hits, tiers["device"].misses) == (3, 5)


async def test_a_key_that_is_trusted_no_more_vouches_for_nothing_in_host_memory(room: Room) -> None:
    trusted = room.house.folder("keys", "trusted") / "trainer.pub"
    trusted.unlink()

    with pytest.raises(Denied) as caught:
        await ask(room, "b")

    assert caught.value.code == "adapter_wrong_key"
    assert "b" not in await where(room)


async def test_a_key_that_was_changed_under_its_name_vouches_for_nothing(room: Room) -> None:
    other = make_key(room.house.folder("keys"), "other")
    (room.house.folder("keys", "trusted") / "trainer.pub").write_bytes(other.public.read_bytes())

    with pytest.raises(Denied):
        await ask(room, "b")


async def test_what_was_withdrawn_is_in_no_tier_of_memory(room: Room) -> None:
    await room.ask("DeleteAdapter", pb.DeleteAdapterRequest(model="demo-large@b:1"))

    with pytest.raises(Missing):
        await ask(room, "b")
    assert await where(room) == {"a": "device"}
    assert (await tiers_of(room))["host"].bytes == 0


async def test_unloading_frees_host_memory_too(room: Room) -> None:
    freed = await room.ask("Unload", pb.UnloadRequest(model="demo-large@b:1"))

    assert freed.bytes == (await tiers_of(room))["device"].bytes
    assert await where(room) == {"a": "device"}


async def test_a_lost_engine_takes_host_memory_with_it(room: Room) -> None:
    engine_of(room.house).kill()

    async def empty() -> bool:
        with suppress(Unavailable):
            return await where(room) == {}
        return False

    await eventually(empty)
    assert await ask(room, "b")
    assert await where(room) == {"b": "device"}


async def test_the_tiers_tell_their_figures_to_prometheus(room: Room) -> None:
    await ask(room, "b")

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    async def told() -> bool:
        return all(
            [
                value("catena_adapters_resident_bytes", tier="host") > 0,
                value("catena_adapters_resident_adapters", tier="disk") == 2,
                value("catena_adapters_cache_total", tier="host", outcome="hit") > 0,
                value("catena_adapters_load_seconds_count", tier="host") > 0,
                *(
                    value("catena_adapters_load_phase_seconds_count", tier="disk", phase=phase) > 0
                    for phase in ("gate", "room", "read", "copy", "probe")
                ),
                value("catena_adapters_queue_seconds_count", model="demo-large") > 0,
            ]
        )

    await eventually(told)
    asked = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "catena", "gen_ai_request_model": "demo-large"}
    assert value("gen_ai_server_request_duration_seconds_count", **asked, error_type="") > 0
    assert value("gen_ai_server_time_to_first_token_seconds_count", **asked) > 0
    assert value("gen_ai_server_time_per_output_token_seconds_count", **asked) > 0
    with pytest.raises(Missing):
        await room.stream(question("nobody-knows"))
    failed = asked | {"gen_ai_request_model": "_OTHER", "error_type": "unknown_model"}
    assert value("gen_ai_server_request_duration_seconds_count", **failed) > 0


@pytest.mark.parametrize("many", [80, pytest.param(1000, marks=pytest.mark.soak)])
async def test_many_adapters_share_a_small_budget_of_each_tier(tmp_path: Path, many: int) -> None:
    """Every tier's bytes are exact to the tensor to the end, and what left is freed."""
    house = new_house(tmp_path / "home")
    base = make_base(tmp_path / "base", width=128, layers=1)
    house = msgspec.structs.replace(house, models=[ModelConfig(name="demo-large", path=str(base))])
    plain = make_adapter(base, tmp_path / "adapter", r=16)
    seal(plain, base, name="plain", version="1", base_name="demo-large")
    each = sum(tensor.nbytes for tensor in load_file(plain / "adapter_model.safetensors").values())
    async with open_room(house, budget_bytes=DEVICE * each, host_bytes=HOST * each, prefix_bytes=0) as room:
        await register(room, plain, range(WARM))
        await asyncio.gather(*(client(room, range(part, WARM, CLIENTS)) for part in range(CLIENTS)))
        process = engine_of(house)
        before = process.memory_info().rss
        await asyncio.gather(*(register(room, plain, range(WARM + part, many, CLIENTS)) for part in range(CLIENTS)))
        rng = random.Random(7)
        asked = rng.choices(range(many), [1 / (rank + 1) for rank in range(many)], k=100 + many // 2)

        await asyncio.gather(*(client(room, asked[part::CLIENTS]) for part in range(CLIENTS)))

        tiers, grown = await tiers_of(room), process.memory_info().rss - before
        device, host, disk = tiers["device"], tiers["host"], tiers["disk"]
        assert (device.adapters, device.bytes) == (DEVICE, DEVICE * each)
        assert host.bytes == host.adapters * each <= HOST * each
        # What goes back to the device keeps its place until it is there, so each client may end one of them short.
        assert host.adapters >= HOST - CLIENTS
        files = [file for file in house.folder("artifacts").rglob("*") if file.is_file()]
        assert (disk.adapters, disk.bytes) == (many, sum(file.stat().st_size for file in files))
        # Each load brought one adapter to the device, and each but those that are there left it again.
        assert device.misses == host.hits + disk.hits == device.evictions + DEVICE
        assert (host.misses, disk.misses) == (disk.hits, 0)
        assert host.hits > 10
        assert grown < LEAK_BYTES
        for resident in (await room.ask("GetResidency", pb.GetResidencyRequest())).residents:
            assert resident.bytes == each
            assert (await room.ask("Unload", pb.UnloadRequest(model=resident.model))).bytes == each
        tiers = await tiers_of(room)
        assert (tiers["device"].bytes, tiers["host"].bytes) == (0, 0)


async def client(room: Room, asked: Sequence[int]) -> None:
    for number in asked:
        answers = await room.stream(question(f"demo-large@a{number}:1", max_tokens=2))
        assert answers[-1].done.resolved_model.startswith(f"demo-large@a{number}:1#")


async def register(room: Room, plain: Path, numbers: range) -> None:
    """Signed adapters of random factors, made in one folder in turn."""
    folder = plain.with_name(f"made-{numbers.start}")
    shutil.copytree(plain, folder)
    factors, card = load_file(plain / "adapter_model.safetensors"), manifest.read(plain)

    def make(number: int) -> None:
        torch.manual_seed(number)
        save_file(
            {name: 0.15 * torch.randn(tensor.shape) for name, tensor in factors.items()},
            folder / "adapter_model.safetensors",
        )
        manifest.seal(folder, msgspec.structs.replace(card, name=f"a{number}"))
        sign(folder, room.house.folder("keys") / "trainer.pem")

    for number in numbers:
        await asyncio.to_thread(make, number)
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))


def engine_of(house: House) -> psutil.Process:
    line = re.escape(house.address("adapters-engine").removeprefix("unix:"))
    found = [one for one in psutil.Process().children(recursive=True) if re.search(line, " ".join(one.cmdline()))]
    return found[0]
