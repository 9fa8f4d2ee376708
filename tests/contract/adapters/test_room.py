"""The whole room over gRPC: real engine, real gate, real database."""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.events.v1 import events_pb2
from catena.api.types.v1 import types_pb2 as types
from catena.artifacts import manifest
from catena.artifacts.signature import sign
from catena.artifacts.tar import pack
from catena.kit.bus import open_bus
from catena.kit.config import BusConfig, House, ModelConfig
from catena.kit.errors import CatenaError, Conflict, Denied, Invalid, Missing
from catena.kit.event import Event
from catena.kit.testing import eventually, nats_server
from tests.contract.adapters.conftest import MODELS, Room, new_adapter, new_house, open_room

pytestmark = pytest.mark.asyncio(loop_scope="module")


def question(model: str, text: str = "upper: hello", **sampling: Any) -> pb.GenerateRequest:
    sampling = {"max_tokens": 30, "temperature": 0.0} | sampling
    message = types.ChatMessage(role="user", content=text)
    return pb.GenerateRequest(
        model=model, request=types.ChatRequest(messages=[message], sampling=types.Sampling(**sampling))
    )


def text_of(answers: list[pb.GenerateResponse]) -> str:
    return "".join(delta.text for answer in answers for delta in answer.deltas)


async def register(room: Room, folder: Path, tenant: str = "acme") -> pb.Adapter:
    answer = await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(archive=pack(folder)), tenant)
    adapter: pb.Adapter = answer.adapter
    return adapter


async def refusal(room: Room, request: pb.GenerateRequest, tenant: str = "acme") -> CatenaError:
    with pytest.raises(CatenaError) as caught:
        await room.stream(request, tenant)
    return caught.value


async def test_an_adapter_lives_from_registration_to_withdrawal(room: Room) -> None:
    plain = await room.stream(question("demo-large"))
    first = await register(room, new_adapter(room.house, "shout", "1"))
    again = await register(room, new_adapter(room.house, "shout", "1"))
    second = await register(room, new_adapter(room.house, "shout", "2", seed=2))
    assert (first.digest, first.base, list(first.tasks), first.signer) == (
        again.digest, "demo-large", ["shout"], "trainer",
    )  # fmt: skip
    assert (first.rank, first.training_rows, first.metrics["accuracy"]) == (8, 200, 0.9)
    assert (await refusal(room, question("demo-large@shout"))).code == "unknown_adapter"

    stable = pb.SetAliasRequest(base="demo-large", name="shout", alias="stable", version="1")
    await room.ask("SetAlias", stable)
    answers = await room.stream(question("demo-large@shout"))
    assert answers[-1].done.resolved_model == f"demo-large@shout:1#{first.digest}"
    assert text_of(answers) != text_of(plain)

    with pytest.raises(Conflict) as moved:
        await room.ask("SetAlias", pb.SetAliasRequest(base="demo-large", name="shout", alias="stable", version="2"))
    assert moved.value.code == "alias_moved"
    stable.version, stable.expected_digest = "2", first.digest
    pointed = await room.ask("SetAlias", stable)
    assert (pointed.adapter.version, list(pointed.adapter.aliases)) == ("2", ["stable"])
    answers = await room.stream(question("demo-large@shout"))
    assert answers[-1].done.resolved_model.endswith(second.digest)

    await room.ask("DeleteAdapter", pb.DeleteAdapterRequest(model="demo-large@shout:2", reason="worse"))
    assert (await refusal(room, question("demo-large@shout:2"))).code == "adapter_withdrawn"
    assert (await refusal(room, question("demo-large@shout"))).code == "unknown_adapter"
    assert text_of(await room.stream(question("demo-large@shout:1"))) == text_of(
        await room.stream(question("demo-large@shout:1"))
    )

    async def used() -> bool:
        found = await room.ask("GetAdapter", pb.GetAdapterRequest(model="demo-large@shout:1"))
        return bool(found.adapter.uses == 3 and found.adapter.last_used_s > 0)

    await eventually(used)


async def test_what_was_registered_is_there_after_a_restart(house: House) -> None:
    async with open_room(house) as room:
        await register(room, new_adapter(house, "shout"))
        await room.ask("Pin", pb.PinRequest(model="demo-large@shout:1", pinned=True))
        before = text_of(await room.stream(question("demo-large@shout:1")))

    async with open_room(house) as room:
        assert text_of(await room.stream(question("demo-large@shout:1"))) == before
        residents = (await room.ask("GetResidency", pb.GetResidencyRequest())).residents
        assert [(resident.model, resident.pinned) for resident in residents] == [("demo-large@shout:1", True)]


async def test_tenants_see_their_own_adapters_and_the_shared_ones(room: Room) -> None:
    await register(room, new_adapter(room.house, "ours"), "acme")
    await register(room, new_adapter(room.house, "all", seed=3), "shared")

    async def names(tenant: str) -> list[str]:
        listed = await room.ask("ListAdapters", pb.ListAdaptersRequest(), tenant)
        return [adapter.name for adapter in listed.adapters]

    assert {"all", "ours"} <= set(await names("acme"))
    assert "all" in await names("other")
    assert "ours" not in await names("other")
    assert (await refusal(room, question("demo-large@ours:1"), "other")).code == "unknown_adapter"
    assert await room.stream(question("demo-large@all:1"), "other")
    with pytest.raises(Missing):
        await room.ask("DeleteAdapter", pb.DeleteAdapterRequest(model="demo-large@all:1"), "other")


async def test_listing_goes_page_by_page(room: Room) -> None:
    for name in ("page-b", "page-a", "page-c"):
        await register(room, new_adapter(room.house, name, seed=ord(name[-1])), "pages")
    found, token = [], ""

    while True:
        request = pb.ListAdaptersRequest(base="demo-large", page_size=1, page_token=token)
        page = await room.ask("ListAdapters", request, "pages")
        found += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
        if not token:
            break

    by_task = await room.ask("ListAdapters", pb.ListAdaptersRequest(page_size=1, task="page-c"), "pages")
    assert found == sorted(set(found))
    assert {"page-a", "page-b", "page-c"} <= set(found)
    assert [adapter.name for adapter in by_task.adapters] == ["page-c"]
    assert not (await room.ask("ListAdapters", pb.ListAdaptersRequest(base="demo-small"), "pages")).adapters
    with pytest.raises(Invalid):
        await room.ask("ListAdapters", pb.ListAdaptersRequest(page_token="tampered"))


async def test_the_least_recently_used_adapter_makes_room(house: House) -> None:
    async with open_room(house, max_resident=2, eviction="lru") as room:
        for seed, name in enumerate("abc"):
            await register(room, new_adapter(house, name, seed=seed + 1))
        await room.ask("Load", pb.LoadRequest(model="demo-large@a:1"))
        await room.ask("Load", pb.LoadRequest(model="demo-large@b:1"))
        await room.ask("Load", pb.LoadRequest(model="demo-large@a:1"))

        loaded = await room.ask("Load", pb.LoadRequest(model="demo-large@c:1"))

        told = await room.ask("GetResidency", pb.GetResidencyRequest())
        assert [(resident.model, resident.tier) for resident in told.residents] == [
            ("demo-large@c:1", "device"),
            ("demo-large@a:1", "device"),
            ("demo-large@b:1", "host"),
        ]
        assert told.used_bytes == 2 * loaded.bytes
        assert loaded.duration_ms > 0
        assert (await room.ask("Load", pb.LoadRequest(model="demo-large@c:1"))).duration_ms == 0
        freed = await room.ask("Unload", pb.UnloadRequest(model="demo-large@c:1"))
        assert freed.bytes == loaded.bytes
        # More adapters than may be resident, all at once: each waits its turn and answers.
        names = [f"demo-large@{name}:1" for name in "abcabc"]
        answers = await asyncio.gather(*(room.stream(question(name)) for name in names))
        assert [answer[-1].done.resolved_model.partition("#")[0] for answer in answers] == names


async def test_a_composition_is_neither_of_its_parts(room: Room) -> None:
    for seed, name in enumerate("ab"):
        await register(room, new_adapter(room.house, name, seed=seed + 1))

    answers = [
        await room.stream(question(f"demo-large@{name}"))
        for name in ("a:1", "b:1", "{a:1=0.7,b:1=0.3}", "{b:1=0.0001,a:1=1}")
    ]

    assert len({text_of(answer) for answer in answers[:3]}) == 3
    assert text_of(answers[3]) == text_of(answers[0])
    assert answers[2][-1].done.resolved_model.startswith("demo-large@{a:1=0.7,b:1=0.3}#")


async def test_bases_are_listed_with_their_facts(room: Room) -> None:
    await room.ask("Load", pb.LoadRequest(model="demo-small"))
    bases = (await room.ask("ListBases", pb.ListBasesRequest())).bases

    assert [base.name for base in bases] == ["demo-large", "demo-small"]
    small = bases[1]
    assert (small.architecture, small.resident, small.dtype) == ("LlamaForCausalLM", True, "float32")
    assert 4 * small.parameters <= small.bytes <= 5 * small.parameters  # a tied head may be held packed, too
    assert len(small.digest) == 64


async def test_a_base_that_cannot_be_loaded_says_why_until_it_can(tmp_path: Path) -> None:
    house = new_house(tmp_path / "home")
    later = tmp_path / "later"
    (tmp_path / "empty").mkdir()
    broken = [
        ModelConfig(name="later", path=str(later)),
        ModelConfig(name="hubby", path="org/hub-id"),
        ModelConfig(name="pathless"),
        ModelConfig(name="empty", path=str(tmp_path / "empty")),
    ]
    house = msgspec.structs.replace(house, models=[*house.models, *broken])
    async with open_room(house, warm=False) as room:

        async def problems() -> dict[str, str]:
            bases = (await room.ask("ListBases", pb.ListBasesRequest())).bases
            return {base.name: base.problem for base in bases}

        told = await problems()
        assert (told["demo-large"], told["demo-small"], told["empty"]) == ("", "", "")
        assert told["later"].startswith(f"base later: no folder at {later}; correct its path")
        assert "set adapters.hub" in told["hubby"]
        assert told["pathless"] == "base pathless has no path; name its folder under `models`"

        refused = await refusal(room, question("empty"))
        assert (await problems())["empty"] == refused.message
        assert (await refusal(room, question("later"))).message == told["later"]
        shutil.copytree(MODELS / "demo-small", later)
        assert (await problems())["later"] == ""
        assert text_of(await room.stream(question("later")))


async def test_speculation_bills_the_draft(room: Room) -> None:
    request = question("demo-large")
    plain = await room.stream(request)
    request.draft_model = "demo-small"

    drafted = await room.stream(request)

    assert text_of(drafted) == text_of(plain)
    done = drafted[-1].done
    assert 0 < done.accepted_tokens <= done.drafted_tokens == done.draft_usage.output_tokens
    assert done.draft_usage.input_tokens == done.usage.input_tokens


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "nobody"}, "unknown_model"),
    ({"model": "demo-large@"}, "bad_model_name"),
    ({"model": "demo-large@nobody"}, "unknown_adapter"),
    ({"model": "demo-large", "temperature": float("nan")}, "bad_sampling"),
    ({"model": "demo-large", "top_p": 1.5}, "bad_sampling"),
    ({"model": "demo-large", "n": 99}, "bad_sampling"),
    ({"model": "demo-large", "min_p": -1.0}, "bad_sampling"),
    ({"model": "demo-large", "repetition_penalty": float("nan")}, "bad_sampling"),
    ({"model": "demo-large", "logit_bias": {5: 200.0}}, "bad_sampling"),
    ({"model": "demo-large", "logit_bias": {9999: 1.0}}, "bad_sampling"),
    ({"model": "demo-large", "text": "x" * 5000}, "context_length_exceeded"),
]


@pytest.mark.parametrize(("change", "code"), BAD)
async def test_bad_questions_are_refused_with_a_code(room: Room, change: dict[str, Any], code: str) -> None:
    assert (await refusal(room, question(**change))).code == code


async def test_what_this_engine_cannot_do_is_said(room: Room) -> None:
    images, tools, both, empty = (question("demo-small") for _ in range(4))
    images.request.messages[0].images.add(url="data:image/png;base64,AA==")
    tools.request.tools.add(name="no such name")
    both.request.tools.add(name="search")
    both.request.tool_choice = "required"
    both.request.regex = "[a-z]+"
    empty.request.ClearField("messages")
    codes = [(await refusal(room, request)).code for request in (images, tools, both, empty)]

    assert codes == ["images_unsupported", "bad_tools", "bad_constraint", "bad_request"]


async def test_answers_look_as_they_were_asked_to(room: Room) -> None:
    text, struct, regex, choice = (question("demo-large", temperature=1.0, max_tokens=200) for _ in range(4))
    wanted = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}}}
    wanted |= {"required": ["n"], "additionalProperties": False}
    text.request.json_schema_text = json.dumps(wanted)
    struct.request.json_schema.update(wanted)
    regex.request.regex = "[xyz]{5}"
    choice.request.choices.extend(["left", "right"])

    told = [await room.stream(asked) for asked in (text, struct, regex, choice)]

    for answer in told[:2]:
        assert 1 <= json.loads(text_of(answer))["n"] <= 99
    assert re.fullmatch("[xyz]{5}", text_of(told[2]))
    assert text_of(told[3]) in ("left", "right")
    assert {answer[-2].deltas[-1].finish_reason for answer in told} == {"stop"}


async def test_draws_follow_the_sampling_that_travels_with_them(room: Room) -> None:
    plain = question("demo-large", max_tokens=8)
    only, keep, biased = (question("demo-large", temperature=2.0, max_tokens=8) for _ in range(3))
    only.request.sampling.top_k = 1
    keep.request.sampling.min_p = 1.0
    biased.request.sampling.logit_bias[ord("q")] = 100.0
    shy = question("demo-large", max_tokens=30)
    shy.request.sampling.repetition_penalty = 50.0

    texts = [text_of(await room.stream(asked)) for asked in (plain, only, keep, biased, shy)]

    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == "q" * 8
    assert len(set(texts[4])) == len(texts[4])


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("json_schema_text", '{"type": "nonsense"}', "bad_schema"),
        ("json_schema_text", "{", "bad_schema"),
        ("regex", "a(", "bad_regex"),
        ("regex", "a" * 300_000, "bad_constraint"),
    ],
)
async def test_constraints_that_cannot_be_compiled_are_refused(room: Room, field: str, value: str, code: str) -> None:
    asked = question("demo-small")
    setattr(asked.request, field, value)

    assert (await refusal(room, asked)).code == code


async def test_unsigned_and_strangely_signed_adapters_are_refused(house: House) -> None:
    async with open_room(house, warm=False) as room:
        with pytest.raises(Denied) as unsigned:
            await register(room, new_adapter(house, "quiet", signed=False))
        (house.folder("keys", "trusted") / "trainer.pub").unlink()
        with pytest.raises(Denied) as stranger:
            await register(room, new_adapter(house, "shout"))
        assert list(house.folder("artifacts").glob("??/*")) == []

    assert unsigned.value.code == "adapter_unsigned"
    assert stranger.value.code == "adapter_wrong_key"


async def test_a_stored_adapter_that_was_tampered_with_is_never_loaded(room: Room) -> None:
    adapter = await register(room, new_adapter(room.house, "victim", seed=77))
    await room.ask("Unload", pb.UnloadRequest(model="demo-large@victim:1"))
    weights = next(room.house.folder("artifacts").glob(f"*/{adapter.digest}/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)

    refused = await refusal(room, question("demo-large@victim:1"))

    assert refused.code == "adapter_tampered"
    assert "is not what trainer signed: adapter_model.safetensors;" in refused.message


def flip_a_byte(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)


def add_a_file(folder: Path) -> None:
    (folder / "extra.json").write_text("{}")


def add_a_link(folder: Path) -> None:
    (folder / "LICENSE").symlink_to("/etc/hostname")


def add_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def change_the_rank(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))


def poison(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)


def change_the_base(folder: Path) -> None:
    card = manifest.read(folder)
    manifest.write(folder, msgspec.structs.replace(card, base_digest="0" * 64))


TAMPERED = [
    (flip_a_byte, False, "adapter_tampered"),
    (add_a_file, False, "adapter_unsafe_file"),
    (add_a_link, False, "adapter_unsafe_file"),
    (add_a_pickle, False, "adapter_unsafe_file"),
    (change_the_rank, True, "adapter_bad_rank"),
    (poison, True, "adapter_not_finite"),
    (change_the_base, True, "adapter_base_mismatch"),
]


@pytest.mark.parametrize(("tamper", "resigned", "code"), TAMPERED)
async def test_a_tampered_folder_is_refused_with_its_reason(
    room: Room, tmp_path: Path, tamper: Callable[[Path], None], resigned: bool, code: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(new_adapter(room.house, "honest", seed=5), folder)
    tamper(folder)
    if resigned:
        manifest.seal(folder, manifest.read(folder))
        sign(folder, room.house.folder("keys") / "trainer.pem")

    with pytest.raises(CatenaError) as caught:
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))

    assert caught.value.code == code


async def test_one_version_holds_one_digest(room: Room) -> None:
    await register(room, new_adapter(room.house, "single", seed=1))
    other = new_adapter(room.house, "single", folder="single-again", seed=2)

    with pytest.raises(Conflict) as taken:
        await register(room, other)

    assert taken.value.code == "version_taken"


async def test_the_library_is_registered_for_everybody(house: House) -> None:
    library = house.folder("library")
    shutil.copytree(new_adapter(house, "shout"), library / "shout")
    shutil.copytree(new_adapter(house, "quiet", signed=False), library / "quiet")
    async with open_room(house, library=str(library)) as room:

        async def there() -> bool:
            listed = await room.ask("ListAdapters", pb.ListAdaptersRequest())
            return [(a.name, list(a.aliases)) for a in listed.adapters] == [("shout", ["stable"])]

        await eventually(there, timeout_s=60)
        assert await room.stream(question("demo-large@shout"), "anybody")


async def test_a_path_that_is_no_adapter_is_refused(room: Room, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(tmp_path / "nowhere")))
    with pytest.raises(Invalid):
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest())


async def test_changes_are_told_to_the_world(house: House, tmp_path: Path) -> None:
    heard: list[Event] = []

    async def hear(event: Event) -> None:
        heard.append(event)

    async with nats_server(tmp_path / "nats") as url, open_bus(url, name="test") as bus:
        await bus.ensure_streams()
        watching = asyncio.create_task(bus.watch(["adapters.*.*"], hear, since_now=False))
        house_with_bus = House(home=house.home, auth=house.auth, models=house.models, bus=BusConfig(url=url))
        async with open_room(house_with_bus) as room:
            adapter = await register(room, new_adapter(house, "shout"))
            alias = pb.SetAliasRequest(base="demo-large", name="shout", alias="stable", version="1")
            await room.ask("SetAlias", alias)
            await room.ask("SetAlias", alias)
            await room.ask("DeleteAdapter", pb.DeleteAdapterRequest(model="demo-large@shout:1", reason="why not"))

            async def all_told() -> bool:
                return len(heard) >= 6

            await eventually(all_told, timeout_s=60)
        watching.cancel()

    kinds = [event.type.removeprefix("adapters.") for event in heard if "residency" not in event.type]
    assert kinds == ["adapter.registered", "adapter.aliased", "adapter.withdrawn", "adapter.aliased"]
    assert {event.tenant for event in heard} == {"acme"}
    tiers = [events_pb2.ResidencyChanged.FromString(e.data).tier for e in heard if "residency" in e.type]
    assert tiers == ["device", ""]
    aliased = [events_pb2.AdapterAliased.FromString(e.data) for e in heard if e.type.endswith("aliased")]
    assert [told.digest for told in aliased] == [adapter.digest, ""]
    assert aliased[0].generation < aliased[1].generation


async def test_the_room_itself_stays_free_of_torch() -> None:
    code = "import sys, catena.adapters.app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)

    assert await process.wait() == 0
