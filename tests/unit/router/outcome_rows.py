"""Questions that several models answered, with difficulty that shows in the text and errors that the models share."""

import math
from dataclasses import replace

from catena.plan.model import Plan, Role, Shape, Stage
from catena.router.core.ask import Ask
from catena.router.core.features import request_features
from catena.router.core.observation import Observation, StageOutcome

ABILITY = {"small": 0.3, "middle": 0.5, "large": 1.3}


def rows(rng, count, *, domains=("a", "b"), slope=0.0, features=True, harder=("b", 0.0)):
    """Executions that asked every model, each answer judged. `slope`: how much a long text is harder."""
    seen = []
    for number in range(count):
        words = rng.randrange(4, 60)
        text = " ".join(["word"] * words) + "?"
        domain = domains[number % len(domains)]
        ease = rng.gauss(0.0, 1.0) - slope * (math.log(words) - 3.2)
        ease -= harder[1] if domain == harder[0] else 0.0
        stages = []
        for name, level in ABILITY.items():
            right = level + ease + rng.gauss(0.0, 0.7) > 0.0
            stages.append(
                StageOutcome(
                    name=name,
                    role=Role.MEMBER,
                    model=name,
                    input_tokens=20,
                    output_tokens=40 if ease > 0.0 else 80,
                    duration_ms=100.0,
                    digest="right" if right else f"wrong-{rng.randrange(5)}",
                    score=float(right),
                )
            )
        members = tuple(Stage(name=s.name, role=Role.MEMBER, model=s.model) for s in stages)
        plan = Plan(shape=Shape.CONSENSUS, stages=members)
        if features:
            plan = replace(plan, features=request_features(Ask(text=text, chars=len(text))))
        seen.append(
            Observation(
                execution_id=f"r{number}",
                time_s=float(number),
                configuration_id=plan.configuration_id,
                plan=plan,
                domain=domain,
                routed=True,
                chars=len(text),
                stages=tuple(stages),
            )
        )
    return seen
