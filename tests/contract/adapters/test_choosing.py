"""The whole room over gRPC: which model answers where a choice is asked for or declared."""

import pytest

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.kit.errors import Missing
from tests.contract.adapters.conftest import Room, new_adapter
from tests.contract.adapters.test_room import question, register

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_auto_and_fallbacks_say_who_answered(room: Room) -> None:
    await register(room, new_adapter(room.house, "poems", seed=21), "autos")
    alias = pb.SetAliasRequest(base="demo-large", name="poems", alias="stable", version="1")
    await room.ask("SetAlias", alias, "autos")
    asked = question("demo-large@auto")

    base = (await room.stream(asked, "autos"))[-1].done
    asked.context.task = "poems"
    best = (await room.stream(asked, "autos"))[-1].done
    selected = await room.ask("SelectAdapter", pb.SelectAdapterRequest(base="demo-large", task="poems"), "autos")
    await room.ask(
        "SetFallbacks", pb.SetFallbacksRequest(model="demo-large@odes", fallbacks=["demo-large@poems"]), "autos"
    )
    instead = (await room.stream(question("demo-large@odes"), "autos"))[-1].done

    assert (base.served, base.resolved_model.startswith("demo-large#")) == ("auto-base", True)
    assert (best.served, best.resolved_model.partition("#")[0]) == ("auto", "demo-large@poems:1")
    assert (selected.model, selected.served) == ("demo-large@poems:1", "auto")
    assert [one.accuracy for one in selected.candidates] == [0.9]
    assert (instead.served, instead.resolved_model) == ("fallback", best.resolved_model)
    assert "odes" in instead.reason
    with pytest.raises(Missing):
        await room.stream(question("demo-large@odes"))


async def test_workflows_profiles_and_updates_can_be_asked_for(room: Room) -> None:
    await register(room, new_adapter(room.house, "intent-classifier", seed=22), "shared")
    alias = pb.SetAliasRequest(base="demo-large", name="intent-classifier", alias="stable", version="1")
    await room.ask("SetAlias", alias, "shared")

    loaded = await room.ask("Preload", pb.PreloadRequest(workflow="content-creation", base="demo-large"))
    profiles = (await room.ask("ListProfiles", pb.ListProfilesRequest())).profiles
    update = await room.ask("RecommendUpdate", pb.RecommendUpdateRequest(model="demo-large@intent-classifier"))

    assert [(one.model.partition("@")[2], one.resident, one.reason) for one in loaded.preloaded] == [
        ("intent-classifier", True, ""),
        ("content-generator", False, "unknown_adapter"),
        ("blog-writer", False, "unknown_adapter"),
    ]
    models = {profile.name: list(profile.models) for profile in profiles}
    assert models["intent-classifier"] == ["demo-large@intent-classifier:1"]
    assert models["blog-writer"] == []
    assert (update.current.version, update.HasField("recommended"), update.reason) == ("1", False, "no newer version")
