"""Ways in, as users take them: the command and the room over gRPC, with the real gate and engine."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from safetensors.torch import load_file, save_file

from catena.adapters.config import RegistryConfig
from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.types.v1 import types_pb2 as types
from catena.artifacts import index, manifest, sidecar, signature
from catena.kit.config import House
from catena.kit.errors import CatenaError, Denied
from catena.kit.testing import eventually
from tests.contract.adapters.conftest import MODELS, TOKEN, Room, new_adapter, open_room
from tests.contract.adapters.making import make_adapter
from tests.contract.adapters.shelf import serving


def question(model: str) -> pb.GenerateRequest:
    message = types.ChatMessage(role="user", content="upper: hello")
    sampling = types.Sampling(max_tokens=12, temperature=0.0)
    return pb.GenerateRequest(model=model, request=types.ChatRequest(messages=[message], sampling=sampling))


async def told(room: Room, model: str, tenant: str = "acme") -> str:
    answers = await room.stream(question(model), tenant)
    return "".join(delta.text for answer in answers for delta in answer.deltas)


async def catena(house: House, *words: str) -> tuple[int, str, str]:
    """What the command does: its status, what it prints, what it complains of."""
    config = Path(house.home) / "catena.yaml"
    models = [{"name": model.name, "path": model.path} for model in house.models]
    config.write_text(json.dumps({"home": house.home, "auth": {"service_token": TOKEN}, "models": models}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "catena.sdk.command", *words, "--config", str(config)),
        env={**os.environ, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def single(house: House, name: str) -> Path:
    """One file and its configuration beside it, as one might have from a download."""
    folder = make_adapter(MODELS / "demo-large", house.folder("made") / f"peft-{name}", seed=3)
    file = house.folder("files") / f"{name}.safetensors"
    shutil.copy(folder / "adapter_model.safetensors", file)
    shutil.copy(folder / "adapter_config.json", file.with_suffix(".json"))
    return file


def flip(path: Path) -> None:
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = -weights[name]
    save_file(weights, path)


async def test_a_single_file_with_its_configuration_registers_by_the_command(house: House) -> None:
    file = single(house, "mine")
    async with open_room(house) as room:
        for _ in range(2):
            rc, out, err = await catena(
                house, "adapters", "register", str(file), "--base", "demo-large", "--as", "mine:1", "--tenant", "acme"
            )
            assert rc == 0, err
            assert json.loads(out)["signer"] == "import"

        assert await told(room, "demo-large@mine:1") != await told(room, "demo-large")

        rc, _, err = await catena(house, "adapters", "register", str(file))
        assert (rc, "--as name:version" in err) == (1, True)
        file.with_suffix(".json").unlink()
        rc, _, err = await catena(house, "adapters", "register", str(file), "--base", "demo-large", "--as", "mine:2")
        assert rc == 1
        assert "mine.json or adapter_config.json" in err


async def test_a_single_file_over_grpc_is_refused_with_the_cure_where_signatures_are_needed(house: House) -> None:
    file = single(house, "mine")
    request = pb.RegisterAdapterRequest(path=str(file), base="demo-large", called="mine:1")
    async with open_room(house) as room:
        with pytest.raises(Denied, match=r"catena adapters register mine\.safetensors") as caught:
            await room.ask("RegisterAdapter", request)
        assert list(house.folder("artifacts").glob("??/*")) == []

    assert caught.value.code == "adapter_unsigned"


async def test_a_single_file_registers_over_grpc_where_none_is_needed_and_its_record_counts(house: House) -> None:
    file = single(house, "mine")
    pair = sidecar.make_key(house.folder("keys"), "them")
    sidecar.write(file, pair.private, now_s=0.0)

    async def register(room: Room, called: str) -> pb.Adapter:
        request = pb.RegisterAdapterRequest(path=str(file), base="demo-large", called=called)
        return (await room.ask("RegisterAdapter", request)).adapter

    async with open_room(house, require_signature=False) as room:
        with pytest.raises(Denied, match="add its signer's RSA key"):
            await register(room, "mine:1")
        shutil.copy(pair.public, house.folder("keys", "trusted") / "them.pub")
        first = await register(room, "mine:1")
        assert (await register(room, "mine:1")).digest == first.digest
        assert await told(room, "demo-large@mine:1") != await told(room, "demo-large")

        flip(file)
        with pytest.raises(Denied) as tampered:
            await register(room, "mine:2")
        with pytest.raises(CatenaError) as unnamed:
            await register(room, "mine")

    assert (tampered.value.code, unnamed.value.code) == ("model_tampered", "bad_name")


async def test_what_the_gate_refused_at_a_load_is_refused_unread_for_a_while_unless_it_is_registered_again(
    house: House,
) -> None:
    async with open_room(house, unknown_ttl_s=3600.0) as room:
        folder = new_adapter(house, "shout")
        adapter = (await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))).adapter
        await room.ask("Unload", pb.UnloadRequest(model="demo-large@shout:1"))
        weights = next(house.folder("artifacts").glob(f"*/{adapter.digest}/*.safetensors"))
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CatenaError, match="import it again") as first:
            await told(room, "demo-large@shout:1")
        weights.write_bytes(whole)
        with pytest.raises(CatenaError) as again:
            await told(room, "demo-large@shout:1")
        assert (first.value.code, first.value.message) == (again.value.code, again.value.message)

        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))
        assert await told(room, "demo-large@shout:1")


async def test_examples_of_bases_are_listed_and_none_is_fetched(house: House) -> None:
    async with open_room(house, warm=False):
        rc, out, err = await catena(house, "models", "examples", "--json")

    assert rc == 0, err
    assert [row["profile"] for row in json.loads(out)] == ["fast", "complex-reasoning", "alternative"]


async def test_a_folder_as_peft_leaves_it_is_refused_with_the_command_that_takes_it_in(house: House) -> None:
    folder = make_adapter(MODELS / "demo-large", house.folder("made") / "plain", seed=4)
    async with open_room(house) as room:
        rc, _, err = await catena(house, "adapters", "register", str(folder))
        assert (rc, "`catena adapters import`" in err) == (1, True)

        words = ("import", str(folder), str(folder.with_name("sealed")), "--base", "demo-large", "--as", "plain:1")
        rc, _, err = await catena(house, "adapters", *words, "--register")
        assert rc == 0, err
        assert await told(room, "demo-large@plain:1", "default") != await told(room, "demo-large")


async def test_a_registry_that_fails_again_and_again_is_logged_once(house: House, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    async with serving(shelf) as served:
        config = RegistryConfig(name="them", url=served.url, plain_http=True, tenant="acme", every_s=0.05)
        with structlog.testing.capture_logs() as logs:
            async with open_room(house, registries=[config], warm=False):
                await eventually(lambda: len(served.log) >= 5)

    failures = [entry for entry in logs if entry["event"] == "registry failed"]
    assert [(entry["registry"], entry["code"]) for entry in failures] == [("them", "registry_missing")]
    assert "publish to it" in failures[0]["error"]


async def test_a_sidecar_is_written_and_verified_by_the_command(house: House, tmp_path: Path) -> None:
    file = single(house, "mine")

    rc, _, err = await catena(house, "models", "sign", str(file))
    assert rc == 0, err
    assert sidecar.sidecar_path(file).name == "mine.safetensors.manifest.json"
    rc, out, _ = await catena(house, "models", "verify", str(file))
    assert (rc, "as it was signed" in out) == (0, True)
    assert sidecar.verify(file, house.folder("keys") / "sidecar.pub").version == "1.0"

    flip(file)
    rc, _, err = await catena(house, "models", "verify", str(file))
    assert (rc, "model_tampered" in err) == (1, True)


def version(house: House, number: str, accuracy: float, *, signed: bool = True) -> Path:
    """A version of the adapter `shout` with an accuracy of its own."""
    folder = new_adapter(house, "shout", number, signed=False, seed=int(number))
    manifest.seal(folder, msgspec.structs.replace(manifest.read(folder), metrics={"accuracy": accuracy}))
    if signed:
        signature.sign(folder, house.folder("keys") / "trainer.pem")
    return folder


async def looked(room: Room, **asked: Any) -> list[tuple[str, str, str]]:
    request = pb.CheckUpdatesRequest(**asked)
    answers = await room.ask_all("CheckUpdates", request)
    updates = [answer.update for answer in answers if answer.WhichOneof("told") == "update"]
    return [(update.version, update.state, update.reason) for update in updates]


async def test_what_one_installation_publishes_another_pulls_through_its_gate(house: House, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    registries = [RegistryConfig(name="them", folder=str(shelf), tenant="acme", every_s=0.0)]
    async with open_room(house) as room:
        for folder in (version(house, "1", 0.6), version(house, "2", 0.9)):
            await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(folder)))
        rc, out, err = await catena(house, "adapters", "publish", str(shelf), "--tenant", "acme", "--json")
        assert rc == 0, err
        assert [row["accuracy"] for row in json.loads(out)] == [0.6, 0.9]
        answer = await told(room, "demo-large@shout:2")

    other = msgspec.structs.replace(house, home=str(tmp_path / "other"))
    shutil.copytree(house.folder("keys", "trusted"), other.folder("keys", "trusted"), dirs_exist_ok=True)
    async with open_room(other, registries=registries) as room:
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(version(house, "1", 0.6))))
        rc, out, _ = await catena(other, "adapters", "updates", "--tenant", "acme", "--json")
        (row,) = json.loads(out)
        assert (rc, row["in use"], row["version"], row["state"]) == (0, "demo-large@shout:1", "2", "found")

        rc, out, _ = await catena(other, "adapters", "updates", "demo-large@shout", "--pull", "--tenant", "acme")
        assert (rc, "pulled" in out) == (0, True)

        assert await told(room, "demo-large@shout:candidate") == answer
        with pytest.raises(CatenaError):
            await told(room, "demo-large@shout")
        assert [state for _, state, _ in await looked(room, known_only=True)] == ["pulled"]
        assert await looked(room, model="demo-large@other") == []

        shutil.rmtree(shelf)
        rc, out, _ = await catena(other, "adapters", "updates", "--tenant", "acme")
        assert (rc, "registry_missing" in out) == (1, True)


async def test_what_nobody_trusted_signed_or_is_for_another_base_is_not_let_in(house: House, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    registries = [RegistryConfig(name="them", folder=str(shelf), tenant="acme", every_s=0.0)]
    async with open_room(house, registries=registries) as room:
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(version(house, "1", 0.6))))
        index.publish([version(house, "2", 0.9, signed=False)], shelf)
        (unsigned,) = await looked(room, pull=True)

        other = version(house, "3", 0.95)
        manifest.seal(other, msgspec.structs.replace(manifest.read(other), base_digest="0" * 64))
        signature.sign(other, house.folder("keys") / "trainer.pem")
        index.publish([other], shelf)
        (misfit,) = await looked(room, pull=True)
        listed = (await room.ask("ListAdapters", pb.ListAdaptersRequest())).adapters

    assert (unsigned[1], unsigned[2].split(":")[0]) == ("refused", "adapter_unsigned")
    assert (misfit[1], "for a base with digest 000000000000" in misfit[2]) == ("current", True)
    assert [adapter.version for adapter in listed] == ["1"]


async def test_a_registry_that_pulls_by_itself_needs_nobody(house: House, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    index.publish([version(house, "2", 0.9)], shelf)
    eager = RegistryConfig(name="them", folder=str(shelf), tenant="acme", policy="pull", every_s=0.2)
    async with open_room(house, registries=[eager]) as room:
        await room.ask("RegisterAdapter", pb.RegisterAdapterRequest(path=str(version(house, "1", 0.6))))

        async def there() -> bool:
            listed = (await room.ask("ListAdapters", pb.ListAdaptersRequest())).adapters
            return [list(adapter.aliases) for adapter in listed if adapter.version == "2"] == [["candidate"]]

        await eventually(there, timeout_s=60)
