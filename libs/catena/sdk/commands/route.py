"""`catena route`."""

from typing import Annotated

import typer

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.kit.caller import DEVELOPER
from catena.plan.model import describe
from catena.plan.wire import plan_from_proto
from catena.sdk.terminal import Expected, Tenant, Terminal, number

app = typer.Typer(
    help="The router: explain, statistics, domains, experiments, tuning, evaluation.", no_args_is_help=True
)


@app.command()
def explain(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="A request.")],
    objective: Annotated[str, typer.Option(help="cost, latency, quality or balanced.")] = "",
    max_cost: Annotated[float, typer.Option(help="Hard cap in USD; 0: none.")] = 0.0,
    max_latency: Annotated[float, typer.Option(help="Hard cap in milliseconds; 0: none.")] = 0.0,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Say which plan would run, why, and what the others would cost."""
    terminal: Terminal = context.obj

    async def work() -> None:
        request = router_pb2.RecommendRequest(
            request=types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", content=text)]),
            context=types_pb2.RequestContext(objective=objective, max_cost_usd=max_cost, max_latency_ms=max_latency),
            model="auto",
        )
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.Explain(router_pb2.ExplainRequest(request=request))
        if terminal.plain:
            terminal.message(told)
            return
        columns = ("plan", "quality", "USD", "ms", "utility", "seen", "rejected")
        terminal.table("Candidates; the first would run", columns, map(_candidate, told.candidates))
        terminal.say(told.reason)
        if told.chosen.domains:
            likeliest = ", ".join(f"{one.domain} {one.probability:.2f}" for one in told.chosen.domains[:3])
            none = max(1.0 - sum(one.probability for one in told.chosen.domains), 0.0)
            terminal.say(f"probability of each domain: {likeliest}; of none {none:.2f}")

    terminal.run(work())


def _arm(arm: router_pb2.Arm) -> str:
    """How its answers were judged, and how many were."""
    return f"{arm.name} {arm.mean_quality:.2f} ({arm.outcomes})" if arm.outcomes else f"{arm.name} (0)"


def _candidate(candidate: router_pb2.Candidate) -> tuple[object, ...]:
    """A row: amounts with the ends that caution and caps go by."""
    plan = plan_from_proto(candidate.plan)
    told = plan.prediction
    amounts: tuple[Expected | None, ...] = (None, None, None)
    if told is not None:
        amounts = (
            Expected(told.quality.mean, f"from {told.quality.low:.2g}"),
            Expected(told.cost_usd.mean, f"to {number(told.cost_usd.high)}"),
            Expected(told.latency_ms.mean, f"to {number(told.latency_ms.high)}"),
        )
    return describe(plan), *amounts, candidate.utility, candidate.observations, candidate.rejected


@app.command()
def stats(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """Show what each configuration did."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.GetStats(router_pb2.GetStatsRequest())
        columns = ("plan", "domain", "executions", "judged", "quality", "USD", "ms", "success")
        rows = [
            (
                c.plan,
                c.domain,
                c.executions,
                c.judged,
                c.mean_quality if c.judged else None,
                c.mean_cost_usd,
                c.mean_latency_ms,
                c.success_rate,
            )
            for c in told.configurations
        ]
        terminal.table(f"{told.executions} executions", columns, rows)
        if told.predicted:
            terminal.say(
                f"of the latest {told.predicted} that were predicted, cost lay between its ends in "
                f"{told.cost_within:.1%}, time in {told.latency_within:.1%}; 90% is meant"
            )

    terminal.run(work())


@app.command()
def experiments(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List experiments with their running verdicts."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.ListExperiments(router_pb2.ListExperimentsRequest())
        rows = [
            (
                e.name,
                e.domain,
                e.state,
                "; ".join(map(_arm, e.arms)),
                e.p_quality,
                e.reason,
            )
            for e in told.experiments
        ]
        terminal.table("Experiments", ("experiment", "domain", "state", "arms", "p quality", "reason"), rows)

    terminal.run(work())
