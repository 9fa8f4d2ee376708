"""Processes as children: started, watched, restarted at the same address, and never left behind.

`catena up` keeps nats-server, the rooms and their engines this way, the trainer its jobs, the memory room its index.
Each child leads a session of its own, so that Ctrl-C reaches the parent alone, which then stops them in order.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import structlog

from catena.kit.clock import World
from catena.kit.errors import Conflict, Missing, Unavailable
from catena.kit.leash import PARENT_FD, exit_with_parent

__all__ = ["Child", "Supervisor", "exit_with_parent"]

State = Literal["starting", "running", "waiting", "stopped", "ended"]
POLL_S = 0.05
LAST_LINES = 15
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A program to keep running. `env` is added to the parent's environment.

    `ready` says whether it can be used yet; without it, it can as soon as it runs. With `restart` False it runs once.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], Awaitable[bool]] | None = None
    restart: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How patient a supervisor is, in seconds. Pauses between restarts double from `first_s` to `longest_s`.

    A child that ran for `healthy_s` starts again with the first pause; one that ended `first_lives` times before it
    was ever ready is given up.
    """

    first_lives: int = 3
    first_s: float = 0.2
    longest_s: float = 15.0
    healthy_s: float = 30.0
    grace_s: float = 10.0


class _Process:
    """A child process whose end the loop awaits.

    Not asyncio's own: uvloop forks by hand, and such a child dies of gRPC's fork handlers before it gets to run.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], pipe: int, output: BinaryIO) -> None:
        self._popen = subprocess.Popen(
            command,
            env=env,
            pass_fds=(pipe,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        threading.Thread(target=self._watch, name=f"child {self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def terminate(self) -> None:
        self._popen.terminate()

    async def wait(self) -> int:
        await self._over.wait()
        return self._popen.wait()

    def _watch(self) -> None:
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop may be closed by then
            self._loop.call_soon_threadsafe(self._over.set)


class _Kept:
    """One child as the supervisor sees it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.state: State = "starting"
        self.process: _Process | None = None
        self.code: int | None = None
        self.starts = 0
        self.lives = 0
        self.told: tuple[int, str] | None = None
        self.usable = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps children while its `async with` block runs; at the end stops them, the last started first."""

    def __init__(self, logs: Path, *, world: World | None = None, pace: Pace | None = None) -> None:
        """Write each child's output to `logs/<name>.log`, the run before to `<name>.log.1`."""
        self._logs = logs
        self._clock = (world or World()).clock
        self._pace = pace or Pace()
        self._kept: dict[str, _Kept] = {}

    async def __aenter__(self) -> Self:
        """Begin."""
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every child."""
        for name in reversed(list(self._kept)):
            await self.stop(name)

    async def start(self, child: Child, *, timeout_s: float = 30.0) -> None:
        """Start `child` and return once it is ready.

        Raises Conflict when a child of that name runs, Unavailable when it does not get ready in time or ends again and
        again before, with what it said last.
        """
        before = self._kept.get(child.name)
        if before is not None and before.state not in ("stopped", "ended"):
            raise Conflict(f"child {child.name!r} runs already; stop it first")
        kept = self._kept[child.name] = _Kept(child)
        kept.task = asyncio.create_task(self._keep(kept), name=f"child {child.name}")
        usable = asyncio.create_task(kept.usable.wait())
        try:
            await asyncio.wait({usable, kept.task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop(child.name)
            raise
        finally:
            usable.cancel()
        if not kept.usable.is_set():
            gave_up = kept.task.done()
            await self.stop(child.name)
            raise Unavailable(self._why_not(kept, gave_up, timeout_s), code="child_not_ready")

    async def stop(self, name: str) -> None:
        """Stop a child: SIGTERM, grace, SIGKILL to it and to what it started. Raises Missing."""
        kept = self._find(name)
        if kept.state not in ("stopped", "ended"):
            kept.state = "stopped"
        if kept.task is not None:
            kept.task.cancel()
            await asyncio.gather(kept.task, return_exceptions=True)

    async def wait(self, name: str) -> int:
        """The exit code of a child that is not restarted, once it ended; negative: the signal. Raises Missing."""
        kept = self._find(name)
        if kept.task is not None:
            await asyncio.wait({kept.task})
        return kept.code if kept.code is not None else -signal.SIGKILL

    def state(self, name: str) -> State:
        """What the child does now; `waiting` is the pause before a restart. Raises Missing."""
        return self._find(name).state

    def restarts(self, name: str) -> int:
        """How often the child was started again. Raises Missing."""
        return max(0, self._find(name).starts - 1)

    def pid(self, name: str) -> int | None:
        """The child's process id, None while none runs. Raises Missing."""
        kept = self._find(name)
        return kept.process.pid if kept.process is not None and kept.process.returncode is None else None

    def names(self) -> list[str]:
        """Every child, in the order of starting."""
        return list(self._kept)

    def last_lines(self, name: str, count: int = LAST_LINES) -> str:
        """The end of the child's output."""
        path = self._log(name)
        if not path.exists():
            return "(no output)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-count:]) or "(no output)"

    def _why_not(self, kept: _Kept, gave_up: bool, timeout_s: float) -> str:
        name = kept.child.name
        if not gave_up:
            told = f"{name} did not get ready within {timeout_s:g} s; its last lines, from {self._log(name)}:"
            return f"{told}\n{self.last_lines(name)}"
        often = f"{kept.lives} times, last " if kept.lives > 1 else ""
        told = f"{name} ended before it was ready, {often}with exit code {kept.code}"
        return f"{told}: {self._reason(name, kept.code)}\nits log: {self._log(name)}"

    def _reason(self, name: str, code: int | None) -> str:
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return reason(self.last_lines(name))

    def _find(self, name: str) -> _Kept:
        if name not in self._kept:
            raise Missing(f"no child {name!r}; there are: {', '.join(self._kept) or 'none'}")
        return self._kept[name]

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    async def _keep(self, kept: _Kept) -> None:
        """Run the child, again and again if it wants that, until cancelled or given up."""
        pause_s = self._pace.first_s
        while True:
            began_s = self._clock.monotonic()
            kept.state = "starting"
            kept.code = await self._run_once(kept)
            kept.lives += 1
            hopeless = not kept.usable.is_set() and kept.lives >= self._pace.first_lives
            if hopeless or not kept.child.restart:
                kept.state = "ended"
                return
            if self._clock.monotonic() - began_s >= self._pace.healthy_s:
                pause_s = self._pace.first_s
            self._tell_end(kept, kept.code)
            kept.state = "waiting"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._pace.longest_s)

    def _tell_end(self, kept: _Kept, code: int) -> None:
        """Log why a child ended that was ready before, once; of one that never was, `start` tells."""
        name, why = kept.child.name, self._reason(kept.child.name, code)
        if kept.usable.is_set() and (code, why) != kept.told:
            where = str(self._log(name))
            log.warning("child ended, starting it again", child=name, code=code, reason=why, log=where)
            kept.told = (code, why)

    async def _run_once(self, kept: _Kept) -> int:
        """One life of the child; its exit code. Cancelled, it ends the child first."""
        reading, writing = os.pipe()
        try:
            try:
                process = self._spawn(kept.child, reading)
            finally:
                os.close(reading)
            kept.process = process
            kept.starts += 1
            watching = asyncio.create_task(self._await_ready(kept))
            try:
                return await process.wait()
            finally:
                watching.cancel()
                await asyncio.shield(self._end(process))
                kept.code = process.returncode
        except OSError as error:
            self._log(kept.child.name).write_text(f"cannot run {kept.child.command[0]}: {error}\n")
            return 127
        finally:
            os.close(writing)

    def _spawn(self, child: Child, pipe: int) -> _Process:
        path = self._log(child.name)
        if path.exists():
            path.replace(path.with_name(f"{path.name}.1"))
        environment = os.environ | dict(child.env) | {PARENT_FD: str(pipe)}  # noqa: TID251 - handed on, not read
        with path.open("wb") as output:
            return _Process(child.command, env=environment, pipe=pipe, output=output)

    async def _await_ready(self, kept: _Kept) -> None:
        ready = kept.child.ready
        while ready is not None and not await ready():  # noqa: ASYNC110 - another process's state can only be polled
            await asyncio.sleep(POLL_S)
        kept.state = "running"
        kept.told = None
        kept.usable.set()

    async def _end(self, process: _Process) -> None:
        """SIGTERM, grace, and SIGKILL for whatever is left of its session."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._pace.grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()


def reason(lines: str) -> str:
    """Why a program ended, by its last lines: what it said after its last log line; of a traceback, the error alone."""
    said: list[str] = []
    for line in reversed(lines.splitlines()):
        if line.startswith("{"):
            break
        said.insert(0, line)
    if not any("Traceback (most recent call last)" in line for line in said):
        return "\n".join(said).strip() or lines.rpartition("\n")[2]
    bare = (line.strip(" |+-") for line in reversed(said))
    return next(line for line in bare if line)
