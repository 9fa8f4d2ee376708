"""What the trainer needs from outside itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from catena.trainer.core.estimate import BaseFacts
from catena.trainer.core.job import Job, Material
from catena.trainer.core.order import Order, Report
from catena.trainer.core.rows import Row
from catena.trainer.core.spec import Training

News = Literal["nothing", "started", "progressed", "finished"]
Hold = Literal["held", "cancel", "lost"]


class Jobs(Protocol):
    """The durable queue. What a call returns is committed; the event that `news` names is told with it."""

    async def create(self, job: Job, material: Material, request_id: str) -> Job:
        """Store a new job; with a request id that the tenant used before, that job as it stands."""
        ...

    async def get(self, tenant: str, job_id: str) -> Job:
        """One job. Raises Missing."""
        ...

    async def find(self, tenant: str, state: str, limit: int, after: str) -> list[Job]:
        """Jobs, newest first, that come after the id `after`; `state` empty: all."""
        ...

    async def material(self, job_id: str) -> Material:
        """The rows of a job."""
        ...

    async def cancel(self, tenant: str, job_id: str) -> Job:
        """Note the wish; a job that nobody runs is cancelled at once. Raises Missing."""
        ...

    async def claim(self) -> Job | None:
        """Take the oldest job that waits, or whose holder fell silent; None when there is none."""
        ...

    async def renew(self, job_id: str) -> Hold:
        """Hold on to a claimed job: `lost` when another has it, `cancel` when it should stop."""
        ...

    async def save(self, job: Job, news: News = "nothing") -> Job:
        """Store a claimed job's new state; one that ended is let go. Raises ClaimLost."""
        ...

    async def release(self, job_id: str, *, died: str = "") -> None:
        """Let a claimed job go as it stands, so that it is taken at once; `died`: what its process died of."""
        ...

    async def speed(self, base: str) -> float | None:
        """Tokens a second at which the newest jobs on this base ran; None when there were none."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when any job changed, or after `timeout_s`."""
        ...


class Worker(Protocol):
    """A job's own process while it runs."""

    def reports(self) -> AsyncIterator[Report]:
        """What it tells, until it ends."""
        ...

    async def ended(self) -> tuple[int, str]:
        """Its exit code, and its last words."""
        ...


class Workers(Protocol):
    """Processes that train."""

    def run(self, order: Order, attempt: int) -> AbstractAsyncContextManager[Worker]:
        """Start one; it ends when the block does, or when this process does, however that ends."""
        ...

    def holds(self, job_id: str) -> bool:
        """Whether the trained adapter of a job lies here; another machine's disk may hold it instead."""
        ...

    async def tidy(self, keep: Sequence[str]) -> None:
        """Remove the folders of all jobs but these."""
        ...


class Bases(Protocol):
    """The base models of this installation."""

    async def facts(self, name: str) -> BaseFacts:
        """What a base's files say. Raises Missing for a name not configured."""
        ...

    async def lengths(self, base: BaseFacts, rows: Sequence[Row], training: Training) -> list[int]:
        """About how many tokens each row has."""
        ...


class Files(Protocol):
    """Files that sources name."""

    async def read(self, path: str, *, anywhere: bool) -> bytes:
        """The file's bytes. Raises Missing, Invalid (too large), Denied outside the data folder without `anywhere`."""
        ...


class Registry(Protocol):
    """Where accepted adapters go."""

    async def next_version(self, job: Job) -> str:
        """The lowest integer above every version of this adapter registered so far. Raises Unavailable."""
        ...

    async def seal(self, job: Job, base: BaseFacts) -> str:
        """Write manifest and model card into the job's adapter, sign it, and return its digest."""
        ...

    async def register(self, job: Job) -> str:
        """Hand the sealed adapter over; `base@adapter:version`. Raises Unavailable, VersionTaken."""
        ...
