"""Moves settings with what was recorded, keeps every step, takes steps back, and values policies on the log."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from catena.kit.clock import World
from catena.kit.errors import Invalid
from catena.plan.model import Shape
from catena.router.core.ask import AUTO, Ask, check, check_weights
from catena.router.core.board import Board, mix_of
from catena.router.core.candidates import forced_plans
from catena.router.core.evaluation import Evaluation, evaluate
from catena.router.core.hindsight import hindsight_of
from catena.router.core.observation import Observation
from catena.router.core.ports import Journal, Switch
from catena.router.core.router import Router
from catena.router.core.state import FROZEN
from catena.router.core.steps import ITSELF, Adjustment, Step, in_force, lacking, taken_back
from catena.router.core.tuning import THRESHOLD, WEIGHT, Bounds, tune_threshold, tune_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a tuning moved, or would; `step`: its number, 0: none was taken; `note`: why nothing moved."""

    moved: Sequence[Adjustment] = ()
    step: int = 0
    judged: int = 0
    note: str = ""


class Tuner:
    """Tunes a router; every step is in the journal, so that a restart and other replicas stand alike."""

    def __init__(self, router: Router, journal: Journal, bounds: Bounds, world: World) -> None:
        """Nothing is started."""
        self._router = router
        self._journal = journal
        self._bounds = bounds
        self._world = world

    async def tune(self, tenant: str, *, by: str, dry_run: bool = False) -> Tuned:
        """Learn everything committed so far, then move threshold and weights by a bounded step.

        By itself only on new evidence, and after a revert on as much as had led to what was reverted. Raises Conflict
        (`tuned_meanwhile`) when another replica was quicker.
        """
        await self._router.settle()
        book, state = self._router.state.book(tenant), self._router.state
        judged, steps = book.judged_since(0), state.steps_of(tenant)
        if book.board is None:
            return Tuned(note="nothing is known yet: no request came and no model is there")
        if state.frozen_at(tenant) is not None:
            return Tuned(judged=judged, note="learning is frozen; thaw it with `catena route tune --thaw`")
        wanting = self.lacking(tenant) if by == ITSELF else 0
        if wanting:
            return Tuned(judged=judged, note=f"waits for {wanting} more judged outcomes since step {steps[-1].number}")
        moved = await asyncio.to_thread(self._moves, book.board, book.observations())
        if not moved:
            few = max(self._bounds.min_judged - book.board.knowledge.judged_outcomes, 0)
            note = f"{few} more judged outcomes are needed" if few else "nothing has to move on what was judged"
            return Tuned(judged=judged, note=note)
        if dry_run:
            return Tuned(moved=moved, judged=judged)
        step = await self._take(tenant, by, moved, judged=judged)
        return Tuned(moved=moved, step=step.number, judged=judged)

    async def freeze(self, tenant: str, frozen: bool) -> None:
        """Stop learning and exploration as of now, or go on."""
        await self._router.settle()
        switch = Switch(tenant=tenant, name=FROZEN, value=0.0 if frozen else None)
        await self._journal.put_switch(switch, now=frozen)
        await self._router.settle()

    async def steps(self, tenant: str) -> list[Step]:
        """Every step of a tenant, oldest first."""
        await self._router.refresh()
        return self._router.state.steps_of(tenant)

    async def revert(self, tenant: str, number: int, by: str) -> Step:
        """Take all settings back to before a step; this is a step itself.

        Raises Missing for a step that is not there, Invalid (`nothing_to_revert`) when all stand so already.
        """
        await self._router.settle()
        moved = taken_back(self._router.state.steps_of(tenant), number, self.configured(tenant))
        if not moved:
            raise Invalid(
                f"every setting stands as before step {number} already; see `catena route tunings`",
                code="nothing_to_revert",
            )
        return await self._take(tenant, by, moved, reverts=number)

    def lacking(self, tenant: str) -> int:
        """Outcomes that must still be judged before tuning goes on by itself."""
        book, steps = self._router.state.book(tenant), self._router.state.steps_of(tenant)
        since = book.judged_since(steps[-1].upto) if steps else 0
        return lacking(steps, since, self._bounds.min_judged)

    def configured(self, tenant: str) -> Mapping[str, float]:
        """What can be tuned, as it is configured."""
        cascade = self._router.state.house.shapes.get(Shape.CASCADE)
        weights = {WEIGHT + name: weight for name, weight in self._router.taste.weights.items()}
        return weights if cascade is None else {THRESHOLD: cascade.threshold, **weights}

    def settings(self, tenant: str) -> Mapping[str, float]:
        """What can be tuned, as it stands."""
        return {**self.configured(tenant), **in_force(self._router.state.steps_of(tenant))}

    async def evaluate(self, tenant: str, ask: Ask, weights: Mapping[str, float]) -> Evaluation:
        """What another policy would have been worth on the tenant's log.

        The policy: what `auto` chooses now by objective, caps and (empty: as in force) weights; or a model or shape.
        Raises Invalid for bounds that mean nothing and for a log that holds nothing of use, Missing for an unknown
        model.
        """
        check(ask)
        wanted = check_weights(_known(weights)) if weights else None
        await self._router.settle()
        board = await self._router.board(tenant)
        now = board.taste
        taste = replace(now, objective=ask.objective or now.objective, weights=wanted or now.weights)
        free = ask.shape is None and ask.model == AUTO
        plans = None if free else forced_plans(ask, board.house, board.knowledge.catalogue)
        logged = self._router.state.book(tenant).observations()

        def valued() -> Evaluation:
            hindsight = hindsight_of(board, logged, plans)
            return evaluate(logged, hindsight.policy(taste, ask), hindsight.foretell)

        return await asyncio.to_thread(valued)

    def _moves(self, board: Board, logged: Sequence[Observation]) -> list[Adjustment]:
        moved: list[Adjustment] = []
        cascade, knowledge = board.house.shapes.get(Shape.CASCADE), board.knowledge
        if cascade is not None:
            levels = self._router.state.house.thresholds
            threshold = tune_threshold(cascade, knowledge, mix_of(logged), levels, self._bounds)
            moved += [threshold] if threshold is not None else []
        configured = self._router.taste.weights
        if self._bounds.weight_range > 0.0 and knowledge.judged_outcomes >= self._bounds.min_judged:
            gains = hindsight_of(board, logged).gains(logged, board.taste, configured)
            moved += tune_weights(board.taste.weights, configured, gains, self._bounds)
        return moved

    async def _take(
        self, tenant: str, by: str, moved: Sequence[Adjustment], *, judged: int = 0, reverts: int = 0
    ) -> Step:
        state = self._router.state
        step = Step(
            tenant=tenant,
            number=len(state.steps_of(tenant)) + 1,
            time_s=self._world.clock.now(),
            by=by,
            moved=tuple(moved),
            judged=judged,
            upto=state.revision,
            reverts=reverts,
        )
        await self._journal.put_step(step)
        await self._router.settle()
        return step


def _known(weights: Mapping[str, float]) -> Mapping[str, float]:
    """All three weights, those not named as 0. Raises Invalid (`bad_weights`) for a name that there is not."""
    names = ("cost", "latency", "quality")
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise Invalid(f"unknown weight {unknown[0]!r}; use {', '.join(names)}", code="bad_weights")
    return {name: weights.get(name, 0.0) for name in names}
