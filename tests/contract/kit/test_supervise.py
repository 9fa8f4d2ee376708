import asyncio
import itertools
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import structlog

from catena.kit import nats_server as embedded
from catena.kit.errors import Conflict, Missing, Unavailable
from catena.kit.supervise import Child, Pace, Supervisor, reason
from catena.kit.testing import eventually, nats_process

PACE = Pace(first_s=0.05, longest_s=0.2, grace_s=1.0)


def python(text, *arguments):
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]


def alive(pid):
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def running_under(folder):
    """Processes whose command line names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(folder) in command and alive(int(entry.name)):
                found.append((int(entry.name), command.replace("\0", " ")))
    return found


SLEEPER = """
    from catena.kit.supervise import exit_with_parent
    exit_with_parent(0.5)
    import pathlib, os, sys, time
    mark = pathlib.Path(sys.argv[1])
    mark.with_suffix(".draft").write_text(str(os.getpid()))
    mark.with_suffix(".draft").replace(mark)  # whoever sees the file sees the number
    time.sleep(60)
"""


async def test_a_child_runs_until_it_is_stopped(tmp_path):
    mark = tmp_path / "pid"

    async def ready():
        return mark.exists()

    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        await supervisor.start(Child(name="room", command=python(SLEEPER, mark), ready=ready))
        pid = supervisor.pid("room")
        assert (supervisor.state("room"), pid) == ("running", int(mark.read_text()))
        await supervisor.stop("room")
        assert (supervisor.state("room"), supervisor.pid("room"), alive(pid)) == ("stopped", None, False)


async def test_leaving_the_block_stops_all_even_those_that_ignore_the_request(tmp_path):
    stubborn = python(
        """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]])
        print("up", flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    async with Supervisor(tmp_path / "run", pace=Pace(grace_s=0.2)) as supervisor:
        for name in ("one", "two"):
            await supervisor.start(Child(name=name, command=stubborn))
            await eventually(lambda name=name: "up" in supervisor.last_lines(name))
        assert len(running_under(tmp_path)) == 4
    await eventually(lambda: running_under(tmp_path) == [])


async def test_a_killed_child_comes_back_by_itself(tmp_path):
    mark = tmp_path / "pid"
    with structlog.testing.capture_logs() as logs:
        async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
            await supervisor.start(Child(name="room", command=python(SLEEPER, mark)))
            for count in (1, 2):
                await eventually(lambda: supervisor.pid("room") is not None)
                os.kill(supervisor.pid("room"), signal.SIGKILL)
                await eventually(lambda count=count: supervisor.restarts("room") == count)
            await eventually(lambda: supervisor.state("room") == "running")
    assert {entry["reason"] for entry in logs} == {"SIGKILL"}


async def test_pauses_between_restarts_grow(tmp_path):
    starts = tmp_path / "starts"
    child = python("import sys, time; print(time.monotonic(), file=open(sys.argv[1], 'a')); sys.exit(3)", starts)
    async with Supervisor(tmp_path / "run", pace=Pace(first_s=0.1, longest_s=10)) as supervisor:
        await supervisor.start(Child(name="room", command=child))
        await eventually(lambda: starts.exists() and len(starts.read_text().split()) == 4)
    times = [float(line) for line in starts.read_text().split()]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= pause for gap, pause in zip(gaps, (0.1, 0.2, 0.4), strict=True))


async def test_a_child_that_never_gets_ready_is_stopped_and_quoted(tmp_path):
    async def never():
        return False

    child = Child(
        name="room", command=python("import time; print('port 80 is taken', flush=True); time.sleep(60)"), ready=never
    )
    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        with pytest.raises(Unavailable, match="port 80 is taken"):
            await supervisor.start(child, timeout_s=1.0)
        assert supervisor.pid("room") is None


async def test_a_child_that_ends_before_it_was_ever_ready_is_given_up_and_its_reason_told_once(tmp_path):
    async def never():
        return False

    starts = tmp_path / "starts"
    text = """
        import sys
        print("x", file=open(sys.argv[1], "a"))
        print('{"event": "configuration"}', file=sys.stderr)
        sys.exit("room: rank 9 > 8; raise max_rank")
    """
    with structlog.testing.capture_logs() as logs:
        async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
            with pytest.raises(Unavailable) as told:
                await supervisor.start(Child(name="room", command=python(text, starts), ready=never), timeout_s=60)
    log = tmp_path / "run" / "room.log"
    said = "room ended before it was ready, 3 times, last with exit code 1: room: rank 9 > 8; raise max_rank"
    assert told.value.message == f"{said}\nits log: {log}"
    assert len(starts.read_text().split()) == 3
    assert logs == []


async def test_a_child_that_was_ready_is_never_given_up_and_each_reason_is_logged_once(tmp_path):
    ready, stop, lives = tmp_path / "ready", tmp_path / "stop", tmp_path / "lives"

    async def is_ready():
        return ready.exists()

    text = """
        import pathlib, sys, time
        ready, stop, lives = map(pathlib.Path, sys.argv[1:])
        print("x", file=open(lives, "a"))
        life = len(lives.read_text().split())
        if life == 1:
            ready.touch()
            while not stop.exists():
                time.sleep(0.01)
            ready.unlink()
        sys.exit("room: disk full" if life < 6 else "room: disk gone")
    """
    with structlog.testing.capture_logs() as logs:
        async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
            await supervisor.start(Child(name="room", command=python(text, ready, stop, lives), ready=is_ready))
            stop.touch()
            await eventually(lambda: len(logs) == 2, 60)
    assert [entry["reason"] for entry in logs] == ["room: disk full", "room: disk gone"]
    assert logs[0] | {"child": "room", "code": 1, "log": str(tmp_path / "run" / "room.log")} == logs[0]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('{"event": "up"}\nallinone: a is bad\nallinone: b too', "allinone: a is bad\nallinone: b too"),
        ('warning\n{"event": "up"}\nTraceback (most recent call last):\n  File "x"\nKeyError: \'k\'', "KeyError: 'k'"),
        ("  + Exception Group Traceback (most recent call last):\n  | TypeError: t\n    +-----", "TypeError: t"),
        ('{"event": "a"}\n{"event": "b"}', '{"event": "b"}'),
        ("(no output)", "(no output)"),
    ],
)
def test_a_programs_reason_is_what_it_said_after_its_last_log_line(lines, why):
    assert reason(lines) == why


async def test_a_program_that_does_not_exist_is_named(tmp_path):
    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        with pytest.raises(Unavailable, match="no/such/program"):
            await supervisor.start(Child(name="room", command=["/no/such/program"], restart=False))


async def test_a_child_that_runs_once_tells_its_exit_code(tmp_path):
    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        child = Child(name="job", command=python("import sys; print('done'); sys.exit(7)"), restart=False)
        await supervisor.start(child)
        assert await supervisor.wait("job") == 7
        assert (supervisor.state("job"), supervisor.last_lines("job")) == ("ended", "done")
        await supervisor.start(child)
        assert (tmp_path / "run" / "job.log.1").read_text() == "done\n"


async def test_refuses_a_second_child_of_one_name_and_an_unknown_name(tmp_path):
    child = Child(name="room", command=python("import time; time.sleep(60)"))
    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        await supervisor.start(child)
        with pytest.raises(Conflict, match="runs already"):
            await supervisor.start(child)
        with pytest.raises(Missing, match="there are: room"):
            supervisor.state("rom")


PARENT = """
    import asyncio, pathlib, sys
    from catena.kit import nats_server
    from catena.kit.supervise import Child, Supervisor

    async def main(home, sleeper):
        async def nats_ready():
            return await nats_server.ready(home)

        async with Supervisor(home / "run") as supervisor:
            await supervisor.start(Child(name="nats", command=nats_server.command(home), ready=nats_ready))
            await supervisor.start(Child(name="room", command=[sys.executable, "-c", sleeper, str(home / "pid")]))
            while not (home / "pid").exists():
                await asyncio.sleep(0.02)
            print("ready", flush=True)
            await asyncio.sleep(60)

    try:
        asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
    except KeyboardInterrupt:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_no_child_outlives_its_parent(tmp_path, number):
    parent = await asyncio.create_subprocess_exec(
        *python(PARENT, tmp_path, textwrap.dedent(SLEEPER)), stdout=asyncio.subprocess.PIPE
    )
    assert await asyncio.wait_for(parent.stdout.readline(), 60) == b"ready\n"
    assert len(running_under(tmp_path)) == 4  # parent, leash, nats-server, room
    parent.send_signal(number)
    await parent.wait()
    await eventually(lambda: running_under(tmp_path) == [])


async def test_not_even_a_killed_leash_leaves_its_server_behind(tmp_path):
    async with nats_process(tmp_path):
        (leash,) = (pid for pid, command in running_under(tmp_path) if "catena.kit.leash" in command)
        os.kill(leash, signal.SIGKILL)
        await eventually(lambda: running_under(tmp_path) == [])


async def test_a_restarted_broker_has_its_old_address(tmp_path):
    async def ready():
        return await embedded.ready(tmp_path)

    async with Supervisor(tmp_path / "run", pace=PACE) as supervisor:
        await supervisor.start(Child(name="nats", command=embedded.command(tmp_path), ready=ready))
        os.killpg(supervisor.pid("nats"), signal.SIGKILL)
        await eventually(lambda: supervisor.restarts("nats") == 1)
        await eventually(ready)
