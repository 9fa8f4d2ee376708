import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from catena.kit.errors import (
    CatenaError,
    Conflict,
    Denied,
    Exhausted,
    Invalid,
    Late,
    Missing,
    Unavailable,
)
from catena.kit.serve import Caller, Limits, as_caller, caller, deadline_s, http_status, open_server
from tests.unit.kit.echo import TOKEN, WAY, Client, dial, echo, name, serving

KINDS = [Invalid, Missing, Conflict, Exhausted, Unavailable, Late, Denied]


@pytest.fixture(autouse=True, params=[True, False], ids=["direct", "socket"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAY, "direct", request.param)


class NoSlot(Exhausted):
    default_code = "no_slot"


@pytest.mark.parametrize("kind", KINDS)
async def test_kind_code_message_and_retry_delay_survive_a_hop(tmp_path: Path, kind: type[CatenaError]) -> None:
    async def fail(_request: bytes) -> bytes:
        raise kind("zu spät: 1 > 0", code="a_code", retry_after_s=2.5)

    async def fail_midway(_request: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await fail(b"")

    async with echo(tmp_path, unary=fail, stream=fail_midway) as client:
        with pytest.raises(kind) as unary:
            await client.say(b"")
        words = aiter(client.recite(b""))
        assert await anext(words) == b"first"
        with pytest.raises(kind) as stream:
            await anext(words)
    for error in (unary.value, stream.value):
        assert (type(error), error.code, error.message, error.retry_after_s) == (kind, "a_code", "zu spät: 1 > 0", 2.5)


async def test_a_rooms_own_error_arrives_as_its_kind_with_its_code(tmp_path: Path) -> None:
    async def fail(_request: bytes) -> bytes:
        async with asyncio.TaskGroup():
            raise NoSlot("every slot is pinned")

    async with echo(tmp_path, unary=fail) as client:
        with pytest.raises(Exhausted) as caught:
            await client.say(b"")
    assert (caught.value.code, caught.value.retry_after_s) == ("no_slot", 0)


async def test_a_long_message_arrives_whole(tmp_path: Path) -> None:
    async def fail(_request: bytes) -> bytes:
        raise Invalid("é" * 3000)

    async with echo(tmp_path, unary=fail) as client:
        with pytest.raises(Invalid, match=r"^é{3000}$"):
            await client.say(b"")


async def test_an_unexpected_exception_is_internal_logged_once_and_tells_nothing(tmp_path: Path) -> None:
    async def fail(_request: bytes) -> bytes:
        raise ValueError("the secret prompt")

    async def fail_midway(_request: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        raise ValueError("the secret prompt")

    async with echo(tmp_path, unary=fail, stream=fail_midway) as client:
        with capture_logs() as logs:
            with pytest.raises(CatenaError, match=r"^internal error [0-9a-f]{32}$") as caught:
                await client.say(b"")
            with pytest.raises(CatenaError, match=r"^internal error [0-9a-f]{32}$"):
                [message async for message in client.recite(b"")]
    assert caught.value.code == "internal"
    assert http_status(caught.value) == 500
    assert [(line["event"], line["verb"]) for line in logs] == [
        ("handler failed", "echo.say"),
        ("handler failed", "echo.recite"),
    ]


async def test_a_cancellation_that_nobody_asked_for_still_answers(tmp_path: Path) -> None:
    async def await_a_cancelled_part(_request: bytes) -> bytes:
        part = asyncio.get_running_loop().create_future()
        part.cancel()
        await part
        return b""

    async with echo(tmp_path, unary=await_a_cancelled_part) as client:
        with pytest.raises(CatenaError, match="internal error"):
            await client.say(b"", timeout=5)


async def test_bytes_that_are_no_message_are_invalid(tmp_path: Path) -> None:
    async def say(request: Any, _context: Any) -> bytes:
        return b"never"

    handler: Any = grpc.unary_unary_rpc_method_handler(say, request_deserializer=json.loads)
    rpc = grpc.method_handlers_generic_handler(name("echo"), {"Say": handler})
    address = f"unix:{tmp_path}/echo.sock"
    async with (
        open_server(address, [lambda s: s.add_generic_rpc_handlers((rpc,))], names=[name("echo")], token=TOKEN),
        dial(address, token=TOKEN) as channel,
    ):
        with pytest.raises(Invalid) as caught:
            await Client(channel, "echo").say(b"{")
    assert caught.value.code == "malformed"


async def test_a_method_that_does_not_exist_is_told(tmp_path: Path) -> None:
    async with echo(tmp_path) as client:
        with pytest.raises(CatenaError) as caught:
            await client.say(b"")
    assert caught.value.code == "unimplemented"


async def test_a_wrong_token_is_refused_before_the_handler_runs(tmp_path: Path) -> None:
    ran = []

    async def note(request: bytes) -> bytes:
        ran.append(request)
        return request

    async with serving(tmp_path, unary=note) as server, dial(server.address, token="another") as channel:
        with pytest.raises(Denied) as caught:
            await Client(channel, "echo").say(b"")
        assert caught.value.code == "bad_token"
        async with grpc.aio.insecure_channel(server.address) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as raw:
                await bare_say(plain)(b"")
    assert raw.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ran == []


def bare_say(channel: grpc.aio.Channel) -> Any:
    """The method as a client without our channel sees it."""
    return channel.unary_unary(f"/{name('echo')}/Say")


async def test_an_empty_token_is_no_token(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"auth\.service_token"):
        async with open_server(f"unix:{tmp_path}/s.sock", [], names=[], token=""):
            pass


async def test_a_malformed_tenant_is_invalid(tmp_path: Path) -> None:
    async with serving(tmp_path, unary=tell_caller) as server, grpc.aio.insecure_channel(server.address) as plain:
        headers = (("authorization", f"Bearer {TOKEN}"), ("x-catena-tenant", "a b"))
        with pytest.raises(grpc.aio.AioRpcError, match="tenant 'a b'"):
            await bare_say(plain)(b"", metadata=headers)


async def tell_caller(_request: bytes) -> bytes:
    return f"{caller().tenant}/{caller().role}".encode()


async def test_tenant_and_role_travel_through_two_hops_and_into_streams(tmp_path: Path) -> None:
    async def recite(_request: bytes) -> AsyncIterator[bytes]:
        yield await tell_caller(b"")
        yield await tell_caller(b"")

    async with echo(tmp_path, "back", unary=tell_caller, stream=recite) as back:

        async def pass_on(request: bytes) -> bytes:
            return bytes(await back.say(request))

        async def pass_stream_on(request: bytes) -> AsyncIterator[bytes]:
            async for message in back.recite(request):
                yield message

        async with echo(tmp_path, "front", unary=pass_on, stream=pass_stream_on) as front:
            assert await front.say(b"") == b"shared/user"
            with as_caller(Caller("acme", "admin")):
                assert await front.say(b"") == b"acme/admin"
                assert [message async for message in front.recite(b"")] == [b"acme/admin"] * 2
            assert await front.say(b"") == b"shared/user"


async def test_a_call_without_deadline_gets_one_and_ends_late(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def hang(_request: bytes) -> bytes:
        assert deadline_s() <= 0.05
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    async with (
        serving(tmp_path, unary=hang, limits=Limits(deadline_s=0.05, grace_s=0)) as server,
        grpc.aio.insecure_channel(server.address) as plain,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bare_say(plain)(b"", metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert left.is_set()


async def test_a_reader_that_stops_without_deadline_loses_its_handler_in_the_end(tmp_path: Path) -> None:
    left = asyncio.Event()

    async with (
        serving(tmp_path, stream=flood(asyncio.Event(), left), limits=Limits(deadline_s=0.1, grace_s=0)) as server,
        grpc.aio.insecure_channel(server.address) as plain,
    ):
        recite: Any = plain.unary_stream(f"/{name('echo')}/Recite")
        call = recite(b"", metadata=(("authorization", f"Bearer {TOKEN}"),))
        await asyncio.wait_for(left.wait(), 30)
        call.cancel()


def flood(entered: asyncio.Event, left: asyncio.Event) -> Any:
    """A stream of messages too large for the transport to take without a reader."""

    async def stream(_request: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                entered.set()
                yield bytes(8 * 1024 * 1024)
        finally:
            left.set()

    return stream


async def test_a_handler_sees_the_deadline_of_its_caller(tmp_path: Path) -> None:
    async def hang(_request: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with echo(tmp_path, unary=hang) as client:
        with pytest.raises(Late, match=r"echo\.say"):
            await client.say(b"", timeout=0.05)


async def test_cancelling_the_caller_reaches_a_handler_parked_at_await(tmp_path: Path) -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(_request: bytes) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    async def hang_midway(request: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await hang(request)

    async with echo(tmp_path, unary=hang, stream=hang_midway) as client:
        for begin in (lambda: client.say(b""), lambda: anext(aiter_from_second(client))):
            entered.clear()
            left.clear()
            waiting = asyncio.ensure_future(awaited(begin()))
            await asyncio.wait_for(entered.wait(), 30)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(left.wait(), 30)


async def awaited(thing: Any) -> Any:
    return await thing


async def aiter_from_second(client: Client) -> AsyncIterator[bytes]:
    async for message in client.recite(b""):
        if message != b"first":
            yield message


async def test_cancelling_the_caller_reaches_a_handler_parked_at_yield(tmp_path: Path) -> None:
    entered, left = asyncio.Event(), asyncio.Event()
    async with echo(tmp_path, stream=flood(entered, left)) as client:
        call = client.recite(b"")
        await asyncio.wait_for(entered.wait(), 30)
        call.cancel()
        await asyncio.wait_for(left.wait(), 30)


async def test_a_reader_that_breaks_off_ends_the_handler(tmp_path: Path) -> None:
    left = asyncio.Event()
    async with echo(tmp_path, stream=flood(asyncio.Event(), left)) as client:
        async for _message in client.recite(b""):
            break
        await asyncio.wait_for(left.wait(), 30)


async def test_calls_are_counted_by_outcome_and_timed(tmp_path: Path) -> None:
    async def answer(request: bytes) -> bytes:
        if request:
            raise Missing("not here")
        return b""

    room = f"counted{'direct' if WAY['direct'] else 'socket'}"
    async with echo(tmp_path, room, unary=answer) as client:
        await client.say(b"")
        await client.say(b"")
        with pytest.raises(Missing):
            await client.say(b"x")

    def count(outcome: str) -> float | None:
        return REGISTRY.get_sample_value(f"catena_{room}_calls_total", {"verb": "say", "outcome": outcome})

    assert (count("ok"), count("missing")) == (2, 1)
    assert REGISTRY.get_sample_value(f"catena_{room}_call_duration_seconds_count", {"verb": "say"}) == 3


async def test_draining_keeps_a_live_stream_and_takes_no_new_calls(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def recite(_request: bytes) -> AsyncIterator[bytes]:
        yield b"1"
        await gate.wait()
        for word in (b"2", b"3"):
            yield word

    async with (
        serving(tmp_path, stream=recite, unary=tell_caller, limits=Limits(grace_s=60)) as server,
        dial(server.address, token=TOKEN) as channel,
    ):
        client = Client(channel, "echo")
        words = aiter(client.recite(b""))
        assert await anext(words) == b"1"
        drained = asyncio.ensure_future(server.drain())

        async def refused() -> None:
            while True:
                await client.say(b"")

        knocking = [asyncio.ensure_future(refused()) for _ in range(8)]
        # One that comes just as gRPC begins to stop is not refused before the stream has ended: do not wait for it.
        await asyncio.wait(knocking, timeout=1)
        gate.set()
        assert [word async for word in words] == [b"2", b"3"]
        await asyncio.wait_for(drained, 30)
        for one in knocking:
            with pytest.raises(Unavailable):
                await one


async def test_calls_cut_by_a_server_that_stops_are_unavailable(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def hang(_request: bytes) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return b""

    async with serving(tmp_path, unary=hang) as server, dial(server.address, token=TOKEN) as channel:
        waiting = asyncio.ensure_future(awaited(Client(channel, "echo").say(b"", timeout=10)))
        await entered.wait()
        await server.drain()
        with pytest.raises(Unavailable):
            await waiting


async def test_health_needs_no_token_and_follows_the_room(tmp_path: Path) -> None:
    async with serving(tmp_path, unary=tell_caller) as server, grpc.aio.insecure_channel(server.address) as plain:
        health: Any = health_pb2_grpc.HealthStub(plain)

        async def status(service: str) -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

        serving_now = health_pb2.HealthCheckResponse.SERVING
        assert (await status(""), await status(name("echo"))) == (serving_now, serving_now)
        await server.mark(serving=False)
        assert await status(name("echo")) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection_lists_the_services_to_who_has_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, dial(server.address, token=TOKEN) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answers = [answer async for answer in call]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {name("echo"), "grpc.health.v1.Health"} <= names


async def test_a_full_server_is_exhausted(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def hang(_request: bytes) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return b""

    async with echo(tmp_path, unary=hang, limits=Limits(concurrent=1, grace_s=0)) as client:
        waiting = asyncio.ensure_future(awaited(client.say(b"")))
        await entered.wait()
        with pytest.raises(Exhausted):
            await client.say(b"")
        waiting.cancel()


async def test_a_dead_processes_socket_is_taken_over_and_a_live_ones_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "echo.sock"))
    async with echo(tmp_path, unary=tell_caller) as client:
        assert await client.say(b"") == b"shared/user"
        with pytest.raises(Conflict, match="another process"):
            async with serving(tmp_path):
                pass
        assert await client.say(b"") == b"shared/user"


async def test_the_sockets_folder_is_private(tmp_path: Path) -> None:
    async with echo(tmp_path / "run", unary=tell_caller):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


async def test_port_zero_picks_a_port_and_tells_it() -> None:
    async with open_server("127.0.0.1:0", [], names=[], token=TOKEN) as server:
        port = int(server.address.rpartition(":")[2])
        assert port > 0
        with pytest.raises(Conflict, match="cannot listen"):
            async with open_server(server.address, [], names=[], token=TOKEN):
                pass
