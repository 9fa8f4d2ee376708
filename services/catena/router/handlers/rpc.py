"""RouterService: proto in, core call, proto out."""

from typing import Any, TypeAlias

import grpc

from catena.api.router.v1 import router_pb2 as pb
from catena.api.router.v1.router_pb2_grpc import RouterServiceServicer
from catena.kit.caller import caller
from catena.router.core.atlas import Atlas
from catena.router.core.intervals import Kept
from catena.router.core.recorded import Recorded, check_recorded
from catena.router.core.router import Router
from catena.router.core.steps import OPERATOR
from catena.router.core.trials import Trials
from catena.router.core.tuner import Tuned, Tuner
from catena.router.handlers.messages import (
    adjustment_to,
    ask_of,
    candidate_to,
    domain_from,
    domain_to,
    evaluation_to,
    experiment_from,
    experiment_to,
    policy_of,
    recommended_to,
    totals_to,
    tuning_to,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RouterHandlers(RouterServiceServicer):
    """`RouterService` over `Router`."""

    def __init__(self, router: Router, atlas: Atlas, tuner: Tuner, trials: Trials) -> None:
        """Answer from `router`, and from what keeps its domains, tunes and tries it."""
        self._router = router
        self._atlas = atlas
        self._tuner = tuner
        self._trials = trials

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:
        """The plan to run."""
        return recommended_to(await self._router.recommend(caller().tenant, ask_of(request)))

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """Why, and what else was weighed."""
        tenant = caller().tenant
        decision = await self._router.explain(tenant, ask_of(request.request))
        return pb.ExplainResponse(
            chosen=recommended_to(decision),
            candidates=[candidate_to(candidate) for candidate in decision.ranked],
            weights=self._router.weights(tenant),
            reason=decision.reason,
        )

    async def RecordExecution(self, request: pb.RecordExecutionRequest, context: Context) -> pb.RecordExecutionResponse:
        """Take in an execution from elsewhere."""
        told = Recorded(
            execution_id=request.execution_id,
            configuration_id=request.configuration_id,
            text=request.text,
            domain=request.domain,
            latency_ms=request.latency_ms,
            cost_usd=request.cost_usd,
            quality=request.quality if request.HasField("quality") else None,
            succeeded=request.success,
            time_s=request.time_s,
        )
        await self._router.record(caller().tenant, check_recorded(told))
        return pb.RecordExecutionResponse()

    async def AutoTune(self, request: pb.AutoTuneRequest, context: Context) -> pb.AutoTuneResponse:
        """Learn all that is known; move settings, or the freeze."""
        tenant = caller().tenant
        tuned = Tuned()
        if not request.HasField("freeze"):
            tuned = await self._tuner.tune(tenant, by=OPERATOR, dry_run=request.dry_run)
        elif not request.dry_run:
            await self._tuner.freeze(tenant, request.freeze)
        return pb.AutoTuneResponse(
            adjustments=[adjustment_to(one) for one in tuned.moved],
            observations=self._router.outcomes(tenant),
            number=tuned.step,
            note=tuned.note,
        )

    async def ListTunings(self, request: pb.ListTuningsRequest, context: Context) -> pb.ListTuningsResponse:
        """What tuning did, and how settings stand."""
        tenant = caller().tenant
        steps = await self._tuner.steps(tenant)
        return pb.ListTuningsResponse(
            tunings=[tuning_to(step) for step in reversed(steps)],
            settings=self._tuner.settings(tenant),
            waits_for=self._tuner.lacking(tenant),
            frozen=self._router.state.frozen_at(tenant) is not None,
        )

    async def RevertTuning(self, request: pb.RevertTuningRequest, context: Context) -> pb.RevertTuningResponse:
        """Settings as before a step."""
        step = await self._tuner.revert(caller().tenant, request.number, OPERATOR)
        return pb.RevertTuningResponse(tuning=tuning_to(step))

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateResponse:
        """What another policy is worth."""
        return evaluation_to(await self._tuner.evaluate(caller().tenant, policy_of(request), dict(request.weights)))

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        """Aggregate figures."""
        tenant = caller().tenant
        report, known = await self._router.report(tenant), self._router.knowledge(tenant)
        kept = known.kept if known is not None else Kept()
        return pb.GetStatsResponse(
            configurations=[totals_to(totals) for totals in report.configurations],
            executions=report.executions,
            predicted=kept.runs,
            cost_within=kept.cost,
            latency_within=kept.time,
        )

    async def PutDomain(self, request: pb.PutDomainRequest, context: Context) -> pb.PutDomainResponse:
        """Add or replace a domain."""
        stored = await self._atlas.put(domain_from(request.domain, caller().tenant))
        return pb.PutDomainResponse(domain=domain_to(stored))

    async def ListDomains(self, request: pb.ListDomainsRequest, context: Context) -> pb.ListDomainsResponse:
        """The domains that the tenant sees."""
        tenant = caller().tenant
        domains = [domain_to(d) for d in self._atlas.list(tenant)]
        return pb.ListDomainsResponse(domains=domains, strangers=self._router.strangers(tenant))

    async def MergeDomains(self, request: pb.MergeDomainsRequest, context: Context) -> pb.MergeDomainsResponse:
        """Make one of several."""
        stored = await self._atlas.merge(caller().tenant, request.names, request.into, request.specialist)
        return pb.MergeDomainsResponse(domain=domain_to(stored))

    async def DeleteDomain(self, request: pb.DeleteDomainRequest, context: Context) -> pb.DeleteDomainResponse:
        """Remove a domain."""
        await self._atlas.delete(caller().tenant, request.name)
        return pb.DeleteDomainResponse()

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: Context
    ) -> pb.CreateExperimentResponse:
        """Start an experiment."""
        asked = experiment_from(request.experiment, caller().tenant)
        started = await self._trials.create(asked, request.request_id)
        return pb.CreateExperimentResponse(experiment=experiment_to(started))

    async def GetExperiment(self, request: pb.GetExperimentRequest, context: Context) -> pb.GetExperimentResponse:
        """One experiment as it stands."""
        found = await self._trials.get(caller().tenant, request.id)
        return pb.GetExperimentResponse(experiment=experiment_to(found))

    async def ListExperiments(self, request: pb.ListExperimentsRequest, context: Context) -> pb.ListExperimentsResponse:
        """The tenant's experiments."""
        found = await self._trials.list(caller().tenant, request.state)
        return pb.ListExperimentsResponse(experiments=[experiment_to(one) for one in found])

    async def StopExperiment(self, request: pb.StopExperimentRequest, context: Context) -> pb.StopExperimentResponse:
        """End an experiment without a verdict."""
        stopped = await self._trials.stop(caller().tenant, request.id, request.reason)
        return pb.StopExperimentResponse(experiment=experiment_to(stopped))
