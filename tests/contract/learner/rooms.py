"""The rooms around a learner under test: real gRPC servers whose state is scripted and outlives their restarts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.learner.v1 import learner_pb2, learner_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.kit.bus import Bus, Event, open_bus
from catena.kit.caller import Caller, as_caller
from catena.kit.clock import World
from catena.kit.config import AuthConfig, BusConfig, House, ModelConfig, PriceConfig
from catena.kit.dial import dial
from catena.kit.errors import Conflict, Missing
from catena.kit.serve import caller, open_server
from catena.kit.testing import nats_server, running
from catena.learner.app import open_learner
from catena.learner.config import LearnerConfig

TENANT = "acme"
TOKEN = "test-token"


@dataclass
class Executor(executor_pb2_grpc.ExecutorServiceServicer):
    """Every execution `e-N` asked `swap N`, was answered `wrong N`, and belongs to task `Swap Case`.

    Those in `late` are not recorded yet.
    """

    tenants: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)

    async def GetExecution(
        self, request: executor_pb2.GetExecutionRequest, context: Any
    ) -> executor_pb2.GetExecutionResponse:
        self.tenants.add(caller().tenant)
        room, _, number = request.id.partition("-")
        if room != "e" or request.id in self.late:
            raise Missing(f"no execution {request.id!r}", code="unknown_execution")
        execution = executor_pb2.Execution(
            id=request.id,
            prompt=[
                types_pb2.ChatMessage(role="system", content="answer"),
                types_pb2.ChatMessage(role="user", content=f"swap {number}"),
            ],
            answer=f"wrong {number}",
            context=types_pb2.RequestContext(task="Swap Case"),
        )
        return executor_pb2.GetExecutionResponse(execution=execution)


@dataclass
class Trainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Accepts jobs, one for each request id; tests end them."""

    jobs: dict[str, trainer_pb2.Job] = field(default_factory=dict)
    asked: int = 0

    async def CreateJob(self, request: trainer_pb2.CreateJobRequest, context: Any) -> trainer_pb2.CreateJobResponse:
        self.asked += 1
        job = trainer_pb2.Job(id=f"j-{len(self.jobs) + 1}", spec=request.spec, state="queued")
        return trainer_pb2.CreateJobResponse(job=self.jobs.setdefault(request.request_id, job))

    async def GetJob(self, request: trainer_pb2.GetJobRequest, context: Any) -> trainer_pb2.GetJobResponse:
        return trainer_pb2.GetJobResponse(job=self.by_id(request.id))

    def by_id(self, id_: str) -> trainer_pb2.Job:
        return next(job for job in self.jobs.values() if job.id == id_)


@dataclass
class Router(router_pb2_grpc.RouterServiceServicer):
    """Domains and experiments, one experiment for each request id, one running at a time."""

    domains: dict[str, router_pb2.Domain] = field(default_factory=dict)
    experiments: dict[str, router_pb2.Experiment] = field(default_factory=dict)
    puts: list[router_pb2.Domain] = field(default_factory=list)

    async def ListDomains(self, request: Any, context: Any) -> router_pb2.ListDomainsResponse:
        return router_pb2.ListDomainsResponse(domains=self.domains.values())

    async def PutDomain(self, request: router_pb2.PutDomainRequest, context: Any) -> router_pb2.PutDomainResponse:
        self.domains[request.domain.name] = request.domain
        self.puts.append(request.domain)
        return router_pb2.PutDomainResponse(domain=request.domain)

    async def CreateExperiment(
        self, request: router_pb2.CreateExperimentRequest, context: Any
    ) -> router_pb2.CreateExperimentResponse:
        if request.request_id not in self.experiments:
            if any(known.state == "running" for known in self.experiments.values()):
                raise Conflict("another experiment runs", code="experiment_running")
            request.experiment.id, request.experiment.state = f"x-{len(self.experiments) + 1}", "running"
            self.experiments[request.request_id] = request.experiment
        return router_pb2.CreateExperimentResponse(experiment=self.experiments[request.request_id])

    async def GetExperiment(
        self, request: router_pb2.GetExperimentRequest, context: Any
    ) -> router_pb2.GetExperimentResponse:
        return router_pb2.GetExperimentResponse(experiment=self.by_id(request.id))

    async def StopExperiment(
        self, request: router_pb2.StopExperimentRequest, context: Any
    ) -> router_pb2.StopExperimentResponse:
        experiment = self.by_id(request.id)
        if experiment.state == "running":
            experiment.state, experiment.reason = "stopped", request.reason
        return router_pb2.StopExperimentResponse(experiment=experiment)

    def by_id(self, id_: str) -> router_pb2.Experiment:
        return next(known for known in self.experiments.values() if known.id == id_)


@dataclass
class Adapters(adapters_pb2_grpc.AdaptersServiceServicer):
    """Versions and the alias `stable`, moved by compare-and-set."""

    versions: dict[str, adapters_pb2.Adapter] = field(default_factory=dict)
    stable: dict[str, str] = field(default_factory=dict)
    moves: list[tuple[str, str]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    def register(self, model: str) -> None:
        name, _, version = model.partition(":")
        base, _, adapter = name.partition("@")
        self.versions[model] = adapters_pb2.Adapter(
            base=base, name=adapter, version=version, digest=f"sha256:{version}", status="active"
        )

    def find(self, model: str) -> adapters_pb2.Adapter:
        name, _, version = model.partition(":")
        if version == "stable":
            model = f"{name}:{self.stable.get(name, '?')}"
        if model not in self.versions:
            raise Missing(f"no adapter {model}", code="unknown_adapter")
        return self.versions[model]

    async def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, context: Any
    ) -> adapters_pb2.GetAdapterResponse:
        return adapters_pb2.GetAdapterResponse(adapter=self.find(request.model))

    async def SetAlias(self, request: adapters_pb2.SetAliasRequest, context: Any) -> adapters_pb2.SetAliasResponse:
        name = f"{request.base}@{request.name}"
        now = self.versions[f"{name}:{self.stable[name]}"].digest if name in self.stable else ""
        if request.expected_digest != now:
            raise Conflict(f"{name} points at {now!r}", code="alias_moved")
        if request.version:
            self.find(f"{name}:{request.version}")
            self.stable[name] = request.version
        else:
            del self.stable[name]
        self.moves.append((name, request.version))
        return adapters_pb2.SetAliasResponse()

    async def DeleteAdapter(
        self, request: adapters_pb2.DeleteAdapterRequest, context: Any
    ) -> adapters_pb2.DeleteAdapterResponse:
        self.find(request.model).status = "withdrawn"
        self.deleted.append(request.model)
        return adapters_pb2.DeleteAdapterResponse()


class Street:
    """A learner, which tests close and open again, among scripted rooms, each of which they take down and up."""

    def __init__(self, house: House, config: LearnerConfig, bus: Bus) -> None:
        self.executor, self.trainer, self.router, self.adapters = Executor(), Trainer(), Router(), Adapters()
        self.decided: list[events_pb2.PromotionDecided] = []
        self.house = house
        self._config = config
        self._bus = bus
        self._open: dict[str, AsyncExitStack] = {}
        self._add: dict[str, Callable[[grpc.aio.Server], None]] = {
            "executor": lambda s: executor_pb2_grpc.add_ExecutorServiceServicer_to_server(self.executor, s),
            "trainer": lambda s: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(self.trainer, s),
            "router": lambda s: router_pb2_grpc.add_RouterServiceServicer_to_server(self.router, s),
            "adapters": lambda s: adapters_pb2_grpc.add_AdaptersServiceServicer_to_server(self.adapters, s),
        }

    async def up(self, *rooms: str) -> None:
        """Open rooms; `learner` is the real one."""
        for room in rooms or (*self._add, "learner"):
            stack = self._open[room] = AsyncExitStack()
            if room == "learner":
                await stack.enter_async_context(open_learner(self.house, self._config, World()))
            else:
                address = self.house.address(room)
                await stack.enter_async_context(open_server(address, [self._add[room]], names=[], token=TOKEN))

    async def down(self, *rooms: str) -> None:
        """Close rooms, the one opened last first."""
        for room in rooms or reversed(list(self._open)):
            await self._open.pop(room).aclose()

    async def again(self) -> None:
        """Close the learner and open it on the same home."""
        await self.down("learner")
        await self.up("learner")

    async def ask(self, method: str, request: Any, tenant: str = TENANT) -> Any:
        """Call the learner."""
        async with dial(self.house.address("learner"), token=TOKEN) as channel:
            with as_caller(Caller(tenant)):
                return await getattr(learner_pb2_grpc.LearnerServiceStub(channel), method)(request)

    async def correct(self, *numbers: int) -> None:
        """Users correct executions."""
        for number in numbers:
            feedback = learner_pb2.Feedback(execution_id=f"e-{number}", correction=f"SWAP {number}")
            await self.ask("RecordFeedback", learner_pb2.RecordFeedbackRequest(feedback=feedback))

    async def tell(self, type_: str, message: Any, id_: str = "") -> None:
        """Publish another room's event."""
        world = World()
        event = Event(
            id=id_ or world.new_id(),
            type=type_,
            tenant=TENANT,
            time_s=world.clock.now(),
            data=message.SerializeToString(),
        )
        await self._bus.publish(event)

    async def job_ends(self, id_: str, state: str = "succeeded", model: str = "", reason: str = "") -> None:
        """The trainer ends a job, which registered `model`."""
        job = self.trainer.by_id(id_)
        job.state, job.model, job.reason = state, model, reason
        job.metrics["accuracy"] = 0.93
        if model:
            self.adapters.register(model)
        told = events_pb2.JobFinished(job_id=id_, state=state, model=model, reason=reason, metrics=job.metrics)
        await self.tell("trainer.job.finished", told)

    async def canary_ends(self, id_: str, state: str) -> None:
        """The router decides an experiment."""
        experiment = self.router.by_id(id_)
        experiment.state, experiment.reason = state, "p 0.01 after 60 outcomes"
        told = events_pb2.ExperimentDecided(
            experiment_id=id_, state=state, reason=experiment.reason, p_quality=0.01, outcomes=60
        )
        await self.tell("router.experiment.decided", told)

    async def note(self, event: Event) -> None:
        """Take a decision of the learner down."""
        self.decided.append(events_pb2.PromotionDecided.FromString(event.data))

    def states(self) -> list[str]:
        """What the learner announced."""
        return [told.state for told in self.decided]


@asynccontextmanager
async def street(home: Path, **settings: Any) -> AsyncIterator[Street]:
    """A street with every room open and a real broker."""
    async with nats_server(home / "nats") as url:
        models = [
            ModelConfig(name="small", path="models/small", price=PriceConfig(output=0.4)),
            ModelConfig(name="large", path="models/large", price=PriceConfig(output=4.0)),
            ModelConfig(name="outside", provider="openai", base_url="http://x", price=PriceConfig(output=40.0)),
        ]
        house = House(
            home=str(home / "home"), auth=AuthConfig(service_token=TOKEN), bus=BusConfig(url=url), models=models
        )
        async with open_bus(url, name="test") as bus:
            here = Street(house, LearnerConfig(**{"threshold": 20, **settings}), bus)
            async with running(bus.watch(["learner.promotion.decided"], here.note, since_now=False)):
                await here.up()
                try:
                    yield here
                finally:
                    await asyncio.shield(here.down())
