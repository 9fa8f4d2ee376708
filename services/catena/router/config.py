"""What can be set of the router; every knob with its unit, its default and why."""

from typing import Literal

import msgspec

from catena.kit.config import PathOrName, Section

Objective = Literal["cost", "latency", "quality", "balanced"]


class WeightsConfig(Section, frozen=True, kw_only=True):
    """Weights of the objective `balanced`, any scale: only their ratios count. Tuning starts from them."""

    cost: float = 0.3
    latency: float = 0.3
    quality: float = 0.4


class DomainConfig(Section, frozen=True, kw_only=True):
    """A kind of request that is known from the start; what is put at run time wins over it."""

    name: str
    examples: list[str]
    specialist: str = ""
    needs_memory: bool = False


class RouterConfig(Section, frozen=True, kw_only=True):
    """Section `router`.

    threshold: probability from which a request counts as of a domain; calibrated, so .85 is right in 85 of 100.
    embedding: folder of the embedding model; empty: the house's; `none`: words alone are compared; any other
        name: a model of the catalogue, of any provider, which the executor asks.
    domains: kinds of requests known from the start.
    objective: taken when a request names none.
    weights: of `balanced`; 0.3, 0.3, 0.4 put quality first without letting it rule.
    margin: quality that the objectives `cost` and `latency` may give away, as a probability.
    caution: standard deviations taken off an estimated quality; a plan that nobody judged must not win by luck.
    budget_usd: what a request may cost on average in the long run, beside its own hard cap; 0: no such budget.
    exploration: share of requests spent on learning at the start; it falls as outcomes are judged.
    exploration_floor: share that stays for noticing change.
    min_judged: judged outcomes before estimates replace the rules (simple: cascade, complex: draft-refine,
        critical: consensus).
    thresholds: confidences that are weighed as a cascade's threshold beside the configured one.
    window: executions kept for learning, per tenant; older ones live on in the totals.
    half_life: executions after which an outcome counts half, so that change is noticed.
    refit_s: seconds between refits, when what other replicas wrote is seen too; more where they would take longer than
        a twentieth of the time (one takes some 0.1 s at full window).
    catalogue_s: seconds for which the catalogue is trusted.
    hints_s: seconds between looks at adapters' tasks and at procedures, which become domains; 0: they do not.
    auto_tune_s: seconds between tunings of its own accord; 0: only on demand.
    max_loss: share of the answers that a cascade may get wrong where its strong model would be right, which a tuned
        threshold must be certified to keep; 0: thresholds go by what is expected of them, without a promise.
    certainty: probability with which that promise must hold.
    max_threshold_step: the most that one tuning moves a cascade's threshold.
    max_weight_step: the most that one tuning moves a weight of `balanced`, all three adding up to 1.
    weight_range: how far from the configured ones tuning may move weights; 0: it leaves them alone.
    """

    threshold: float = 0.85
    embedding: PathOrName = ""
    domains: list[DomainConfig] = msgspec.field(default_factory=list)
    objective: Objective = "balanced"
    weights: WeightsConfig = WeightsConfig()
    margin: float = 0.02
    caution: float = 0.5
    budget_usd: float = 0.0
    exploration: float = 0.1
    exploration_floor: float = 0.01
    min_judged: int = 10
    thresholds: list[float] = msgspec.field(default_factory=lambda: [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
    window: int = 4000
    half_life: int = 2000
    refit_s: float = 0.5
    catalogue_s: float = 15.0
    hints_s: float = 15.0
    auto_tune_s: float = 3600.0
    max_loss: float = 0.0
    certainty: float = 0.95
    max_threshold_step: float = 0.2
    max_weight_step: float = 0.05
    weight_range: float = 0.2
