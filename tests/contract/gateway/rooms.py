"""The rooms behind a gateway under test: real gRPC servers whose answers are scripted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.learner.v1 import learner_pb2, learner_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.gateway.app import open_gateway
from catena.gateway.config import GatewayConfig
from catena.kit.chassis import service_token
from catena.kit.clock import World
from catena.kit.config import House, ModelConfig, PriceConfig
from catena.kit.errors import CatenaError, Exhausted, Missing
from catena.kit.serve import caller, open_server
from catena.kit.testing import nats_server
from catena.plan.build import sequential
from catena.plan.wire import plan_to_proto


@dataclass
class Executor(executor_pb2_grpc.ExecutorServiceServicer):
    """Answers with the words of the question, one delta a word; models `busy`, `cut`, `slow`, `stuck` fail."""

    asked: list[executor_pb2.RunRequest] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    records: dict[str, str] = field(default_factory=dict)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    runs: dict[str, executor_pb2.Run] = field(default_factory=dict)

    async def Run(self, request: executor_pb2.RunRequest, context: Any) -> AsyncIterator[executor_pb2.RunResponse]:
        self.asked.append(request)
        self.tenants.append(caller().tenant)
        model = request.plan.stages[0].model if request.plan.stages else request.plan.pipeline
        if model == "nothing":
            raise Missing("unknown model 'nothing'; list them with GET /v1/models", code="unknown_model")
        if model == "busy":
            raise Exhausted("the queue is full; wait", code="queue_full", retry_after_s=3)
        words = (request.request.prompt or request.request.messages[-1].content).split()
        self.records[request.execution_id] = caller().tenant
        yield executor_pb2.RunResponse(stage_started=executor_pb2.StageStarted(name="main", model=model, attempt=1))
        if model == "stuck":
            self.began.set()
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        if request.stream:
            for number, word in enumerate(words):
                text = word if number == 0 else f" {word}"
                yield executor_pb2.RunResponse(delta=types_pb2.Delta(text=text))
                if model == "cut":
                    raise CatenaError("upstream broke off", code="stream_cut")
                if model == "slow":
                    try:
                        await asyncio.sleep(30)
                    finally:
                        self.cancelled.set()
        finished = self.finished(request, model, words)
        yield executor_pb2.RunResponse(finished=finished)
        self.records[finished.execution_id] = caller().tenant

    @staticmethod
    def finished(request: executor_pb2.RunRequest, model: str, words: list[str]) -> executor_pb2.Finished:
        usage = types_pb2.Usage(input_tokens=len(words), output_tokens=len(words))
        message = types_pb2.ChatMessage(role="assistant", content=" ".join(words))
        stage = types_pb2.StageResult(name="main", model=model, usage=usage, cost_usd=0.001, outcome="accepted")
        return executor_pb2.Finished(
            execution_id=request.execution_id or "e-1",
            choices=[types_pb2.Choice(message=message, finish_reason="stop")],
            usage=usage,
            cost_usd=0.001,
            duration_ms=5.0,
            stages=[stage],
            model=model,
            plan=request.plan,
        )

    async def SubmitRun(self, request: executor_pb2.SubmitRunRequest, context: Any) -> executor_pb2.SubmitRunResponse:
        self.asked.append(request.run)
        self.tenants.append(caller().tenant)
        if request.run.plan.pipeline == "nothing":
            raise Missing("unknown pipeline 'nothing'; there is none yet", code="unknown_pipeline")
        id_ = f"r-{request.run.request_id or len(self.asked)}"
        run = self.runs.setdefault(id_, executor_pb2.Run(id=id_, state="queued", created_s=1.0))
        return executor_pb2.SubmitRunResponse(run=run)

    async def GetRun(self, request: executor_pb2.GetRunRequest, context: Any) -> executor_pb2.GetRunResponse:
        if request.id not in self.runs:
            raise Missing(f"unknown run {request.id!r}", code="unknown_run")
        return executor_pb2.GetRunResponse(run=self.runs[request.id])

    async def WatchRun(self, request: executor_pb2.WatchRunRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield executor_pb2.WatchRunResponse(run=self.runs[request.id])
            if self.runs[request.id].state == "cancelled":
                return
            await asyncio.sleep(0.01)

    async def CancelRun(self, request: executor_pb2.CancelRunRequest, context: Any) -> executor_pb2.CancelRunResponse:
        self.runs[request.id].state = "cancelled"
        return executor_pb2.CancelRunResponse(run=self.runs[request.id])

    async def GetExecution(
        self, request: executor_pb2.GetExecutionRequest, context: Any
    ) -> executor_pb2.GetExecutionResponse:
        self.looked.set()
        if self.records.get(request.id) != caller().tenant:
            raise Missing(f"unknown execution {request.id!r}", code="unknown_execution")
        return executor_pb2.GetExecutionResponse(execution=executor_pb2.Execution(id=request.id))

    async def ListModels(self, request: Any, context: Any) -> executor_pb2.ListModelsResponse:
        adapter = executor_pb2.Model(name="base@code", provider="local", parent="base")
        broken = executor_pb2.Model(name="broken", problem="no folder at nope; correct it")
        base = executor_pb2.Model(name="base", provider="local")
        return executor_pb2.ListModelsResponse(models=[base, adapter, broken])

    async def Embed(self, request: executor_pb2.EmbedRequest, context: Any) -> executor_pb2.EmbedResponse:
        vectors = [executor_pb2.Vector(values=[float(len(text)), 0.5]) for text in request.texts]
        return executor_pb2.EmbedResponse(vectors=vectors, usage=types_pb2.Usage(input_tokens=3), model="minilm")

    async def Predict(self, request: executor_pb2.PredictRequest, context: Any) -> executor_pb2.PredictResponse:
        return executor_pb2.PredictResponse(result=request.data, duration_ms=2.5)


ARMS = {"control": 0.61, "treatment": 0.74}


@dataclass
class Router(router_pb2_grpc.RouterServiceServicer):
    """Always recommends `base`."""

    asked: list[router_pb2.RecommendRequest] = field(default_factory=list)

    async def Recommend(self, request: router_pb2.RecommendRequest, context: Any) -> router_pb2.RecommendResponse:
        self.asked.append(request)
        return router_pb2.RecommendResponse(plan=plan_to_proto(sequential("base")), model="base")

    async def ListExperiments(self, request: Any, context: Any) -> router_pb2.ListExperimentsResponse:
        arms = [router_pb2.Arm(name=name, outcomes=40, mean_quality=share) for name, share in ARMS.items()]
        trial = router_pb2.Experiment(name="code 1.3.0", state="won", p_quality=0.012, alpha=0.05, arms=arms)
        return router_pb2.ListExperimentsResponse(experiments=[trial])


@dataclass
class Learner(learner_pb2_grpc.LearnerServiceServicer):
    """Keeps feedback."""

    heard: list[learner_pb2.Feedback] = field(default_factory=list)

    async def RecordFeedback(
        self, request: learner_pb2.RecordFeedbackRequest, context: Any
    ) -> learner_pb2.RecordFeedbackResponse:
        self.heard.append(request.feedback)
        return learner_pb2.RecordFeedbackResponse(id=f"f-{len(self.heard)}")


@dataclass
class Adapters(adapters_pb2_grpc.AdaptersServiceServicer):
    """Serves no adapter under a plain name."""

    async def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, context: Any
    ) -> adapters_pb2.ListAdaptersResponse:
        return adapters_pb2.ListAdaptersResponse()

    async def GetResidency(
        self, request: adapters_pb2.GetResidencyRequest, context: Any
    ) -> adapters_pb2.GetResidencyResponse:
        host = adapters_pb2.Tier(name="host", adapters=3, bytes=42, budget_bytes=100, evictions=7)
        return adapters_pb2.GetResidencyResponse(tiers=[host])


@dataclass(frozen=True)
class Behind:
    """A gateway with what stands behind it."""

    url: str
    key: str
    grpc: str
    executor: Executor
    router: Router
    learner: Learner
    bus: str


@asynccontextmanager
async def gateway_with_rooms(home: Any, *, drain_s: float = 5.0, **settings: Any) -> AsyncIterator[Behind]:
    """A real gateway over scripted rooms, with a real broker."""
    models = [ModelConfig(name="base", price=PriceConfig(input=1.0, output=4.0))]
    house = House(home=str(home), models=models, drain_s=drain_s)
    token = service_token(house)
    executor, router, learner = Executor(), Router(), Learner()
    services = {
        "adapters": lambda s: adapters_pb2_grpc.add_AdaptersServiceServicer_to_server(Adapters(), s),
        "executor": lambda s: executor_pb2_grpc.add_ExecutorServiceServicer_to_server(executor, s),
        "router": lambda s: router_pb2_grpc.add_RouterServiceServicer_to_server(router, s),
        "learner": lambda s: learner_pb2_grpc.add_LearnerServiceServicer_to_server(learner, s),
    }
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(nats_server(home))
        for room, add in services.items():
            await stack.enter_async_context(open_server(house.address(room), [add], names=[], token=token))
        config = GatewayConfig(port=0, **settings)
        await stack.enter_async_context(open_gateway(house, config, World()))
        import msgspec

        url = msgspec.json.decode((home / "run" / "gateway.json").read_bytes())["url"]
        key = (home / "keys" / "development.key").read_text().strip()
        yield Behind(url, key, house.address("gateway"), executor, router, learner, bus)
