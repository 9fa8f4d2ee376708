"""The strategies by shape: each a generator of actions, run by `core.driving`."""

from collections.abc import Callable, Mapping

from catena.executor.core.actions import Strategy
from catena.executor.core.chat import ChatRequest
from catena.executor.core.strategies.cascade import cascade
from catena.executor.core.strategies.consensus import consensus
from catena.executor.core.strategies.draft_refine import draft_refine
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.search import search
from catena.executor.core.strategies.sequential import sequential
from catena.executor.core.strategies.speculative import speculative
from catena.kit.errors import Invalid
from catena.plan.model import Plan, Role, Shape

StrategyMaker = Callable[[Plan, ChatRequest, Facts], Strategy]

STRATEGIES: Mapping[Shape, StrategyMaker] = {
    Shape.SEQUENTIAL: sequential,
    Shape.DRAFT_REFINE: draft_refine,
    Shape.CASCADE: cascade,
    Shape.CONSENSUS: consensus,
    Shape.SPECULATIVE: speculative,
    Shape.SEARCH: search,
}
ROLES: Mapping[Shape, tuple[Role, ...]] = {
    Shape.DRAFT_REFINE: (Role.DRAFT, Role.MAIN),
    Shape.CASCADE: (Role.FAST, Role.MAIN),
    Shape.CONSENSUS: (Role.MEMBER,),
    Shape.SPECULATIVE: (Role.DRAFT, Role.MAIN),
    Shape.SEARCH: (Role.MAIN,),
}


def check_roles(plan: Plan) -> None:
    """Raise Invalid (`bad_plan`) when the plan lacks a stage that its shape needs, or names two alike."""
    if not plan.stages:
        raise Invalid("the plan has no stages; give at least one", code="bad_plan")
    for role in ROLES.get(plan.shape, ()):
        if not plan.of(role):
            raise Invalid(f"{plan.shape} needs a stage of role {role!r}; add one", code="bad_plan")
    if any(judge.prompt for judge in plan.of(Role.JUDGE)):
        raise Invalid("a judge's stage takes no prompt; give it an instruction", code="bad_plan")
    names = [stage.name for stage in plan.stages]
    if len(set(names)) < len(names):
        raise Invalid(f"stage names {names} are not unique; rename one", code="bad_plan")


__all__ = ["STRATEGIES", "Facts", "StrategyMaker", "check_roles"]
