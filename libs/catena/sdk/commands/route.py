"""`catena route`."""

from typing import Annotated

import typer

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.kit.caller import DEVELOPER
from catena.plan.model import describe
from catena.plan.wire import plan_from_proto
from catena.sdk.terminal import Tenant, Terminal

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
        rows = []
        for candidate in told.candidates:
            plan = plan_from_proto(candidate.plan)
            expected = plan.prediction
            rows.append(
                (
                    describe(plan),
                    expected.quality.mean if expected else None,
                    expected.cost_usd.mean if expected else None,
                    expected.latency_ms.mean if expected else None,
                    candidate.utility,
                    candidate.observations,
                    candidate.rejected,
                )
            )
        columns = ("plan", "quality", "USD", "ms", "utility", "seen", "rejected")
        terminal.table("Candidates; the first would run", columns, rows)
        terminal.say(told.reason)

    terminal.run(work())


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
                c.mean_quality,
                c.mean_cost_usd,
                c.mean_latency_ms,
                c.success_rate,
            )
            for c in told.configurations
        ]
        terminal.table(f"{told.executions} executions", columns, rows)

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
                "; ".join(f"{arm.name} {arm.mean_quality:.2f} ({arm.outcomes})" for arm in e.arms),
                e.p_quality,
                e.reason,
            )
            for e in told.experiments
        ]
        terminal.table("Experiments", ("experiment", "domain", "state", "arms", "p quality", "reason"), rows)

    terminal.run(work())
