"""From a request and what is known to the plan, with everything that was weighed. Plain functions, no waiting."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from catena.plan.build import log_odds, sequential
from catena.plan.model import Plan, Role, Shape, describe
from catena.router.core.ask import AUTO, Ask
from catena.router.core.candidates import with_collection
from catena.router.core.choice import Candidate, Taste, by_rule, cautious, check_fit, explore, prefer, rank, reject
from catena.router.core.domains import DomainScore
from catena.router.core.experiments import Experiment, assign
from catena.router.core.features import request_features
from catena.router.core.knowledge import Knowledge
from catena.router.core.moment import Moment
from catena.router.core.observation import Mode
from catena.router.core.outlook import Length

CLOSELY = 8
"""Plans that are weighed for the request itself; the others rank as they do for its domain and length."""
HALF_EXPLORED = 50.0
"""Judged outcomes, since any model changed, after which half as much is explored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The domain that a request was found in (empty: none was sure), every domain's score, its specialist.

    `strangeness`: as in `Plan`.
    """

    domain: str = ""
    scores: Sequence[DomainScore] = ()
    specialist: str = ""
    strangeness: float = 0.0

    @property
    def confidence(self) -> float:
        """Probability of the likeliest domain."""
        return self.scores[0].probability if self.scores else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curiosity:
    """How much is explored: a share at the start, one that stays, and whether there is any (frozen: none)."""

    start: float = 0.0
    floor: float = 0.0
    min_judged: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What a decision rests on: what is known, how plans are compared, and what is true just now (None: any time)."""

    knowledge: Knowledge
    taste: Taste
    moment: Moment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was chosen, out of what, and why."""

    plan: Plan
    found: Found
    ranked: Sequence[Candidate]
    reason: str


def decide(
    ask: Ask,
    found: Found,
    weighed: Sequence[Candidate],
    grounds: Grounds,
    curiosity: Curiosity,
    rng: random.Random,
) -> Decision:
    """The plan to run out of those `weighed`, best first. Raises Invalid (`no_plan_fits`) when each breaks a cap.

    Draws from `rng` only where there is something to explore.
    """
    knowledge, taste = grounds.knowledge, grounds.taste
    free = ask.shape is None and ask.model == AUTO
    capped = ask.max_cost_usd or ask.max_latency_ms
    within = rank([reject(candidate, ask) for candidate in weighed], taste) if capped else weighed
    ranked = looked_at(within, ask, grounds)
    check_fit(ranked, ask)
    if not free:
        # Not a choice, so that it tells nothing of how other choices would have done.
        return _settled(ranked[0], found, ranked, f"{describe(ranked[0].plan)} was asked for", ask, propensity=0.0)
    if found.specialist:
        preferred = prefer(ranked, found.specialist, taste)
        if preferred[0].plan.main_model == found.specialist:
            words = f"{found.specialist} is the specialist of {found.domain} (probability {found.confidence:.2f})"
            return _settled(preferred[0], found, preferred, words, ask)
    reason = _why(ranked, taste, found)
    if knowledge.judged_outcomes < curiosity.min_judged:
        ruled = by_rule(ranked, ask)
        if ruled is not None:
            ranked = [ruled, *(c for c in ranked if c is not ruled)]
            reason = (
                f"{knowledge.judged_outcomes} outcomes are judged; until {curiosity.min_judged} are, the rule for such "
                f"requests is {ruled.plan.shape}"
            )
    share = (
        0.0
        if ask.critical
        else max(curiosity.floor, curiosity.start * HALF_EXPLORED / (HALF_EXPLORED + knowledge.judged_lately))
    )
    reason += _changes(ranked[:CLOSELY], knowledge)
    drawn, propensity, curious = explore(ranked, taste, share, rng)
    if curious:
        reason = f"explored with probability {propensity:.3f}; otherwise {describe(ranked[0].plan)}"
    return _settled(drawn, found, ranked, reason, ask, propensity)


def looked_at(ranked: Sequence[Candidate], ask: Ask, grounds: Grounds) -> Sequence[Candidate]:
    """The best few weighed again for this very request, its length and what makes it hard for whom; the rest after.

    Where each of them breaks a cap at a second look, the next few are looked at, until one fits or none is left; at
    last also those that broke it at the first, which knew neither the very length nor that nothing runs just now.
    """
    look = second_look(ask, grounds)
    seen: list[Candidate] = []
    rest = ranked
    while rest and all(c.rejected for c in seen):
        few = list(map(look, rest[:CLOSELY]))
        seen, rest = [*rank(few, grounds.taste, ranked), *seen], rest[len(few) :]
    return [*seen, *rest]


def looked_at_whole(decision: Decision, ask: Ask, grounds: Grounds) -> Decision:
    """The decision with every plan weighed as the best few were, so that they can be compared; the first stays."""
    first = decision.ranked[0].plan
    again = rank(list(map(second_look(ask, grounds), decision.ranked)), grounds.taste)
    return replace(decision, ranked=sorted(again, key=lambda c: c.plan is not first))


def second_look(ask: Ask, grounds: Grounds) -> Callable[[Candidate], Candidate]:
    """How a candidate is weighed for this very request, at this moment, and held to its caps."""
    shifts, length = grounds.knowledge.outcome.shifts(request_features(ask)), length_of(ask)
    return lambda candidate: reject(candidate.again(length, shifts, grounds.moment), ask)


def length_of(ask: Ask) -> Length:
    """What of the request bears on cost."""
    return Length(chars=ask.chars, max_tokens=ask.max_tokens)


def with_arm(decision: Decision, experiment: Experiment, ask: Ask, grounds: Grounds) -> Decision:
    """The decision as the requester's arm has it; unchanged where that arm's plan would break a cap."""
    knowledge, arm = grounds.knowledge, assign(experiment, ask.who or ask.text)
    base = decision.ranked[0]
    plan = base.plan
    if arm.model and arm.model != plan.main_model:
        if not knowledge.catalogue.knows(arm.model):
            return decision
        keeps = ask.shape is not None or plan.shape in (Shape.SEQUENTIAL, Shape.SEARCH)
        plan = plan.with_main(arm.model) if keeps else sequential(arm.model)
    prediction = knowledge.predict(plan, decision.found.domain, length_of(ask), moment=grounds.moment)
    chosen = reject(Candidate(plan=plan, prediction=prediction), ask)
    if chosen.rejected:
        return decision
    dressed = replace(
        plan,
        prediction=prediction,
        experiment_id=experiment.id,
        experiment_arm=arm.name,
        domain=decision.found.domain,
        propensity=arm.share,
        features=decision.plan.features,
        strangeness=decision.found.strangeness,
    )
    words = f"arm {arm.name} of experiment {experiment.name or experiment.id}"
    return replace(decision, plan=with_collection(dressed, ask.collection), reason=words)


def with_weights(decision: Decision, knowledge: Knowledge) -> Decision:
    """The decision with a weighted vote's weights as log-odds of how often each member's model is right there.

    Weights and accuracies that the configuration gives stay as they are.
    """
    plan, domain = decision.plan, decision.found.domain
    if plan.shape is not Shape.CONSENSUS or plan.settings.vote != "weighted":
        return decision
    learned = {
        stage.name: log_odds(knowledge.skill(stage.model, Mode.PLAIN, domain).quality.at(domain).mean)
        for stage in plan.of(Role.MEMBER)
    }
    settings = replace(plan.settings, weights=learned | dict(plan.settings.weights))
    return replace(decision, plan=replace(plan, settings=settings))


def with_scorer(decision: Decision, knowledge: Knowledge, ask: Ask) -> Decision:
    """The decision with how to read the first answers of a cascade whose provider tells no confidence."""
    plan = decision.plan
    fast = {stage.model for stage in plan.of(Role.FAST)}
    if plan.shape is not Shape.CASCADE or "confidence" not in plan.settings.checks or len(fast) != 1:
        return decision
    scorer = knowledge.scorers.get(fast.pop())
    if scorer is None:
        return decision
    settings = replace(plan.settings, scorer=scorer.reading(request_features(ask)))
    return replace(decision, plan=replace(plan, settings=settings))


def _settled(
    chosen: Candidate, found: Found, ranked: Sequence[Candidate], reason: str, ask: Ask, propensity: float = 1.0
) -> Decision:
    plan = replace(
        chosen.plan,
        prediction=chosen.prediction,
        domain=found.domain,
        propensity=propensity,
        features=request_features(ask),
        strangeness=found.strangeness,
    )
    return Decision(plan=with_collection(plan, ask.collection), found=found, ranked=ranked, reason=reason)


def _changes(ranked: Sequence[Candidate], knowledge: Knowledge) -> str:
    """Which of their models became others, in words; empty: none did."""
    models = {stage.model for candidate in ranked for stage in candidate.plan.stages}
    told = [(model, knowledge.changes[model]) for model in sorted(models & knowledge.changes.keys())]
    return "".join(f"; {model} {change.words}" for model, change in told)


def _why(ranked: Sequence[Candidate], taste: Taste, found: Found) -> str:
    fitting = [c for c in ranked if not c.rejected]
    best = max(cautious(c, taste) for c in fitting)
    where = f"in {found.domain}" if found.domain else "with no sure domain"
    chosen = ranked[0].prediction
    if taste.objective in ("cost", "latency"):
        least = "cheapest" if taste.objective == "cost" else "fastest"
        return (
            f"{where}, the {least} of {len(fitting)} plans within {taste.margin:g} of the best cautious quality "
            f"{best:.3f}: {describe(ranked[0].plan)}, {chosen.cost_usd.mean:.3g} USD, {chosen.latency_ms.mean:.0f} ms"
        )
    return (
        f"{where}, the highest {taste.objective} utility {ranked[0].utility:.3f} of {len(fitting)} plans: "
        f"{describe(ranked[0].plan)}"
    )
