"""Training jobs as the dashboard draws them: how each stands and how its loss went. Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

MOST_JOBS = 20
MOST_POINTS = 200


@dataclass(slots=True)
class Job:
    """One job; `curve` are steps with their losses, thinned evenly where there are many."""

    adapter: str = ""
    base: str = ""
    state: str = "running"
    model: str = ""
    reason: str = ""
    started_s: float = 0.0
    step: int = 0
    total_steps: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    every: int = 1
    told: int = 0

    def progressed(self, step: int, total_steps: int, loss: float) -> None:
        """Take in a step; one that was done again after a crash takes the place of what followed it."""
        self.step, self.total_steps = step, total_steps
        while self.curve and self.curve[-1][0] >= step:
            self.curve.pop()
        if self.told % self.every == 0:
            self.curve.append((step, loss))
        self.told += 1
        if len(self.curve) > MOST_POINTS:
            self.curve = self.curve[::2]
            self.every *= 2


@dataclass(slots=True)
class Jobs:
    """The newest jobs by id."""

    jobs: OrderedDict[str, Job] = field(default_factory=OrderedDict)

    def of(self, job_id: str) -> Job:
        """The job; a new one pushes the oldest out."""
        if job_id not in self.jobs:
            self.jobs[job_id] = Job()
            if len(self.jobs) > MOST_JOBS:
                self.jobs.popitem(last=False)
        return self.jobs[job_id]

    def view(self) -> list[dict[str, Any]]:
        """Newest first, as plain data."""
        return [
            {
                "id": id_,
                "adapter": job.adapter,
                "base": job.base,
                "state": job.state,
                "model": job.model,
                "reason": job.reason,
                "started_s": job.started_s,
                "step": job.step,
                "total_steps": job.total_steps,
                "curve": job.curve,
            }
            for id_, job in reversed(self.jobs.items())
        ]
