"""Fetching from a registry over real HTTP, and all that can go wrong with a server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from catena.adapters.core.updates import Finding, Transfer
from catena.adapters.drivers.registries.web import ATTEMPTS
from catena.artifacts import index
from catena.kit.errors import Denied
from tests.contract.adapters.shelf import cut, endless, instead, redirect, serving, status, well
from tests.contract.adapters.updating import Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


async def test_a_body_that_is_cut_is_gone_on_with_where_it_broke_off(bench: Bench) -> None:
    made = bench.publish(bench.make("2"))
    bench.shelf.faults = [well, cut]

    assert (await bench.found(pull=True)).state == "pulled"

    ranges = [asked for path, asked, _ in bench.shelf.log if path.endswith(".tar")]
    assert ranges[0] == ""
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) < made.bytes
    assert len(bench.waits) == 1


async def test_a_fetch_that_broke_off_is_gone_on_with_by_the_next_look(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    bench.shelf.faults = [well, cut, *[status(503)] * (ATTEMPTS - 1)]

    assert (await bench.trouble(pull=True)).code == "registry_down"
    assert (await bench.findings.seen("acme"))[0].state == "found"
    bench.shelf.log.clear()
    assert (await bench.found(pull=True)).state == "pulled"

    assert [asked[:6] for path, asked, _ in bench.shelf.log if path.endswith(".tar")] == ["bytes="]


async def test_a_server_that_knows_no_ranges_is_read_from_the_start(bench: Bench) -> None:
    made = bench.publish(bench.make("2"))
    whole = instead((bench.shelf.folder / made.url).read_bytes())
    bench.shelf.faults = [well, cut, whole]

    assert (await bench.found(pull=True)).state == "pulled"


@pytest.mark.parametrize("fault", [instead(b"short"), status(416)], ids=["shorter", "no such range"])
async def test_what_cannot_be_gone_on_with_is_begun_anew(bench: Bench, fault: Any) -> None:
    bench.publish(bench.make("2"))
    bench.shelf.faults = [well, cut, fault]

    assert (await bench.found(pull=True)).state == "pulled"


async def test_other_bytes_than_the_index_says_reach_neither_store_nor_registry(bench: Bench) -> None:
    made = bench.publish(bench.make("2"))
    archive = bench.shelf.folder / made.url
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    before = bench.gate.store.list()

    finding = await bench.found(pull=True)

    assert finding.state == "refused"
    assert finding.reason.startswith("offer_untrue")
    assert bench.gate.store.list() == before
    assert list((bench.tmp_path / "fetched" / "them").iterdir()) == []


async def test_more_bytes_than_announced_are_not_read(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    bench.shelf.faults = [well, endless]

    assert (await bench.found(pull=True)).reason.startswith("registry_too_large")


async def test_what_is_larger_than_wished_is_not_even_asked_for(bench: Bench) -> None:
    bench.publish(bench.make("2"))

    assert "raise max_bytes" in (await bench.found(pull=True, max_bytes=1000)).reason
    assert bench.shelf.paths == ["/shelf/index.json"]


async def test_a_server_that_is_down_is_tried_a_few_times_with_growing_pauses(bench: Bench) -> None:
    bench.shelf.faults = [status(503)] * 9

    error = await bench.trouble()

    assert error.code == "registry_down"
    assert len(bench.shelf.log) == ATTEMPTS
    assert len(bench.waits) == ATTEMPTS - 1
    assert bench.waits[-1] > bench.waits[0]


async def test_a_server_that_nobody_runs_is_told_with_the_cure(bench: Bench) -> None:
    error = await bench.trouble(url="http://127.0.0.1:9/")

    assert error.code == "registry_down"
    assert "is it running" in error.message


@pytest.mark.parametrize(
    ("fault", "code"),
    [(status(403), "registry_denied"), (status(404), "registry_missing"), (instead(b"{"), "adapter_bad_index")],
)
async def test_what_no_pause_cures_is_not_tried_again(bench: Bench, fault: Any, code: str) -> None:
    bench.shelf.faults = [fault]

    assert (await bench.trouble()).code == code
    assert len(bench.shelf.log) == 1


async def test_an_endless_index_is_read_no_further(bench: Bench) -> None:
    bench.shelf.faults = [instead(bytes(index.MAX_INDEX_BYTES + 1))]

    assert (await bench.trouble()).code == "registry_too_large"


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/x.tar", "http://169.254.169.254/latest", "//evil.example/x.tar", "http://u:p@127.0.0.1/x"],
)
async def test_an_index_sends_nobody_to_another_server(bench: Bench, url: str) -> None:
    bench.publish(bench.make("2"), url=url)

    assert (await bench.found(pull=True)).reason.startswith("registry_strays")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
async def test_an_index_leads_to_nothing_but_the_web(bench: Bench, url: str) -> None:
    bench.publish(bench.make("2"), url=url)

    assert (await bench.found(pull=True)).reason.startswith("bad_registry")


async def test_a_redirect_stays_with_the_hosts_that_are_allowed(bench: Bench, tmp_path: Path) -> None:
    made = bench.publish(bench.make("2"))
    async with serving(bench.shelf.folder) as other:
        target = f"{other.url}{made.url}"
        bench.shelf.faults = [well, redirect(target)]
        assert (await bench.found(pull=True)).reason.startswith("registry_strays")
        assert other.log == []

        bench.shelf.faults = [well, redirect(target)]
        place = other.url.split("/")[2]
        assert (await bench.found(pull=True, hosts=[place], api_key_env="")).state == "pulled"
        assert other.paths == [f"/shelf/{made.url}"]


async def test_a_key_is_shown_to_the_registry_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELF_KEY", "secret")
    made = bench.publish(bench.make("2"))
    async with serving(bench.shelf.folder) as other:
        bench.shelf.faults = [well, redirect(f"{other.url}{made.url}")]
        await bench.look(pull=True, hosts=[other.url.split("/")[2]], api_key_env="SHELF_KEY")

        assert {key for _, _, key in bench.shelf.log} == {"Bearer secret"}
        assert {key for _, _, key in other.log} == {""}


async def test_a_circle_of_redirects_ends(bench: Bench) -> None:
    bench.shelf.faults = [redirect(f"{bench.shelf.url}index.json")] * 9

    assert (await bench.trouble()).code == "bad_registry"
    assert len(bench.shelf.log) == 4


async def test_plain_http_has_to_be_wished_for(bench: Bench) -> None:
    with pytest.raises(Denied, match="plain_http"):
        await bench.look(plain_http=False)


async def test_leaving_a_fetch_keeps_what_came_and_lets_the_next_look_in(bench: Bench) -> None:
    bench.publish(bench.make("2"))
    async with bench.open() as (updates, source):
        told = updates.look_at(source, pull=True)
        while not isinstance(one := await anext(told), Transfer) or not one.done:
            pass
        await told.aclose()

        rest = [one async for one in updates.look_at(source, pull=True)]

    assert isinstance(rest[-1], Finding) and rest[-1].state == "pulled"
