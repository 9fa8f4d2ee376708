"""`catena route tune`, `tunings`, `revert`, `evaluate`: what the router sets by itself, the way back, and what-ifs."""

from collections.abc import Iterable
from typing import Annotated

import typer

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.plan.model import Shape
from catena.plan.wire import SHAPES
from catena.sdk.terminal import Tenant, Terminal, moment, number

MOVED = ("setting", "before", "after", "why")


def tune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would move, and move nothing.")] = False,
    freeze: Annotated[bool | None, typer.Option("--freeze/--thaw", help="Stop learning, or go on.")] = None,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Move the cascade's threshold and the weights to where recorded outcomes want them, by a bounded step."""
    terminal: Terminal = context.obj
    if dry_run and freeze is not None:
        raise typer.BadParameter("--dry-run says what tuning would move; leave --freeze and --thaw out")

    async def work() -> None:
        request = router_pb2.AutoTuneRequest(dry_run=dry_run, freeze=freeze)
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.AutoTune(request)
        title = f"Step {told.number}" if told.number else "Would move" if dry_run else "Moved"
        if freeze is None:
            terminal.table(title, MOVED, map(_moved, told.adjustments))
        elif terminal.plain:
            terminal.message(told)
        else:
            terminal.say("learning is frozen" if freeze else "learning goes on")
        if told.note:
            terminal.say(told.note)
        if told.number:
            terminal.say(f"take it back with `catena route revert {told.number}`")

    terminal.run(work())


def tunings(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List what tuning did, step by step, and how settings stand."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.ListTunings(router_pb2.ListTuningsRequest())
        if terminal.plain:
            terminal.message(told)
            return
        terminal.table("Steps, newest first", ("step", "when", "by", "judged", "moved", "why"), _steps(told.tunings))
        terminal.say(", ".join(f"{name} {value:.4g}" for name, value in sorted(told.settings.items())))
        if told.frozen:
            terminal.say("learning is frozen; `catena route tune --thaw` lets it go on")
        elif told.waits_for:
            terminal.say(f"by itself it goes on once {told.waits_for} more outcomes are judged")

    terminal.run(work())


def revert(
    context: typer.Context,
    step: Annotated[int, typer.Argument(help="Number of the step, as `catena route tunings` lists it.", min=1)],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Take all settings back to before a step; by itself tuning then waits for as much new evidence as led to it."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.RevertTuning(router_pb2.RevertTuningRequest(number=step))
            left = (await router.ListTunings(router_pb2.ListTuningsRequest())).waits_for
        terminal.table(f"Step {told.tuning.number}", MOVED, map(_moved, told.tuning.adjustments))
        terminal.say(f"by itself it goes on once {left} more outcomes are judged")

    terminal.run(work())


def evaluate(
    context: typer.Context,
    objective: Annotated[
        str, typer.Option(help="cost, latency, quality or balanced; each request's own unless named.")
    ] = "",
    weight: Annotated[
        list[str] | None, typer.Option(help="Of `balanced`, for example quality=0.6; those not named are 0.")
    ] = None,
    max_cost: Annotated[float, typer.Option(help="Hard cap in USD; 0: none.")] = 0.0,
    max_latency: Annotated[float, typer.Option(help="Hard cap in milliseconds; 0: none.")] = 0.0,
    always: Annotated[str, typer.Option(help="Always this shape, as configured, or this model alone.")] = "",
    tenant: Tenant = DEVELOPER,
) -> None:
    """Say what another policy would have been worth on the logged requests, without asking one of them again."""
    terminal: Terminal = context.obj

    async def work() -> None:
        shape = Shape(always) if always in [*Shape] else None
        request = router_pb2.EvaluateRequest(
            objective=objective,
            weights=_weights(weight or []),
            max_cost_usd=max_cost,
            max_latency_ms=max_latency,
            model=always if shape is None else "",
            shape=SHAPES[shape] if shape is not None else types_pb2.SHAPE_UNSPECIFIED,
        )
        async with terminal.room("router", router_pb2_grpc.RouterServiceStub, tenant) as router:
            told = await router.Evaluate(request)
        if terminal.plain:
            terminal.message(told)
            return
        measures = (("quality", told.quality), ("USD a request", told.cost_usd), ("ms a request", told.latency_ms))
        terminal.table(
            f"{told.requests} logged requests, {told.judged} judged, {told.matches} answered as this policy would have",
            ("measure", "what ran", "this policy", "difference", "propensities alone"),
            [_measure(name, value) for name, value in measures],
        )
        if told.refused:
            terminal.say(f"for {told.refused} requests no plan keeps these caps; they are left out")
        terminal.say(told.verdict)

    terminal.run(work())


def _weights(told: Iterable[str]) -> dict[str, float]:
    """Weights by name. Raises Invalid (`bad_weights`) for what is no `name=number`."""
    found = {}
    for one in told:
        name, _, value = one.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise Invalid(f"--weight {one!r} is no name=number, such as quality=0.6", code="bad_weights") from None
    return found


def _measure(name: str, worth: router_pb2.Valuation) -> tuple[str, float, str, str, str]:
    alone = f"{number(worth.ips)} ± {number(worth.ips_half_width)}" if worth.HasField("ips") else ""
    return (
        name,
        worth.logged,
        f"{number(worth.expected)} ± {number(worth.half_width)}",
        f"{'+' if worth.gained > 0.0 else ''}{number(worth.gained)} ± {number(worth.gained_half_width)}",
        alone,
    )


def _steps(steps: Iterable[router_pb2.Tuning]) -> list[tuple[object, ...]]:
    return [
        (
            step.number,
            f"{moment(step.time_s):%d %b %H:%M}",
            step.by,
            step.judged,
            "\n".join(
                f"{one.setting.rpartition('.')[2]} {one.before:.4g} > {one.after:.4g}" for one in step.adjustments
            ),
            "\n".join(dict.fromkeys(one.reason for one in step.adjustments)),
        )
        for step in steps
    ]


def _moved(one: router_pb2.Adjustment) -> tuple[str, float, float, str]:
    return one.setting, one.before, one.after, one.reason
