"""The learner's settings."""

import msgspec

from catena.kit.config import FilePath, Section


class RecipeConfig(Section, frozen=True, kw_only=True):
    """How an adapter is trained from what was collected; zeros take the trainer's defaults.

    `base`: the base to adapt; empty: the dearest local model of the configuration.
    `retention_share`: part of each batch that repeats old skills, so that none is forgotten.
    """

    base: str = ""
    method: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float | None = None
    learning_rate: float = 2e-4
    epochs: float = 0.0
    max_steps: int = 0
    batch_size: int = 0
    accumulation: int = 0
    checkpoint_steps: int = 0
    holdout: float = 0.1
    min_accuracy: float = 0.7
    max_forgetting: float = 0.05
    retention_share: float = 0.4


class LearnerConfig(Section, frozen=True, kw_only=True):
    """Section `learner`.

    `threshold`: samples of a task at which training starts.
    `capsule_threshold`: the same for a domain filled by capsules.
    `min_corrections`: share of the samples that must be corrections; good answers alone say that nothing is wrong.
    `good_score`: feedback above it makes an execution a sample.
    `verifiers`: sources whose scores count as well as feedback; agreement of models is none, for they err together.
    `capsule_score`: validation score above which a capsule's tasks are taken.
    `retention_path`: JSON lines of old skills to repeat and to measure; empty: none.
    `canary_share`: part of a domain's traffic that a candidate gets.
    `canary_outcomes`: judged answers after which an undecided canary is rolled back.
    `alpha`: level of the canary's test.
    `recipes`: settings by task; `recipe`: for all others.
    """

    threshold: int = 100
    capsule_threshold: int = 500
    min_corrections: float = 0.1
    good_score: float = 0.9
    verifiers: list[str] = msgspec.field(default_factory=lambda: ["exact", "tests"])
    capsule_score: float = 0.85
    retention_path: FilePath = ""
    canary_share: float = 0.5
    canary_outcomes: int = 2000
    alpha: float = 0.05
    recipe: RecipeConfig = RecipeConfig()
    recipes: dict[str, RecipeConfig] = msgspec.field(default_factory=dict)
