"""The trainer's gRPC service: proto in, core call, proto out. The tenant is the caller's."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from catena.api.trainer.v1 import trainer_pb2 as pb
from catena.api.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer
from catena.kit.caller import caller
from catena.trainer.core.job import Job
from catena.trainer.core.spec import Acceptance, JobSpec, Peft, Source, Submission, Training
from catena.trainer.core.trainer import Trainer

if TYPE_CHECKING:
    Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

DEFAULTS = JobSpec(adapter="", base="", sources=())
PAGE, MAX_PAGE = 100, 1000


class TrainerHandlers(TrainerServiceServicer):
    """`TrainerService` over a `Trainer`."""

    def __init__(self, trainer: Trainer) -> None:
        """Answer from `trainer`."""
        self._trainer = trainer

    async def CreateJob(self, request: pb.CreateJobRequest, context: "Context") -> pb.CreateJobResponse:
        """Accept a job."""
        who = caller()
        job = await self._trainer.create(who.tenant, submission_of(request.spec, who.role), request.request_id)
        return pb.CreateJobResponse(job=job_to(job))

    async def GetJob(self, request: pb.GetJobRequest, context: "Context") -> pb.GetJobResponse:
        """One job."""
        return pb.GetJobResponse(job=job_to(await self._trainer.get(caller().tenant, request.id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: "Context") -> pb.ListJobsResponse:
        """A page of jobs; its token is the last job's id."""
        size = min(request.page_size or PAGE, MAX_PAGE)
        jobs = await self._trainer.find(caller().tenant, request.state, size, request.page_token)
        more = jobs[-1].id if len(jobs) == size else ""
        return pb.ListJobsResponse(jobs=[job_to(job) for job in jobs], next_page_token=more)

    async def CancelJob(self, request: pb.CancelJobRequest, context: "Context") -> pb.CancelJobResponse:
        """Ask a job to stop."""
        return pb.CancelJobResponse(job=job_to(await self._trainer.cancel(caller().tenant, request.id)))

    async def WatchJob(self, request: pb.WatchJobRequest, context: "Context") -> AsyncIterator[pb.WatchJobResponse]:
        """The job each time it changes."""
        async for job in self._trainer.watch(caller().tenant, request.id):
            yield pb.WatchJobResponse(job=job_to(job))

    async def PlanJob(self, request: pb.PlanJobRequest, context: "Context") -> pb.PlanJobResponse:
        """What a job would take."""
        told = await self._trainer.plan(submission_of(request.spec, caller().role))
        return pb.PlanJobResponse(
            steps=told.steps,
            rows=told.rows,
            memory_bytes=told.memory_bytes,
            memory_bytes_4bit=told.memory_bytes_4bit,
            duration_s=told.duration_s,
            trainable_parameters=told.trainable_parameters,
        )


def submission_of(spec: pb.JobSpec, role: str) -> Submission:
    """A job as asked for, its rows still as they came; administrators may name files anywhere."""
    return Submission(
        spec=JobSpec(
            adapter=spec.adapter,
            version=spec.version,
            base=spec.base,
            sources=tuple(source_of(source, at) for at, source in enumerate(spec.sources, 1)),
            peft=peft_of(spec.peft),
            training=training_of(spec.training),
            acceptance=Acceptance(
                min_accuracy=spec.acceptance.min_accuracy or DEFAULTS.acceptance.min_accuracy,
                max_forgetting=spec.acceptance.max_forgetting or DEFAULTS.acceptance.max_forgetting,
            ),
            tasks=tuple(spec.tasks),
            register=spec.register,
        ),
        jsonl=tuple(source.jsonl for source in spec.sources),
        trusted=spec.acceptance.trusted_jsonl,
        anywhere=role == "admin",
    )


def source_of(source: pb.DataSource, at: int) -> Source:
    """Source number `at`, from 1."""
    return Source(
        name=source.name or f"source {at}",
        weight=source.weight or 1.0,
        type=source.type or "chat",
        path=source.path,
        retention=source.retention,
    )


def peft_of(peft: pb.PeftSpec) -> Peft:
    """How the weights are adapted, defaults filled in; alpha is twice the rank unless given."""
    rank = peft.rank or DEFAULTS.peft.rank
    return Peft(
        method=peft.method or DEFAULTS.peft.method,
        rank=rank,
        alpha=peft.alpha or 2.0 * rank,
        dropout=peft.dropout if peft.HasField("dropout") else DEFAULTS.peft.dropout,
        targets=tuple(peft.target_modules),
    )


def training_of(training: pb.TrainingSpec) -> Training:
    """How the training runs, defaults filled in; steps given alone mean no epochs."""
    default = DEFAULTS.training
    return Training(
        epochs=training.epochs or (0.0 if training.max_steps else default.epochs),
        max_steps=training.max_steps,
        learning_rate=training.learning_rate or default.learning_rate,
        batch_size=training.batch_size or default.batch_size,
        accumulation=training.accumulation or default.accumulation,
        max_tokens=training.max_tokens or default.max_tokens,
        checkpoint_steps=training.checkpoint_steps or default.checkpoint_steps,
        seed=training.seed,
        holdout=training.holdout or default.holdout,
    )


def job_to(job: Job) -> pb.Job:
    """A job as others see it; its rows stay here."""
    return pb.Job(
        id=job.id,
        spec=spec_to(job.spec),
        state=job.state,
        progress=None if job.progress is None else progress_to(job),
        metrics=job.metrics,
        model=job.model,
        digest=job.digest,
        reason=job.reason if job.ended else "",
        created_s=job.created_s,
        finished_s=job.finished_s,
        attempts=job.attempts,
    )


def progress_to(job: Job) -> pb.Progress:
    """Where a job that has begun stands."""
    at = job.progress
    assert at is not None
    return pb.Progress(
        step=at.step,
        total_steps=at.total_steps,
        loss=at.loss,
        learning_rate=at.learning_rate,
        tokens_per_s=at.tokens_per_s,
        remaining_s=at.remaining_s,
        rows=at.rows,
    )


def spec_to(spec: JobSpec) -> pb.JobSpec:
    """A spec with its defaults filled in and its rows left out."""
    return pb.JobSpec(
        adapter=spec.adapter,
        version=spec.version,
        base=spec.base,
        sources=[source_to(source) for source in spec.sources],
        peft=pb.PeftSpec(
            method=spec.peft.method,
            rank=spec.peft.rank,
            alpha=spec.peft.alpha,
            dropout=spec.peft.dropout,
            target_modules=spec.peft.targets,
        ),
        training=pb.TrainingSpec(
            epochs=spec.training.epochs,
            max_steps=spec.training.max_steps,
            learning_rate=spec.training.learning_rate,
            batch_size=spec.training.batch_size,
            accumulation=spec.training.accumulation,
            max_tokens=spec.training.max_tokens,
            checkpoint_steps=spec.training.checkpoint_steps,
            seed=spec.training.seed,
            holdout=spec.training.holdout,
        ),
        acceptance=pb.AcceptanceSpec(
            min_accuracy=spec.acceptance.min_accuracy, max_forgetting=spec.acceptance.max_forgetting
        ),
        tasks=spec.tasks,
        register=spec.register,
    )


def source_to(source: Source) -> pb.DataSource:
    """A source, its rows left out."""
    made = pb.DataSource(name=source.name, weight=source.weight, type=source.type, retention=source.retention)
    if source.path:
        made.path = source.path
    return made
