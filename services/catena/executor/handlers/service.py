"""The executor's gRPC service: proto in, core call, proto out."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from catena.api.executor.v1 import executor_pb2 as pb
from catena.api.executor.v1 import executor_pb2_grpc
from catena.executor.core import background
from catena.executor.core.admission import Errand
from catena.executor.core.chat import NOTHING_USED
from catena.executor.core.events import StageResult, StageStarted
from catena.executor.core.executor import Executor
from catena.executor.core.predicting import Inquiry
from catena.executor.core.steps import Pipeline
from catena.executor.handlers import chat, wire
from catena.executor.handlers.values import plain, plain_struct
from catena.executor.handlers.written import read_pipeline
from catena.kit.errors import Denied, Invalid
from catena.kit.serve import caller, deadline_s
from catena.plan.wire import plan_from_proto

PAGE = 100
LARGEST_PAGE = 1000
Context = grpc.aio.ServicerContext[Any, Any]


class ExecutorHandlers(executor_pb2_grpc.ExecutorServiceServicer):
    """Every verb on behalf of the caller's tenant."""

    def __init__(self, core: Executor) -> None:
        """Delegate to `core`."""
        self._core = core

    async def Run(self, request: pb.RunRequest, context: Context) -> AsyncIterator[pb.RunResponse]:
        """Run a plan and stream what happens."""
        begun = False
        async with aclosing(self._core.run(errand_from(request))) as events:
            async for event in events:
                if not (begun and request.no_stages and isinstance(event, StageStarted | StageResult)):
                    yield wire.run_event_to(event)
                begun = True

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Turn texts into vectors."""
        found, model = await self._core.embed(
            caller().tenant, request.model, list(request.texts), deadline_s(), truncate=request.truncate
        )
        vectors = [pb.Vector(values=row) for row in found.vectors]
        return pb.EmbedResponse(vectors=vectors, usage=chat.usage_to(found.usage or NOTHING_USED), model=model)

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Context) -> pb.SubmitRunResponse:
        """Accept a run for the background."""
        asked = request.asked or digest_of(request.run)
        errand = replace(errand_from(request.run), payer=request.payer, asked=asked)
        run = await self._core.submit(errand, caller().role)
        return pb.SubmitRunResponse(run=wire.stored_run_to(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """Tell where a background run stands."""
        run = await background.known(self._core.runs, caller().tenant, request.id)
        return pb.GetRunResponse(run=wire.stored_run_to(run))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        """Stream the run each time it changes."""
        async with aclosing(background.watch(self._core.runs, caller().tenant, request.id)) as changes:
            async for run in changes:
                yield pb.WatchRunResponse(run=wire.stored_run_to(run))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        """Ask a background run to stop."""
        run = await self._core.cancel(caller().tenant, request.id)
        return pb.CancelRunResponse(run=wire.stored_run_to(run))

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Run a pipeline or model on one input."""
        asked = Inquiry(
            tenant=caller().tenant,
            model_id=request.model_id,
            data=plain(request.data),
            parameters=plain_struct(request.parameters),
            context=chat.context_from(request.context),
            left_s=deadline_s(),
            no_cache=request.no_cache,
        )
        return wire.predicted_to(await self._core.predict(asked))

    async def BatchPredict(self, request: pb.BatchPredictRequest, context: Context) -> pb.BatchPredictResponse:
        """Run a pipeline or model on many inputs."""
        tenant, left_s = caller().tenant, deadline_s()
        parameters, who = plain_struct(request.parameters), chat.context_from(request.context)
        asked = [
            Inquiry(
                tenant=tenant,
                model_id=request.model_id,
                data=plain(data),
                parameters=parameters,
                context=who,
                left_s=left_s,
            )
            for data in request.data
        ]
        found = await self._core.predict_many(asked, request.concurrency)
        return pb.BatchPredictResponse(results=[wire.predicted_to(one) for one in found])

    async def PutPipeline(self, request: pb.PutPipelineRequest, context: Context) -> pb.PutPipelineResponse:
        """Validate and store a pipeline."""
        stored = await self._core.put_pipeline(caller().tenant, pipeline_of(request))
        return pb.PutPipelineResponse(pipeline=wire.pipeline_to(stored))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.GetPipelineResponse:
        """Return one pipeline."""
        found = await self._core.get_pipeline(caller().tenant, request.name, request.version)
        return pb.GetPipelineResponse(pipeline=wire.pipeline_to(found))

    async def ListPipelines(self, request: pb.ListPipelinesRequest, context: Context) -> pb.ListPipelinesResponse:
        """List pipelines; a page token is the last name."""
        size = request.page_size or PAGE
        if size > LARGEST_PAGE:
            raise Invalid(f"page_size {size} > {LARGEST_PAGE}; ask for fewer", code="out_of_range")
        found = await self._core.parts.pipelines.listed(caller().tenant, size, request.page_token)
        token = found[-1].name if len(found) == size else ""
        return pb.ListPipelinesResponse(pipelines=[wire.pipeline_to(one) for one in found], next_page_token=token)

    async def DeletePipeline(self, request: pb.DeletePipelineRequest, context: Context) -> pb.DeletePipelineResponse:
        """Remove a pipeline with all its versions."""
        await self._core.delete_pipeline(caller().tenant, request.name)
        return pb.DeletePipelineResponse()

    async def PutModel(self, request: pb.PutModelRequest, context: Context) -> pb.PutModelResponse:
        """Add or change a catalogue entry, which is everybody's: for administrators alone."""
        if caller().role != "admin":
            raise Denied("the catalogue is shared by all tenants; use a key of role admin", code="admin_only")
        stored = await self._core.put_model(wire.model_from(request.model))
        return pb.PutModelResponse(model=wire.model_to(stored))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List the catalogue."""
        models = await self._core.parts.catalogue.listed()
        return pb.ListModelsResponse(models=[wire.model_to(model) for model in models])

    async def GetExecution(self, request: pb.GetExecutionRequest, context: Context) -> pb.GetExecutionResponse:
        """Return one execution record."""
        record = await self._core.execution(caller().tenant, request.id)
        return pb.GetExecutionResponse(execution=wire.record_to(record))

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        """Return counts and averages."""
        found = await self._core.archive.figures(caller().tenant, request.pipeline)
        return pb.GetMetricsResponse(pipelines=[wire.figures_to(one) for one in found])


def pipeline_of(request: pb.PutPipelineRequest) -> Pipeline:
    """The pipeline that is to be stored. Raises Invalid (`bad_pipeline`) where none or two are given."""
    if request.HasField("pipeline") == bool(request.yaml):
        raise Invalid("give a pipeline either as fields or as yaml", code="bad_pipeline")
    return read_pipeline(request.yaml) if request.yaml else wire.pipeline_from(request.pipeline)


def digest_of(run: pb.RunRequest) -> str:
    """Tells one run from another, whatever its `request_id`."""
    return hashlib.sha256(run.SerializeToString(deterministic=True)).hexdigest()


def errand_from(request: pb.RunRequest) -> Errand:
    """What the caller wants run, on behalf of its tenant and within its deadline."""
    return Errand(
        any_model=request.any_model,
        tenant=caller().tenant,
        plan=plan_from_proto(request.plan),
        request=chat.chat_from(request.request),
        context=chat.context_from(request.context),
        left_s=deadline_s(),
        no_cache=request.no_cache,
        stream=request.stream,
        request_id=request.request_id,
        execution_id=request.execution_id,
    )
