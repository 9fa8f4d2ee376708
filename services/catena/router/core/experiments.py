"""Comparing two arms on live traffic, looked at after every outcome, without fooling oneself.

Mixture sequential probability ratio test (Johari et al., arXiv 1512.04922): with d the difference of the means and V
its variance, L = sqrt(V / (V + t^2)) exp(t^2 d^2 / (2 V (V + t^2))); the least 1 / L so far is valid at every look.
Bonferroni over quality, cost and latency.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from catena.kit.errors import Invalid

METRICS = ("quality", "cost", "latency")
RUNNING, WON, LOST, UNDECIDED, STOPPED = "running", "won", "lost", "undecided", "stopped"
DEFAULT_ALPHA, DEFAULT_OUTCOMES = 0.05, 2000
MIN_OUTCOMES = 6
"""Outcomes of each arm before a verdict: variances of fewer say nothing."""
_EFFECT = {"quality": 0.25, "cost": 0.5, "latency": 0.5}
"""Expected size of a difference: of quality as it is, of cost and latency in proportion to the pooled mean."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Count, sum and sum of squares of a metric."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, value: float) -> "Tally":
        """With one more value."""
        return Tally(self.n + 1, self.total + value, self.squares + value * value)

    @property
    def mean(self) -> float:
        """Mean; 0 of nothing."""
        return self.total / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side; `model` empty: as the router would."""

    name: str
    model: str = ""
    share: float = 0.5
    tallies: Mapping[str, Tally] = field(default_factory=lambda: dict.fromkeys(METRICS, Tally()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A comparison of `arms[1]` with the control `arms[0]` on the requests of a domain (empty: on all)."""

    id: str
    tenant: str
    name: str
    domain: str
    arms: tuple[Arm, ...]
    state: str = RUNNING
    alpha: float = DEFAULT_ALPHA
    max_outcomes: int = DEFAULT_OUTCOMES
    p: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(METRICS, 1.0))
    created_s: float = 0.0
    reason: str = ""

    @property
    def outcomes(self) -> int:
        """Outcomes of both arms."""
        return sum(arm.tallies["quality"].n for arm in self.arms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One judged execution of an arm: quality 0 to 1, USD, milliseconds."""

    arm: str
    quality: float
    cost: float
    latency: float


def check_experiment(experiment: Experiment) -> Experiment:
    """The experiment with defaults filled in. Raises Invalid when its arms or its level make no sense."""
    arms = experiment.arms
    if len(arms) != 2 or len({arm.name for arm in arms}) != 2 or not all(arm.name for arm in arms):
        raise Invalid(
            f"an experiment compares two arms of different names, got {[arm.name for arm in arms]}", code="bad_arms"
        )
    shares = [arm.share for arm in arms]
    if not all(math.isfinite(share) and share >= 0.0 for share in shares):
        raise Invalid(f"shares {shares} should be 0 or more", code="bad_arms")
    total = sum(shares)
    even = [0.5, 0.5] if total == 0.0 else [share / total for share in shares]
    if min(even) <= 0.0:
        raise Invalid(f"shares {shares} leave an arm without traffic", code="bad_arms")
    alpha = experiment.alpha or DEFAULT_ALPHA
    if not math.isfinite(alpha) or not 0.0 < alpha < 1.0:
        raise Invalid(f"alpha {experiment.alpha} should lie between 0 and 1", code="bad_alpha")
    return replace(
        experiment,
        arms=tuple(replace(arm, share=share) for arm, share in zip(arms, even, strict=True)),
        alpha=alpha,
        max_outcomes=experiment.max_outcomes or DEFAULT_OUTCOMES,
    )


def assign(experiment: Experiment, who: str) -> Arm:
    """The arm of a user (or of a text, where no user is named): always the same one, in the arms' shares."""
    digest = hashlib.blake2b(f"{experiment.id}\0{who}".encode(errors="replace"), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64
    for arm in experiment.arms[:-1]:
        if point < arm.share:
            return arm
        point -= arm.share
    return experiment.arms[-1]


def covering(experiments: Sequence[Experiment], domain: str) -> Experiment | None:
    """The running experiment that covers a domain: one of its own before one of all, the oldest first."""
    running = [e for e in experiments if e.state == RUNNING and e.domain in ("", domain)]
    running.sort(key=lambda e: (e.domain != domain or not domain, e.created_s, e.id))
    return running[0] if running else None


def count(experiment: Experiment, outcome: Outcome) -> Experiment:
    """The experiment with one more outcome and, if that settles it, its verdict. One that ended counts nothing more."""
    if experiment.state != RUNNING or outcome.arm not in [arm.name for arm in experiment.arms]:
        return experiment
    values = {"quality": outcome.quality, "cost": outcome.cost, "latency": outcome.latency}
    arms = tuple(
        replace(arm, tallies={m: tally.plus(values[m]) for m, tally in arm.tallies.items()})
        if arm.name == outcome.arm
        else arm
        for arm in experiment.arms
    )
    counted = replace(experiment, arms=arms)
    if min(arm.tallies["quality"].n for arm in arms) >= MIN_OUTCOMES:
        p = {
            metric: min(experiment.p[metric], p_value(metric, arms[0].tallies[metric], arms[1].tallies[metric]))
            for metric in METRICS
        }
        counted = replace(counted, p=p)
    return _judge(counted)


def stop(experiment: Experiment, state: str, reason: str) -> Experiment:
    """The experiment, ended by somebody's word."""
    return replace(experiment, state=state, reason=reason)


def p_value(metric: str, control: Tally, treatment: Tally) -> float:
    """1 / L of the mSPRT on the difference of the means."""
    pooled = (control.total + treatment.total) / (control.n + treatment.n)
    variance = _variance(metric, control, treatment, pooled) * (1.0 / control.n + 1.0 / treatment.n)
    size = _EFFECT[metric] if metric == "quality" else _EFFECT[metric] * abs(pooled)
    if variance <= 0.0 or size <= 0.0:
        return 1.0
    prior = size * size
    difference = treatment.mean - control.mean
    log_ratio = 0.5 * math.log(variance / (variance + prior))
    log_ratio += prior * difference**2 / (2.0 * variance * (variance + prior))
    return min(1.0, math.exp(-min(max(log_ratio, -50.0), 700.0)))


def _variance(metric: str, control: Tally, treatment: Tally, pooled: float) -> float:
    """Variance of one value were the arms the same; two pseudo-outcomes keep a quality's from being 0."""
    n = control.n + treatment.n
    spread = max((control.squares + treatment.squares) / n - pooled**2, 0.0)
    if metric != "quality":
        return max(spread * n / max(n - 1, 1), (0.05 * pooled) ** 2)
    shrunk = (pooled * n + 1.0) / (n + 2.0)
    return max(spread, shrunk * (1.0 - shrunk)) if _binary(control, treatment) else max(spread, 0.25 / (n + 2.0))


def _binary(*tallies: Tally) -> bool:
    return all(abs(tally.squares - tally.total) < 1e-9 for tally in tallies)


def _judge(experiment: Experiment) -> Experiment:
    control, treatment = experiment.arms[0].tallies, experiment.arms[1].tallies
    level = experiment.alpha / len(METRICS)
    words = f"quality {treatment['quality'].mean:.3f} against {control['quality'].mean:.3f}"
    if experiment.p["quality"] <= level:
        better = treatment["quality"].mean > control["quality"].mean
        return replace(experiment, state=WON if better else LOST, reason=f"{words}, p = {experiment.p['quality']:.2g}")
    if experiment.outcomes >= experiment.max_outcomes:
        return replace(
            experiment,
            state=UNDECIDED,
            reason=f"{words} after {experiment.outcomes} outcomes, p = {experiment.p['quality']:.2g}",
        )
    return experiment
