"""From a request's words to the executor's events; shared by HTTP and gRPC so that both behave alike."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from dataclasses import dataclass, field, replace

import msgspec

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.learner.v1 import learner_pb2, learner_pb2_grpc
from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import AUTO, Choice, cap, objective
from catena.gateway.core.figures import Board
from catena.gateway.core.hour import Outcome
from catena.gateway.core.keys import Gateway, Key
from catena.gateway.handlers.bill import Bill, answering, main_usage, predicted
from catena.gateway.handlers.images import Images
from catena.gateway.handlers.lora_names import LoraNames
from catena.gateway.handlers.owing import RECORDED_WITHIN_S, Owing, recorded
from catena.gateway.handlers.telling import shape_name
from catena.kit.caller import deadline_s, within
from catena.kit.clock import World
from catena.kit.errors import CatenaError, Denied, Exhausted, Invalid, Late, Missing, Unavailable
from catena.plan.build import sequential
from catena.plan.model import Plan, Shape
from catena.plan.wire import SHAPES, plan_to_proto

Event = executor_pb2.RunResponse
OUTCOMES: dict[str, Outcome] = {"succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}
"""An execution's outcome as the figures know it."""
Baseline = Callable[[types_pb2.Usage], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request, decoded.

    `stages`: whether all events of stages are wanted. `execution_id`: what its execution shall be called; a background
    run has its own.
    """

    key: Key
    choice: Choice
    request: types_pb2.ChatRequest
    context: types_pb2.RequestContext
    stream: bool = False
    stages: bool = False
    no_cache: bool = False
    execution_id: str

    def digest(self) -> str:
        """Tells what was asked from anything else; the plan is left out, for the router may choose another one."""
        choice = msgspec.json.encode(self.choice)
        parts = (part.SerializeToString(deterministic=True) for part in (self.request, self.context))
        told = hashlib.sha256()
        for part in (choice, *parts, bytes([self.no_cache])):
            told.update(len(part).to_bytes(8, "big") + part)
        return told.hexdigest()


@dataclass(slots=True, kw_only=True)
class Asking:
    """Asks the rooms behind. `baseline` prices an answer's tokens on the model that the dashboard compares with."""

    world: World
    gateway: Gateway
    figures: Board
    router: "router_pb2_grpc.RouterServiceAsyncStub"
    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub"
    learner: "learner_pb2_grpc.LearnerServiceAsyncStub"
    names: LoraNames
    owing: Owing
    images: Images
    timeout_s: float
    baseline: Baseline = field(default=lambda usage: 0.0)

    async def plan(self, question: Question) -> types_pb2.Plan:
        """The plan to run; the router is asked only where it has a say. Raises Invalid for images past the limits."""
        self.images.check(question.request)
        choice = question.choice
        choice = replace(choice, model=await self.names.meaning(question.key.tenant, choice.model))
        if choice.pipeline:
            return plan_to_proto(Plan(shape=Shape.SEQUENTIAL, pipeline=choice.pipeline))
        if not choice.needs_router:
            return plan_to_proto(sequential(choice.model))
        wanted = router_pb2.RecommendRequest(
            request=question.request,
            context=question.context,
            model=choice.model or AUTO,
            shape=SHAPES[choice.shape] if choice.shape else types_pb2.SHAPE_UNSPECIFIED,
        )
        return (await self.router.Recommend(wanted)).plan

    async def run(self, question: Question) -> AsyncGenerator[executor_pb2.RunResponse, None]:
        """The executor's events, the last one `finished`; the request is admitted before and counted after.

        It is charged what the executor says that it cost, also where the iteration is left or a stage fails.
        """
        with self._counted(question.key, question.context) as bill, self._in_time(question):
            run = executor_pb2.RunRequest(
                plan=await self.plan(question),
                request=question.request,
                context=question.context,
                no_cache=question.no_cache,
                any_model=question.choice.model == AUTO,
                stream=question.stream,
                no_stages=not question.stages,
                execution_id=question.execution_id,
            )
            call = self.executor.Run(run, timeout=deadline_s())
            async with contextlib.aclosing(_events(call, bill, question.execution_id)) as events:
                async for event in events:
                    if event.HasField("finished"):
                        bill.put(self._bill(event.finished, event.finished.model))
                    yield event

    async def predict(self, key: Key, wanted: executor_pb2.PredictRequest) -> executor_pb2.PredictResponse:
        """A pipeline or model on one input, admitted, counted and charged."""
        with self._counted(key, wanted.context) as bill:
            done = await self.executor.Predict(wanted)
            bill.put(predicted(wanted.model_id, [done]))
        return done

    async def predict_many(
        self, key: Key, wanted: executor_pb2.BatchPredictRequest
    ) -> executor_pb2.BatchPredictResponse:
        """A pipeline or model on many inputs; one request, charged for all of them."""
        with self._counted(key, wanted.context) as bill:
            done = await self.executor.BatchPredict(wanted)
            bill.put(predicted(wanted.model_id, done.results))
        return done

    async def embed(self, key: Key, wanted: executor_pb2.EmbedRequest) -> executor_pb2.EmbedResponse:
        """Texts as vectors, admitted, counted and charged."""
        with self._counted(key, types_pb2.RequestContext()) as bill:
            made = await self.executor.Embed(wanted)
            bill.put(Bill(model=made.model, shape="embedding", tokens=made.usage.input_tokens))
        return made

    async def submit(self, question: Question, request_id: str) -> executor_pb2.Run:
        """The run, stored for the background; the same for every repeat of a `request_id` that is not empty.

        Raises Conflict (`request_id_reused`) for a repeat that asks something else.
        """
        self.gateway.admit(question.key, self.world.clock.now())
        with within(self.timeout_s):
            run = executor_pb2.RunRequest(
                plan=await self.plan(question),
                request=question.request,
                context=question.context,
                no_cache=question.no_cache,
                any_model=question.choice.model == AUTO,
                request_id=request_id,
            )
            submitted = executor_pb2.SubmitRunRequest(run=run, payer=question.key.id, asked=question.digest())
            return (await self.executor.SubmitRun(submitted)).run

    @contextlib.contextmanager
    def _in_time(self, question: Question) -> Iterator[None]:
        """The question's own cap on time, or the house's; a call that ran out of it says only that, not why."""
        cap_ms = question.context.max_latency_ms
        try:
            with within(cap_ms / 1000 or self.timeout_s):
                yield
        except Late as error:
            if error.code != Late.default_code:
                raise
            limit = f"max_latency_ms {cap_ms:g}" if cap_ms else f"gateway.timeout_s {self.timeout_s:g}"
            raise Late(f"no answer within {limit}; raise it or drop it", code="deadline_exceeded") from error

    async def judge(self, feedback: learner_pb2.Feedback) -> str:
        """The id of the feedback, once the learner has committed it.

        Raises Missing (`unknown_execution`) unless the caller's tenant ran the execution; its record may still be on
        its way, for it is written a moment after the answer.
        """
        await recorded(self.executor, feedback.execution_id, RECORDED_WITHIN_S)
        heard = await self.learner.RecordFeedback(learner_pb2.RecordFeedbackRequest(feedback=feedback))
        return heard.id

    def settle(self, tenant: str, payer: str, execution: executor_pb2.Execution) -> None:
        """Count a background run that ended, which is written down already."""
        now_s = self.world.clock.now()
        models = [stage.model for stage in execution.stages if stage.outcome == "accepted"]
        bill = self._bill(execution, models[-1] if models else "")
        self.gateway.settle(payer, now_s, tokens=bill.tokens, cost_usd=bill.cost_usd)
        self.figures.count(
            tenant,
            bill.ended(
                now_s,
                agent_type=execution.context.agent_type,
                outcome=OUTCOMES.get(execution.outcome, "failed"),
                duration_ms=execution.duration_ms,
            ),
        )

    def _bill(self, done: executor_pb2.Finished | executor_pb2.Execution, model: str) -> Bill:
        return Bill(
            model=answering(done, model),
            shape=shape_name(done.plan),
            tokens=done.usage.input_tokens + done.usage.output_tokens,
            cost_usd=done.cost_usd,
            baseline_usd=self.baseline(main_usage(done)),
        )

    @contextlib.contextmanager
    def _counted(self, key: Key, context: types_pb2.RequestContext) -> Iterator[Bill]:
        """Admit a request, then count how it ended and charge what the block puts on the bill.

        Where the block leaves an execution owed instead, that is done once its record tells what it cost.
        """
        self.gateway.admit(key, self.world.clock.now())
        started, bill = self.world.clock.monotonic(), Bill()
        outcome: Outcome = "failed"
        try:
            yield bill
        except (Invalid, Missing, Denied):
            outcome = "refused"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        finally:
            took_ms = 1000 * (self.world.clock.monotonic() - started)
            outcome = "succeeded" if bill.known else outcome

            def settle(execution: executor_pb2.Execution | None = None) -> None:
                if execution is not None:
                    bill.owe(self._bill(execution, ""))
                now_s = self.world.clock.now()
                self.gateway.charge(key, now_s, tokens=bill.tokens, cost_usd=bill.cost_usd)
                ended = bill.ended(now_s, agent_type=context.agent_type, outcome=outcome, duration_ms=took_ms)
                self.figures.count(key.tenant, ended)

            if bill.owed:
                self.owing.follow(bill.owed, settle)
            else:
                settle()


async def _events(call: AsyncIterable[Event], bill: Bill, execution_id: str) -> AsyncGenerator[Event, None]:
    """The events of `call`; the execution is owed until the bill is put, unless it was refused before it began."""
    bill.owed, begun = execution_id, False
    try:
        async for event in call:
            begun = True
            yield event
    except (Invalid, Missing, Denied, Exhausted, Unavailable):
        bill.owed = execution_id if begun else ""
        raise


def check_context(context: types_pb2.RequestContext) -> types_pb2.RequestContext:
    """The context, if its numbers and words make sense. Raises Invalid."""
    objective(context.objective)
    for name in ("max_latency_ms", "max_cost_usd"):
        value = getattr(context, name)
        cap(name, value if value != 0 else None)
    return context


def deepest(error: BaseException) -> CatenaError:
    """The expected error inside whatever was raised; anything else becomes an internal one that tells nothing."""
    if isinstance(error, CatenaError):
        return error
    if isinstance(error, RecursionError):
        return Invalid("the request is nested too deeply; flatten it", code="too_deep")
    return CatenaError("internal error; the trace tells more", code="internal")
