"""Remote registries: what is looked for, what is told, what is taken."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catena.adapters.core.updates import Finding, Transfer
from catena.artifacts import index, manifest, sidecar
from catena.kit.errors import Denied, Invalid
from tests.contract.adapters.updating import Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


async def test_a_better_version_is_told_and_nothing_of_it_fetched(bench: Bench) -> None:
    bench.publish(bench.make("2", 0.85), bench.make("3", 0.81))

    finding = await bench.found()

    assert (finding.state, finding.version, finding.gain) == ("found", "2", 0.05)
    assert bench.shelf.paths == ["/shelf/index.json"]
    assert [record.version for record in await bench.registry.versions("acme", "base", "code")] == ["1"]


async def test_a_pull_registers_it_under_its_version_and_an_alias_and_leaves_stable_alone(bench: Bench) -> None:
    made = bench.publish(bench.make("2"))

    told = await bench.look(policy="pull")

    finding = told[-1]
    assert isinstance(finding, Finding) and (finding.state, finding.version) == ("pulled", "2")
    counts = [one.done for one in told if isinstance(one, Transfer)]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (0, made.bytes)
    candidate = await bench.registry.find("acme", "base", "code", "candidate")
    assert (candidate.version, candidate.digest) == ("2", made.digest)
    assert (await bench.registry.find("acme", "base", "code", "stable")).version == "1"
    assert list((bench.tmp_path / "fetched" / "them").iterdir()) == []


async def test_what_was_pulled_is_not_fetched_twice_and_is_no_news_once_it_is_stable(bench: Bench) -> None:
    made = bench.publish(bench.make("2"))
    await bench.look(policy="pull")
    fetched = len(bench.shelf.log)

    assert (await bench.found(policy="pull")).state == "pulled"
    assert bench.shelf.paths[fetched:] == ["/shelf/index.json"]

    one = await bench.registry.find("acme", "base", "code", "stable")
    await bench.registry.set_alias("acme", "base", "code", "stable", version="2", expected=one.digest)
    assert (await bench.found(policy="pull")).state == "current"
    assert await bench.findings.seen("acme") == []
    assert made.version == "2"


async def test_the_next_pull_moves_the_alias_on(bench: Bench) -> None:
    for version, accuracy in (("2", 0.85), ("3", 0.9)):
        bench.publish(bench.make(version, accuracy))
        await bench.look(pull=True)

    assert (await bench.registry.find("acme", "base", "code", "candidate")).version == "3"


@pytest.mark.parametrize(
    ("version", "accuracy", "changes", "reason"),
    [
        ("2", 0.82, {}, "gains 2 points of accuracy, not more than 2"),
        ("2", 0.70, {}, "gains -10 points"),
        ("0", 0.99, {}, "no newer version"),
        ("2", 0.99, {"base_digest": "c" * 64}, "for a base with digest cccccccccccc"),
        ("2", 0.99, {"rank": 65}, "rank 65 > 64; raise adapters.max_rank"),
    ],
    ids=["two points", "worse", "older", "another base", "too high a rank"],
)
async def test_what_is_no_better_or_does_not_fit_is_left_with_its_reason(
    bench: Bench, version: str, accuracy: float, changes: dict[str, Any], reason: str
) -> None:
    bench.publish(bench.make(version, accuracy, **changes))

    finding = await bench.found(policy="pull")

    assert (finding.state, finding.version) == ("current", "")
    assert reason in finding.reason
    assert bench.shelf.paths == ["/shelf/index.json"]


async def test_a_version_that_was_withdrawn_here_or_is_another_here_is_no_update(bench: Bench) -> None:
    bench.publish(bench.make("2"), bench.make("3", 0.95))
    await bench.look(pull=True)
    await bench.adapters.withdraw("acme", "base@code:3", "worse")
    other = bench.make("4", 0.99)
    await bench.adapters.register("acme", other)
    manifest.seal(other, msgspec.structs.replace(manifest.read(other), description="another"))
    bench.publish(bench.tmp_path / "made" / "code-3", other)
    four = await bench.registry.find("acme", "base", "code", "4")
    await bench.adapters.withdraw("acme", four.model, "")

    finding = await bench.found(policy="pull")

    assert finding.state == "current"
    assert "3 was withdrawn here" in finding.reason
    assert "4 is registered here with another content" in finding.reason


async def test_what_was_found_stays_known_while_its_base_cannot_be_read(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    await bench.look()
    bench.bases.refusal = Denied("base base was altered", code="base_tampered")

    assert (await bench.trouble()).code == "base_tampered"
    assert [one.state for one in await bench.findings.seen("acme")] == ["found"]


async def test_an_index_that_did_not_change_is_not_read_again(bench: Bench) -> None:
    bench.publish(bench.make("2"))

    async with bench.open() as (updates, source):
        for _ in range(2):
            told = [one async for one in updates.look_at(source)]

    assert isinstance(told[-1], Finding) and told[-1].version == "2"
    (_, first, _), (_, second, _) = bench.shelf.log
    assert (first, second.startswith('"')) == ("", True)


async def test_an_update_is_announced_once(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    for _ in range(3):
        await bench.look()
    await bench.look(pull=True)
    assert [one.state for one in await bench.findings.seen("acme")] == ["pulled"]

    # Registered and aliased, twice: the first version and the one that was pulled.
    told = await bench.announced(6)

    assert [state for state, _ in told] == ["found", "pulled"]
    assert told[0][1] == "base@code:1"


async def test_a_registry_that_flatters_its_adapters_is_found_out(bench: Bench) -> None:
    bench.publish(bench.make("2", 0.5), metrics={"accuracy": 0.99})

    finding = await bench.found(pull=True)

    assert finding.state == "refused"
    assert "accuracy 0.99, its manifest says 0.5" in finding.reason
    assert [record.version for record in await bench.registry.versions("acme", "base", "code")] == ["1"]


async def test_what_the_gate_refused_is_fetched_again_only_when_somebody_asks(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    bench.gate.refusal = Denied("nobody signed it", code="adapter_unsigned")
    assert (await bench.found(policy="pull")).state == "refused"
    bench.shelf.log.clear()

    again = await bench.found(policy="pull")
    assert (again.state, bench.shelf.paths) == ("refused", ["/shelf/index.json"])
    assert "nobody signed it" in again.reason

    bench.gate.refusal = None
    assert (await bench.found(pull=True)).state == "pulled"


async def test_an_index_must_be_signed_where_a_key_is_named(bench: Bench) -> None:
    pair = sidecar.make_key(bench.tmp_path / "keys")
    bench.publish(bench.make("2"))
    listed = bench.shelf.folder / index.INDEX
    assert (await bench.trouble(signed_by=str(pair.public))).code == "registry_missing"

    sidecar.write(listed, pair.private, now_s=0.0)
    assert (await bench.found(signed_by=str(pair.public))).version == "2"

    listed.write_bytes(listed.read_bytes() + b" ")
    assert (await bench.trouble(signed_by=str(pair.public))).code == "model_tampered"


async def test_a_folder_within_reach_is_a_registry_too(bench: Bench) -> None:
    bench.publish(bench.make("2"))

    finding = await bench.found(url="", folder=str(bench.shelf.folder), pull=True)

    assert (finding.state, bench.shelf.log) == ("pulled", [])


async def test_a_folder_leads_nowhere_else(bench: Bench) -> None:
    raw = (bench.tmp_path / "made" / "code-1" / "adapter_model.safetensors").read_bytes()
    outside = {"url": "../made/code-1/adapter_model.safetensors", "bytes": len(raw)}
    bench.publish(bench.make("2"), **outside, sha256=hashlib.sha256(raw).hexdigest())

    finding = await bench.found(url="", folder=str(bench.shelf.folder), pull=True)

    assert finding.reason.startswith("registry_strays")


@pytest.mark.parametrize(
    "settings",
    [{"url": ""}, {"folder": "/x"}, {"alias": "stable"}, {"alias": "2"}, {"hub": "org", "url": "", "signed_by": "/k"}],
    ids=["nowhere", "two places", "stable", "no alias", "a signed hub"],
)
async def test_a_configuration_that_cannot_be_meant_is_refused_at_the_start(
    bench: Bench, settings: dict[str, Any]
) -> None:
    with pytest.raises(Invalid):
        await bench.look(**settings)


async def test_a_registry_is_of_its_tenant_and_shared_ones_are_everybodys(bench: Bench) -> None:
    bench.publish(bench.make("2"))

    async def asked(tenant: str) -> int:
        async with bench.open() as (updates, _):
            return len([one async for one in updates.look(tenant)])

    assert (await asked("acme"), await asked("other")) == (1, 0)
