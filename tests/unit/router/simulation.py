"""A small world of two models, eight kinds of questions and seven strategies, for the router's tests.

Accuracies, signals and token counts follow the demo models; whether an answer is right hangs on the question's
difficulty, which the models share, and a model's confidence on whether it is right. No test hands the truth over
otherwise than as feedback on a share of the answers.
"""

import math
import random
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from catena.plan.build import ShapeConfig
from catena.plan.model import Plan, Role, Shape
from catena.router.core.catalogue import ModelCard
from catena.router.core.observation import Observation, StageOutcome

SKILLS = ("upper", "reverse", "add", "sort", "max", "first", "last", "fact")
SMALL, LARGE = "demo-small", "demo-large"
ACCURACY = {
    SMALL: {"upper": 0.82, "reverse": 0.40, "add": 0.30, "sort": 0.80, "max": 0.60, "first": 0.90, "last": 0.75},
    LARGE: {"upper": 0.97, "reverse": 0.88, "add": 0.86, "sort": 0.95, "max": 0.93, "first": 0.98, "last": 0.94},
}
WITH_MEMORY = {SMALL: 0.80, LARGE: 0.92}
RHO = 0.5
_NORMAL = NormalDist()

SHAPES = {
    Shape.SEQUENTIAL: ShapeConfig(main=LARGE),
    Shape.CASCADE: ShapeConfig(fast=SMALL, main=LARGE, min_chars=0, threshold=0.5),
    Shape.DRAFT_REFINE: ShapeConfig(draft=SMALL, main=LARGE),
    Shape.CONSENSUS: ShapeConfig(members=[SMALL, LARGE, SMALL]),
    Shape.SPECULATIVE: ShapeConfig(draft=SMALL, main=LARGE),
    Shape.SEARCH: ShapeConfig(main=LARGE),
}


def cards(*, swapped: bool = False) -> list[ModelCard]:
    """The two models with the demo's prices, or each with the other's."""
    low, high = (0.10, 0.40), (1.00, 4.00)
    small, large = (high, low) if swapped else (low, high)
    return [
        ModelCard(name=SMALL, price_input=small[0], price_output=small[1]),
        ModelCard(name=LARGE, price_input=large[0], price_output=large[1]),
    ]


@dataclass
class Simulated:
    """Answers questions as the demo's models would; `rng` decides all."""

    rng: random.Random
    prices: dict[str, ModelCard] = field(default_factory=lambda: {card.name: card for card in cards()})
    count: int = 0

    def question(self) -> tuple[str, float]:
        """A skill and a difficulty (standard normal, higher is easier)."""
        skill = "fact" if self.rng.random() < 0.2 else self.rng.choice(SKILLS[:-1])
        return skill, self.rng.gauss(0.0, 1.0)

    def run(self, plan: Plan, skill: str, ease: float) -> tuple[Observation, bool]:
        """One execution, unscored, and whether its answer is right."""
        self.count += 1
        stages, right = self._stages(plan, skill, ease)
        usd = 0.0
        for stage in stages:
            card = self.prices[stage.model]
            usd += (stage.input_tokens * card.price_input + stage.output_tokens * card.price_output) / 1e6
        observation = Observation(
            execution_id=f"x{self.count}",
            time_s=float(self.count),
            configuration_id=plan.configuration_id,
            plan=plan,
            domain=skill,
            routed=True,
            chars=14,
            stages=tuple(stages),
            cost_usd=usd,
            latency_ms=sum(stage.duration_ms for stage in stages),
        )
        return observation, right

    def _stages(self, plan: Plan, skill: str, ease: float) -> tuple[list[StageOutcome], bool]:
        if plan.shape is Shape.CASCADE:
            fast, right = self._call(plan.of(Role.FAST)[0].model, Role.FAST, skill, ease)
            kept = fast.confidence >= plan.settings.threshold
            if kept:
                return [fast], right
            main, right = self._call(plan.main_model, Role.MAIN, skill, ease)
            return [replace(fast, kept=False), main], right
        if plan.shape is Shape.DRAFT_REFINE:
            draft, drafted = self._call(plan.of(Role.DRAFT)[0].model, Role.DRAFT, skill, ease)
            main, right = self._call(plan.main_model, Role.MAIN, skill, ease, extra_in=18)
            if drafted and not right and self.rng.random() < 0.4:
                main, right = replace(main, digest=draft.digest), True
            return [draft, main], right
        if plan.shape is Shape.CONSENSUS:
            calls = [self._call(stage.model, Role.MEMBER, skill, ease) for stage in plan.stages]
            votes = [stage.digest for stage, _ in calls]
            best = max(votes, key=lambda v: (votes.count(v), -votes.index(v)))
            kept = [
                (replace(stage, name=f"m{n}", kept=stage.digest == best), ok) for n, (stage, ok) in enumerate(calls)
            ]
            return [stage for stage, _ in kept], next(ok for stage, ok in kept if stage.digest == best)
        if plan.shape is Shape.SPECULATIVE:
            draft, _ = self._call(plan.of(Role.DRAFT)[0].model, Role.DRAFT, skill, ease)
            main, right = self._call(plan.main_model, Role.MAIN, skill, ease)
            return [draft, main], right
        if plan.shape is Shape.SEARCH:
            search, right = self._call(plan.main_model, Role.MAIN, skill, ease, memory=True, extra_in=60, extra_out=12)
            return [search], right
        stage, right = self._call(plan.main_model, Role.MAIN, skill, ease)
        return [stage], right

    def _call(
        self,
        model: str,
        role: Role,
        skill: str,
        ease: float,
        *,
        memory: bool = False,
        extra_in: int = 0,
        extra_out: int = 0,
    ) -> tuple[StageOutcome, bool]:
        rng = self.rng
        accuracy = (WITH_MEMORY[model] if memory else 0.0) if skill == "fact" else ACCURACY[model][skill]
        own = math.sqrt(RHO) * ease + math.sqrt(1.0 - RHO) * rng.gauss(0.0, 1.0)
        right = accuracy > 0.0 and own > _NORMAL.inv_cdf(1.0 - accuracy)
        odds = rng.gauss(3.2 if right else 0.3, 1.5) if skill != "fact" or memory else rng.gauss(3.0, 1.0)
        wrong = rng.randrange(4) if skill != "fact" or memory else 0
        stage = StageOutcome(
            name=str(role),
            role=role,
            model=model,
            input_tokens=17 + extra_in + rng.randrange(4),
            output_tokens=5 + extra_out + rng.randrange(3),
            duration_ms=rng.lognormvariate(3.0 if model == SMALL else 4.0, 0.3) * (2.0 if extra_out else 1.0),
            confidence=1.0 / (1.0 + math.exp(-odds)),
            digest="right" if right else f"wrong-{wrong}",
        )
        return stage, right
