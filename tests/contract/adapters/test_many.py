"""Many more registered adapters than may be resident."""

import asyncio
import random
import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.kit.config import House, ModelConfig
from tests.contract.adapters.conftest import Room, open_room
from tests.contract.adapters.making import make_adapter, make_base, seal
from tests.contract.adapters.test_room import question, text_of

RESIDENT = 10


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.soak)])
async def test_a_small_budget_serves_however_many_are_registered(house: House, tmp_path: Path, count: int) -> None:
    base = make_base(tmp_path / "base", width=32, layers=1)
    house = msgspec.structs.replace(house, models=[ModelConfig(name="tiny", path=str(base))])
    pattern = make_adapter(base, tmp_path / "pattern", r=2, target_modules=["q_proj", "o_proj"])
    chance = random.Random(4)
    async with open_room(house, max_resident=RESIDENT, require_signature=False) as room:
        digests: dict[str, str] = {}
        for begin in range(0, count, 20):
            names = [f"a{number}" for number in range(begin, min(begin + 20, count))]
            made = await asyncio.gather(*(registered(room, base, pattern, tmp_path / name) for name in names))
            digests |= dict(zip(names, made, strict=True))
        assert len(set(digests.values())) == count

        said: dict[str, str] = {}
        zipf = [1 / rank for rank in range(1, count + 1)]
        for _ in range(4):
            names = chance.choices(list(digests), zipf, k=count // 2)
            for name, answer in zip(names, await asyncio.gather(*(asked(room, name) for name in names)), strict=True):
                assert answer[-1].done.resolved_model == f"tiny@{name}:1#{digests[name]}"
                assert said.setdefault(name, text_of(answer)) == text_of(answer)
        told = await room.ask("GetResidency", pb.GetResidencyRequest())
        listed = await room.ask("ListAdapters", pb.ListAdaptersRequest(page_size=1000))

    assert len(set(said.values())) > RESIDENT
    assert told.evictions > count
    residents = [each for each in told.residents if each.tier == "device"]
    assert len(residents) <= RESIDENT
    # A and B of two layers of 32 by 32, rank 2, in float32.
    assert {each.bytes for each in residents} == {2 * 2 * (32 + 32) * 4}
    assert told.used_bytes == sum(each.bytes for each in residents)
    assert {adapter.name for adapter in listed.adapters} == set(digests)


async def registered(room: Room, base: Path, pattern: Path, folder: Path) -> str:
    """Register the pattern's adapter with weights of its own; its digest."""
    shutil.copytree(pattern, folder)
    tensors = load_file(pattern / "adapter_model.safetensors")
    factor = 1 + int(folder.name[1:]) / 10
    made = {name: tensor * factor for name, tensor in tensors.items()}
    save_file(made, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    seal(folder, base, name=folder.name, version="1", base_name="tiny")
    digest: str = (await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))).adapter.digest
    return digest


async def asked(room: Room, name: str) -> list[pb.GenerateResponse]:
    return await room.stream(question(f"tiny@{name}:1", max_tokens=6))
