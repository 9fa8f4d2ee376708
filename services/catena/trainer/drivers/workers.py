"""Processes that train: one per job, each tied to this process's life, each telling its progress in a file of lines."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from catena.artifacts.placing import put
from catena.kit.supervise import Child, Supervisor
from catena.trainer.core.order import Order, Report

NAME = "worker"
ORDER = "order.json"
ADAPTER = "adapter"
POLL_S = 0.1
MODULE = "catena.trainer.drivers.worker"


def reports_path(folder: Path, attempt: int) -> Path:
    """Where attempt number `attempt` tells its progress."""
    return folder / f"reports-{attempt}.jsonl"


class JobProcess:
    """One running worker."""

    def __init__(self, supervisor: Supervisor, path: Path) -> None:
        """Read what it tells from `path`."""
        self._supervisor = supervisor
        self._path = path
        self._read = 0

    async def reports(self) -> AsyncIterator[Report]:
        """What it tells, until it ends; a line that its death cut short is left out."""
        ending = asyncio.create_task(self._supervisor.wait(NAME))
        try:
            while True:
                over = ending.done()
                for line in self._lines():
                    yield msgspec.json.decode(line, type=Report)
                if over:
                    return
                await asyncio.wait({ending}, timeout=POLL_S)
        finally:
            ending.cancel()

    async def ended(self) -> tuple[int, str]:
        """Its exit code and its last lines."""
        return await self._supervisor.wait(NAME), self._supervisor.last_lines(NAME)

    def _lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        return whole.splitlines()


class ProcessWorkers:
    """`core.ports.Workers`: a Python process a job, its files in a folder of its own."""

    def __init__(self, root: Path) -> None:
        """Keep the jobs' folders under `root`."""
        self._root = root

    def folder(self, job_id: str) -> Path:
        """The job's folder; the finished adapter lies in `adapter` inside."""
        return self._root / job_id

    @asynccontextmanager
    async def run(self, order: Order, attempt: int) -> AsyncIterator[JobProcess]:
        """Start the process; it ends with the block."""
        folder = self.folder(order.job)
        await asyncio.to_thread(_lay_out, folder, order)
        command = [sys.executable, "-m", MODULE, str(folder), str(attempt)]
        env = {
            "OMP_NUM_THREADS": str(order.threads),
            "MKL_NUM_THREADS": str(order.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        async with Supervisor(folder) as supervisor:
            await supervisor.start(Child(name=NAME, command=command, env=env, restart=False))
            yield JobProcess(supervisor, reports_path(folder, attempt))

    def holds(self, job_id: str) -> bool:
        """Whether the job's adapter is here."""
        return (self.folder(job_id) / ADAPTER).is_dir()

    async def tidy(self, keep: Sequence[str]) -> None:
        """Remove the other jobs' folders."""
        await asyncio.to_thread(_tidy, self._root, frozenset(keep))


def _lay_out(folder: Path, order: Order) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    put(folder / ORDER, msgspec.json.encode(order), mode=0o600)


def _tidy(root: Path, keep: frozenset[str]) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in keep:
            shutil.rmtree(folder)
