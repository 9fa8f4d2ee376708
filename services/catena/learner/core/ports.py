"""What the learner needs of its database and of other rooms."""

from collections.abc import Sequence
from typing import Protocol

from catena.learner.core.records import Dataset, Execution, Feedback, JobResult, Promotion, Sample, Verdict


class Library(Protocol):
    """Everything that is kept; each verb is one transaction, its events included."""

    async def keep_feedback(self, tenant: str, feedback: Feedback) -> str:
        """Commit feedback; the id of the first with its request id."""
        ...

    async def feedback(self, tenant: str, id_: str) -> Feedback:
        """One piece. Raises Missing."""
        ...

    async def feedback_on(self, executions: Sequence[tuple[str, str]]) -> list[list[Feedback]]:
        """What was told of an execution so far, oldest first."""
        ...

    async def collect(self, tenant: str, source: str, samples: Sequence[Sample], threshold: int) -> list[Dataset]:
        """Add samples to the collecting data sets of their tasks, once for each source; those that still collect."""
        ...

    async def freeze(self, dataset: Dataset, digest: str, promotion: Promotion) -> bool:
        """Close a collecting data set and open its promotion; False when somebody else did."""
        ...

    async def samples(self, dataset_id: str) -> list[Sample]:
        """The samples of a data set."""
        ...

    async def dataset(self, id_: str) -> Dataset:
        """One data set. Raises Missing."""
        ...

    async def datasets(self, tenant: str) -> list[Dataset]:
        """The tenant's data sets, newest first."""
        ...

    async def trained_by(self, dataset_id: str, job_id: str) -> None:
        """Note the job that a data set started, unless the set is done."""
        ...

    async def promotion(
        self, *, id_: str = "", dataset_id: str = "", job_id: str = "", experiment_id: str = ""
    ) -> Promotion | None:
        """The promotion that is known by one of these, or None."""
        ...

    async def promotions(self, tenant: str, state: str) -> list[Promotion]:
        """The tenant's promotions, newest first."""
        ...

    async def move(self, before: Promotion, after: Promotion) -> bool:
        """Commit a step, with its event, if the promotion is still in the state `before`; whether it was."""
        ...


class Executions(Protocol):
    """The executor's records."""

    async def execution(self, id_: str) -> Execution | None:
        """One execution, or None while it is not recorded."""
        ...


class Training(Protocol):
    """The trainer."""

    async def start(self, dataset: Dataset, rows: bytes) -> JobResult:
        """Ask for the data set's job; the same job when asked again."""
        ...

    async def job(self, id_: str) -> JobResult:
        """How a job stands."""
        ...


class Routing(Protocol):
    """The router."""

    async def introduce(self, domain: str, examples: Sequence[str]) -> str:
        """Make the domain known, keeping what is known of it; its specialist, empty for none."""
        ...

    async def canary(self, promotion: Promotion) -> str:
        """Start the experiment of a promotion, or find the one started before; its id.

        Raises Conflict (`experiment_running`) while another one runs in the domain.
        """
        ...

    async def stop(self, experiment_id: str, reason: str) -> None:
        """End an experiment without a verdict."""
        ...

    async def appoint(self, domain: str, specialist: str) -> None:
        """Make a model the domain's specialist; empty: none."""
        ...

    async def verdict(self, experiment_id: str) -> Verdict:
        """How an experiment stands."""
        ...


class Registry(Protocol):
    """The adapters room."""

    async def stable(self, model: str) -> str:
        """Version that the adapter's alias `stable` points at; empty: none."""
        ...

    async def set_stable(self, model: str, version: str) -> None:
        """Point `stable` at a version (empty: nowhere), by compare-and-set; harmless when it points there already."""
        ...

    async def lives(self, model: str) -> bool:
        """Whether a version is registered and not withdrawn."""
        ...

    async def withdraw(self, model: str, reason: str) -> None:
        """Withdraw a version; harmless when it is gone."""
        ...
