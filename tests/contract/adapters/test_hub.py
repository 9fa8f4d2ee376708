"""A model hub as a registry, through `huggingface_hub` itself against a stand-in for a hub's server."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from catena.adapters.core.updates import Finding, Transfer
from tests.contract.adapters.standin_hub import Hub, hub_serving
from tests.contract.adapters.updating import SIZE, Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    # Read from the environment once for all, and set wherever nothing should be downloaded.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    async with hub_serving() as serving:
        yield serving


async def test_a_namespaces_repositories_are_looked_through_and_the_better_one_is_pulled(
    bench: Bench, hub: Hub, tmp_path: Path
) -> None:
    made = bench.make("2")
    (made / ".gitattributes").write_text("*.safetensors filter=lfs")
    (made / "training.log").write_text("not an adapter's")
    hub.repositories = {"org/code": made, "org/other": bench.make("7", name="other"), "them/code": bench.make("3")}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    hub.repositories["org/base"] = tmp_path / "plain"
    settings = {"hub": "org", "url": hub.url}

    assert (await bench.found(**settings)).version == "2"
    assert not any(path.endswith(".safetensors") for path in hub.log)

    told = await bench.look(pull=True, **settings)

    assert isinstance(told[-1], Finding) and told[-1].state == "pulled"
    counts = [one for one in told if isinstance(one, Transfer)]
    assert counts[0].done == 0 and counts[-1].done == counts[-1].total > SIZE
    candidate = await bench.registry.find("acme", "base", "code", "candidate")
    stored = bench.gate.store.path(candidate.digest)
    assert {path.name for path in stored.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "catena.json", "README.md",
    }  # fmt: skip
    assert list((tmp_path / "fetched" / "them").iterdir()) == []


async def test_a_repository_that_did_not_change_is_not_read_again(bench: Bench, hub: Hub) -> None:
    hub.repositories = {"org/code": bench.make("2")}
    async with bench.open(hub="org/code", url=hub.url) as (updates, source):
        first = [one async for one in updates.look_at(source)]
        read = hub.manifests
        again = [one async for one in updates.look_at(source)]

    assert isinstance(first[-1], Finding) and first == again
    assert hub.manifests == read > 0


async def test_other_files_than_the_manifest_speaks_of_are_not_let_in(bench: Bench, hub: Hub) -> None:
    hub.repositories = {"org/code": bench.make("2")}
    (hub.repositories["org/code"] / "adapter_model.safetensors").write_bytes(b"other")

    finding = await bench.found(pull=True, hub="org/code", url=hub.url)

    assert (finding.state, finding.reason.split(":")[0]) == ("refused", "offer_untrue")


async def test_a_repository_that_is_too_large_is_not_fetched(bench: Bench, hub: Hub) -> None:
    hub.repositories = {"org/code": bench.make("2")}

    finding = await bench.found(pull=True, hub="org/code", url=hub.url, max_bytes=1000)

    assert finding.reason.startswith("registry_too_large")
    assert not any(path.endswith(".safetensors") for path in hub.log)


async def test_a_repository_that_is_not_there_or_not_for_us_says_so(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await bench.trouble(hub="org/none", url=hub.url)).code == "registry_missing"
    hub.key = "secret"
    hub.repositories = {"org/code": bench.make("2")}
    assert "api_key_env" in (await bench.trouble(hub="org/code", url=hub.url)).message

    monkeypatch.setenv("HUB_KEY", "secret")
    assert (await bench.found(hub="org/code", url=hub.url, api_key_env="HUB_KEY")).version == "2"


async def test_where_hubs_are_switched_off_the_registry_says_so(
    bench: Bench, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    error = await bench.trouble(hub="org/code", url=hub.url)

    assert (error.code, "HF_HUB_OFFLINE" in error.message, hub.log) == ("registry_offline", True, [])


async def test_a_hub_that_nobody_runs_is_told_with_the_cure(bench: Bench, hub: Hub) -> None:
    error = await bench.trouble(hub="org/code", url="http://127.0.0.1:9")

    assert (error.code, "reachable" in error.message) == ("registry_down", True)
