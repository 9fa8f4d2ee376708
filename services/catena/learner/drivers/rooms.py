"""The other rooms over gRPC, as the learner's ports name them. Every write is harmless to repeat."""

from collections.abc import Sequence
from pathlib import Path

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from catena.kit.errors import Invalid, Missing
from catena.learner.config import LearnerConfig, RecipeConfig
from catena.learner.core.records import Dataset, Execution, JobResult, Promotion, Verdict

STABLE = "stable"


class ExecutorRecords:
    """Implements `Executions`."""

    def __init__(self, executor: "executor_pb2_grpc.ExecutorServiceAsyncStub") -> None:
        """Ask the executor."""
        self._executor = executor

    async def execution(self, id_: str) -> Execution | None:
        """One execution; its task is the caller's, else the domain that the router found."""
        try:
            told = (await self._executor.GetExecution(executor_pb2.GetExecutionRequest(id=id_))).execution
        except Missing:
            return None
        asked = [message.content for message in told.prompt if message.role == "user"]
        return Execution(
            id=id_,
            prompt=asked[-1] if asked else "",
            answer=told.answer,
            task=told.context.task or told.plan.domain,
            agent_type=told.context.agent_type,
        )


class TrainerJobs:
    """Implements `Training`."""

    def __init__(
        self, trainer: "trainer_pb2_grpc.TrainerServiceAsyncStub", config: LearnerConfig, default_base: str
    ) -> None:
        """Ask the trainer, by the configured recipes; `default_base` where a recipe names no base."""
        self._trainer = trainer
        self._config = config
        self._base = default_base

    async def start(self, dataset: Dataset, rows: bytes) -> JobResult:
        """The data set's job; its id makes repeats harmless."""
        recipe = self._config.recipes.get(dataset.task, self._config.recipe)
        spec = self._spec(dataset, rows, recipe)
        request = trainer_pb2.CreateJobRequest(spec=spec, request_id=dataset.id)
        return result_of((await self._trainer.CreateJob(request)).job)

    async def job(self, id_: str) -> JobResult:
        """How a job stands."""
        return result_of((await self._trainer.GetJob(trainer_pb2.GetJobRequest(id=id_))).job)

    def _spec(self, dataset: Dataset, rows: bytes, recipe: RecipeConfig) -> trainer_pb2.JobSpec:
        base = recipe.base or self._base
        if not base:
            raise Invalid("no base to adapt; set learner.recipe.base", code="no_base")
        share = recipe.retention_share if self._config.retention_path else 0.0
        sources = [trainer_pb2.DataSource(name=dataset.task, weight=1.0 - share, jsonl=rows)]
        if share:
            kept = old_skills(Path(self._config.retention_path))
            sources.append(trainer_pb2.DataSource(name="old-skills", weight=share, jsonl=kept, retention=True))
        return trainer_pb2.JobSpec(
            adapter=dataset.task,
            base=base,
            sources=sources,
            tasks=[dataset.task],
            register=True,
            peft=trainer_pb2.PeftSpec(
                method=recipe.method, rank=recipe.rank, alpha=recipe.alpha, dropout=recipe.dropout
            ),
            training=trainer_pb2.TrainingSpec(
                epochs=recipe.epochs,
                max_steps=recipe.max_steps,
                learning_rate=recipe.learning_rate,
                batch_size=recipe.batch_size,
                accumulation=recipe.accumulation,
                checkpoint_steps=recipe.checkpoint_steps,
                holdout=recipe.holdout,
            ),
            acceptance=trainer_pb2.AcceptanceSpec(
                min_accuracy=recipe.min_accuracy, max_forgetting=recipe.max_forgetting
            ),
        )


class RouterDesk:
    """Implements `Routing`."""

    def __init__(self, router: "router_pb2_grpc.RouterServiceAsyncStub", config: LearnerConfig) -> None:
        """Ask the router; canaries as configured."""
        self._router = router
        self._config = config

    async def introduce(self, domain: str, examples: Sequence[str]) -> str:
        """Add examples to what is known of the domain; its specialist."""
        known = await self._domain(domain)
        merged = list(dict.fromkeys([*known.examples, *examples]))
        if merged != list(known.examples):
            known.examples[:] = merged
            await self._router.PutDomain(router_pb2.PutDomainRequest(domain=known))
        return known.specialist

    async def canary(self, promotion: Promotion) -> str:
        """Start the experiment; the promotion's id makes repeats harmless."""
        share = self._config.canary_share
        experiment = router_pb2.Experiment(
            name=f"{promotion.domain}: {promotion.candidate}",
            domain=promotion.domain,
            arms=[
                router_pb2.Arm(name="control", share=1.0 - share),
                router_pb2.Arm(name="canary", model=promotion.candidate, share=share),
            ],
            alpha=self._config.alpha,
            max_outcomes=self._config.canary_outcomes,
        )
        request = router_pb2.CreateExperimentRequest(experiment=experiment, request_id=promotion.id)
        return (await self._router.CreateExperiment(request)).experiment.id

    async def stop(self, experiment_id: str, reason: str) -> None:
        """End an experiment without a verdict."""
        await self._router.StopExperiment(router_pb2.StopExperimentRequest(id=experiment_id, reason=reason))

    async def appoint(self, domain: str, specialist: str) -> None:
        """Change the specialist alone."""
        known = await self._domain(domain)
        if known.examples and known.specialist != specialist:
            known.specialist = specialist
            await self._router.PutDomain(router_pb2.PutDomainRequest(domain=known))

    async def verdict(self, experiment_id: str) -> Verdict:
        """How an experiment stands."""
        request = router_pb2.GetExperimentRequest(id=experiment_id)
        told = (await self._router.GetExperiment(request)).experiment
        return Verdict(experiment_id=experiment_id, state=told.state, reason=told.reason)

    async def _domain(self, name: str) -> router_pb2.Domain:
        """The domain of this name, or the one that it was merged into."""
        listed = await self._router.ListDomains(router_pb2.ListDomainsRequest())
        known = (domain for domain in listed.domains if name in (domain.name, *domain.aliases))
        return next(known, router_pb2.Domain(name=name))


class AdapterRegistry:
    """Implements `Registry`."""

    def __init__(self, adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub") -> None:
        """Ask the adapters room."""
        self._adapters = adapters

    async def stable(self, model: str) -> str:
        """Version behind `stable`."""
        told = await self._get(f"{model.rpartition(':')[0]}:{STABLE}")
        return told.version if told else ""

    async def set_stable(self, model: str, version: str) -> None:
        """Point `stable` at `version`, expecting the digest that it points at now."""
        name, _, _ = model.rpartition(":")
        base, _, adapter = name.partition("@")
        now = await self._get(f"{name}:{STABLE}")
        if (now.version if now else "") == version:
            return
        request = adapters_pb2.SetAliasRequest(
            base=base, name=adapter, alias=STABLE, version=version, expected_digest=now.digest if now else ""
        )
        await self._adapters.SetAlias(request)

    async def lives(self, model: str) -> bool:
        """Whether it may still be used."""
        told = await self._get(model)
        return told is not None and told.status != "withdrawn"

    async def withdraw(self, model: str, reason: str) -> None:
        """Withdraw a version unless it is gone already."""
        if await self.lives(model):
            await self._adapters.DeleteAdapter(adapters_pb2.DeleteAdapterRequest(model=model, reason=reason))

    async def _get(self, model: str) -> adapters_pb2.Adapter | None:
        try:
            return (await self._adapters.GetAdapter(adapters_pb2.GetAdapterRequest(model=model))).adapter
        except Missing:
            return None


def old_skills(path: Path) -> bytes:
    """The rows to retain. Raises Invalid (`no_retention`)."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(
            f"no old skills at {path}: {error.strerror}; set learner.retention_path", code="no_retention"
        ) from error


def result_of(job: trainer_pb2.Job) -> JobResult:
    """A job as the core sees it."""
    return JobResult(job_id=job.id, state=job.state, model=job.model, reason=job.reason, metrics=dict(job.metrics))
