"""Bases in a real room: what was altered is refused until it is accepted, and many share one budget."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from catena.adapters.core.errors import UnknownModel
from catena.adapters.drivers.bases import LocalBases
from catena.adapters.drivers.known_bases import SqlKnownBases
from catena.adapters.drivers.refusals import Refusals
from catena.adapters.drivers.tables import METADATA, MIGRATIONS
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.types.v1 import types_pb2 as types
from catena.artifacts.base import BaseRules
from catena.artifacts.signature import make_key, public_keys, sign
from catena.kit.clock import ManualClock
from catena.kit.config import House, ModelConfig
from catena.kit.errors import CatenaError, Conflict, Exhausted
from catena.kit.store import open_store
from catena.kit.testing import sqlite_url
from tests.contract.adapters.conftest import MODELS, Room, new_adapter, open_room
from tests.contract.adapters.making import make_base


def alter(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] = -weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})


class Shelf:
    """One base of which a room after another wants to know."""

    def __init__(self, folder: Path, store: Any) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.known = SqlKnownBases(store, self.clock)
        self.trusted = folder.parent / "trusted"
        self.trusted.mkdir()

    def bases(self, *, signed: bool = False, **accepted: str) -> LocalBases:
        return LocalBases(
            [ModelConfig(name="tiny", path=str(self.folder))],
            keys=lambda: public_keys(self.trusted),
            rules=BaseRules(require_signature=signed),
            hub=False,
            known=self.known,
            accepted=accepted,
            refusals=Refusals(self.clock, 5.0),
        )

    async def refusal(self, bases: LocalBases) -> CatenaError:
        with pytest.raises(CatenaError) as caught:
            await bases.check("tiny")
        return caught.value


@pytest.fixture
async def shelf(tmp_path: Path):
    async with open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store:
        yield Shelf(make_base(tmp_path / "tiny", width=16, layers=1), store)


async def test_a_base_altered_while_nobody_looked_is_refused_with_the_cure(shelf: Shelf) -> None:
    first = await shelf.bases().check("tiny")
    alter(shelf.folder)

    later = shelf.bases()
    error = await shelf.refusal(later)

    assert error.code == "base_tampered"
    assert first.digest in error.message and "`catena models accept tiny`" in error.message
    assert "accept" in later.problem("tiny")


async def test_a_base_altered_between_two_loads_is_refused(shelf: Shelf) -> None:
    bases = shelf.bases()
    await bases.check("tiny")
    alter(shelf.folder)

    assert (await shelf.refusal(bases)).code == "base_tampered"


async def test_what_was_refused_is_not_read_again_for_a_while_and_then_it_is(shelf: Shelf) -> None:
    bases = shelf.bases()
    weights = shelf.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    first = await shelf.refusal(bases)
    weights.write_bytes(whole)

    again = await shelf.refusal(bases)
    shelf.clock.advance(5)

    assert (again.code, again.message) == (first.code, first.message)
    assert (await bases.check("tiny")).name == "tiny"
    assert bases.problem("tiny") == ""


async def test_what_an_operator_accepts_is_served_from_then_on(shelf: Shelf) -> None:
    bases = shelf.bases()
    before = await bases.check("tiny")
    alter(shelf.folder)
    with pytest.raises(Conflict, match="look again"):
        await bases.accept("tiny", before.digest)

    after = await bases.accept("tiny", "")

    assert after.digest != before.digest
    assert (await bases.check("tiny")).digest == (await shelf.bases().check("tiny")).digest == after.digest
    assert bases.problem("tiny") == ""
    with pytest.raises(UnknownModel):
        await bases.accept("none", "")


async def test_the_configuration_can_accept_too_and_comes_first(shelf: Shelf) -> None:
    before = await shelf.bases().check("tiny")
    alter(shelf.folder)
    after = (await shelf.bases().accept("tiny", "")).digest

    error = await shelf.refusal(shelf.bases(tiny=before.digest))
    assert (error.code, "accepted_bases" in error.message) == ("base_tampered", True)
    with pytest.raises(Conflict, match="change it there"):
        await shelf.bases(tiny=before.digest).accept("tiny", "")

    assert (await shelf.bases(tiny=after).check("tiny")).digest == after


async def test_a_signed_base_must_be_signed_by_a_key_that_is_known_now(shelf: Shelf, tmp_path: Path) -> None:
    pair = make_key(tmp_path / "keys", "us")
    assert (await shelf.refusal(shelf.bases(signed=True))).code == "base_unsigned"
    sign(shelf.folder, pair.private, "base")
    bases = shelf.bases(signed=True)
    assert (await shelf.refusal(bases)).code == "base_wrong_key"

    shutil.copy(pair.public, shelf.trusted / "us.pub")
    shelf.clock.advance(5)
    await bases.check("tiny")
    (shelf.folder / "generation_config.json").write_text("{}")

    assert (await shelf.refusal(bases)).code == "base_tampered"


def question(model: str) -> pb.GenerateRequest:
    message = types.ChatMessage(role="user", content="upper: hello")
    sampling = types.Sampling(max_tokens=8, temperature=0.0)
    return pb.GenerateRequest(model=model, request=types.ChatRequest(messages=[message], sampling=sampling))


async def told(room: Room, model: str) -> str:
    return "".join(delta.text for answer in await room.stream(question(model)) for delta in answer.deltas)


async def resident(room: Room) -> set[str]:
    listed = await room.ask("ListBases", pb.ListBasesRequest())
    assert listed.used_bytes == sum(base.bytes for base in listed.bases if base.resident)
    return {base.name for base in listed.bases if base.resident}


def house_with_a_copy(house: House, tmp_path: Path) -> tuple[House, Path]:
    copy = tmp_path / "copy"
    shutil.copytree(MODELS / "demo-small", copy)
    return msgspec.structs.replace(house, models=[*house.models, ModelConfig(name="copy", path=str(copy))]), copy


async def test_an_accepted_base_answers_with_its_new_weights(house: House, tmp_path: Path) -> None:
    changed, copy = house_with_a_copy(house, tmp_path)
    async with open_room(changed) as room:
        before = await told(room, "copy")
        alter(copy)
        await room.ask("Unload", pb.UnloadRequest(model="copy"))
        with pytest.raises(CatenaError) as caught:
            await told(room, "copy")
        assert caught.value.code == "base_tampered"
        (problem,) = [
            base.problem for base in (await room.ask("ListBases", pb.ListBasesRequest())).bases if base.name == "copy"
        ]
        assert "catena models accept copy" in problem

        accepted = (await room.ask("AcceptBase", pb.AcceptBaseRequest(name="copy"))).base

        assert len(accepted.digest) == 64
        after = await told(room, "copy")
        assert after != before
    async with open_room(changed) as room:
        assert await told(room, "copy") == after


async def test_bases_take_turns_within_their_budget_and_answer_the_same(house: House, tmp_path: Path) -> None:
    house, _ = house_with_a_copy(house, tmp_path)
    async with open_room(house) as room:
        free = {model: await told(room, model) for model in ("demo-large", "demo-small", "copy")}
        sizes = {b.name: b.bytes for b in (await room.ask("ListBases", pb.ListBasesRequest())).bases}
    adapter = new_adapter(house, "shout")
    async with open_room(house, base_budget_bytes=sizes["demo-large"] + sizes["demo-small"]) as room:
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(adapter)))
        for _ in range(2):
            for model, text in free.items():
                assert await told(room, model) == text
        assert "copy" in await resident(room)

        both = await asyncio.gather(*(told(room, model) for model in [*free, *free]))
        assert both == [*free.values(), *free.values()]

        await room.ask("Pin", pb.PinRequest(model="demo-large@shout:1", pinned=True))
        await room.ask("Load", pb.LoadRequest(model="demo-large@shout:1"))
        await told(room, "copy")
        assert await resident(room) == {"demo-large", "copy"}

        freed = await room.ask("Unload", pb.UnloadRequest(model="demo-large"))
        assert freed.bytes == sizes["demo-large"]
        residents = (await room.ask("GetResidency", pb.GetResidencyRequest())).residents
        assert [one.model for one in residents] == []


async def test_a_base_over_the_budget_is_refused_with_the_cure(house: House) -> None:
    async with open_room(house, base_budget_bytes=1000) as room:
        with pytest.raises(Exhausted, match="base_budget_bytes") as caught:
            await told(room, "demo-small")

    assert caught.value.code == "no_adapter_room"
