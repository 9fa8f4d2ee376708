"""What each model can do in each domain, and what it reads, writes and takes, from every call of it that was seen.

Little evidence borrows from more: a model in a domain from the model as a whole and from how hard the domain is for
all, a model as a whole from its prior. Answers that nobody judged count a little: through a better model that gave the
same answer or another one, else through their confidence.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import numpy as np

from catena.plan.expect import Amount
from catena.router.core.confidence import Array, Curve, Judged, Silent, fit_curve, log_odds, logit, rate_of
from catena.router.core.habits import Start
from catena.router.core.observation import Mode, StageOutcome
from catena.router.core.pace import Crowd, Pace, crowd_of, pace_of
from catena.router.core.samples import Key, Level, Line, Sample, across, level, line
from catena.router.core.starts import NOWHERE, Starts, counted, timed, warm_ms

QUALITY_MODES = {Mode.PLAIN: Mode.PLAIN, Mode.VERIFY: Mode.PLAIN, Mode.DRAFT: Mode.DRAFT}
"""Modes whose answers tell how good the model is alone; lossless speculation says what the model would have said."""

PRIOR_CALLS, LEAST_CALLS, DOMAIN_CALLS, DIFFICULTY_CALLS = 2.0, 1.0, 5.0, 3.0
MOST_CALLS, MOST_SHARE = 60.0, 0.5
"""The most answers that what is expected of a domain can be worth there, and the most of those that domains have.

Whether they turn out as expected cannot be told from a few.
"""
MEMORY_MISSES = 4.0
"""Failures assumed beforehand where answers need memory that a plain call does not have."""
SILENT_WEIGHT, SILENT_HALF = 0.5, 20.0
SECONDED, ALONE, SECOND_CALLS = 0.93, 0.15, 6.0
"""Rate of right answers when a better model says the same, when it says otherwise, and calls that these are worth."""


@dataclass(slots=True, kw_only=True)
class Skill:
    """One model in one mode. `calls` and `judged` count evidence with age taken off.

    `kept`: share of its first answers that cascades kept; `overruled`: share rejected though confident enough.
    `latency_ms` is without what loading took; `pace` composes it from tokens where first ones were timed.
    """

    calls: float = 0.0
    judged: float = 0.0
    quality: Level
    judged_in: dict[str, float] = field(default_factory=dict)
    input_tokens: Line = field(default_factory=Line)
    output_tokens: Level
    latency_ms: Level
    pace: Pace | None = None
    crowd: Crowd = field(default_factory=Crowd)
    reliability: float = 1.0
    curve: Curve = field(default_factory=Curve)
    confidences: Mapping[str, Array] = field(default_factory=dict)
    kept: Level | None = None
    overruled: Level | None = None


@dataclass(frozen=True, slots=True)
class Hints:
    """What unjudged answers go by: the curve of confidences at its usual rate; log-odds with and without a second."""

    curve: Curve
    usual: float
    seconded: float
    alone: float

    def of(self, sample: Sample) -> float | None:
        """Log-odds of being right at the curve's usual rate; None when nothing hints."""
        if sample.fact.stage.failed:
            return None
        if sample.seconded is not None:
            return self.seconded if sample.seconded else self.alone
        confidence = sample.fact.stage.confidence
        if confidence <= 0.0:
            return None
        return self.curve.level + self.curve.slope * float(log_odds(np.array([confidence]))[0])


def fit_skills(
    samples: Mapping[Key, Sequence[Sample]],
    *,
    prior: Callable[[str, str], float],
    starts: Mapping[Mode, Starts],
    needs_memory: Iterable[str] = (),
) -> dict[Key, Skill]:
    """Estimates for every model and mode that was seen; `prior(model, domain)` is its accuracy before anything is.

    `starts`: by mode, of the same samples.
    """
    pooled: dict[Key, list[Sample]] = defaultdict(list)
    for (model, mode), seen in samples.items():
        if mode in QUALITY_MODES:
            pooled[model, QUALITY_MODES[mode]].extend(sample for sample in seen if not sample.fact.outdated)
    apart = frozenset(needs_memory)
    overall = {key: _overall(seen, prior(key[0], ""), apart) for key, seen in pooled.items()}
    harder = difficulty(pooled, {key: amount.mean for key, amount in overall.items()}, apart)
    skills = {}
    for key, seen in samples.items():
        skill = _figures(seen, starts[key[1]])
        if key in pooled:
            _judge(skill, pooled[key], overall[key], harder, partial(prior, key[0]), apart)
        skills[key] = skill
    return skills


def difficulty(
    pooled: Mapping[Key, Sequence[Sample]], overall: Mapping[Key, float], needs_memory: frozenset[str]
) -> dict[str, float]:
    """How much harder than usual each domain is for whichever model was asked, in log-odds (negative: harder)."""
    seen: dict[str, list[float]] = {domain: [0.0, 0.0, 0.0] for domain in needs_memory}
    for key, samples in pooled.items():
        for sample in samples:
            label = sample.label
            if label is None or sample.domain is None or key[1] is not Mode.PLAIN:
                continue
            tally = seen.setdefault(sample.domain, [0.0, 0.0, 0.0])
            tally[0] += sample.weight
            tally[1] += sample.weight * label
            tally[2] += sample.weight * overall[key]
    shifts = {}
    for domain, (weight, right, expected) in seen.items():
        usual = expected / weight if weight else 0.7
        misses = MEMORY_MISSES if domain in needs_memory else 0.0
        found = (right + DIFFICULTY_CALLS * usual) / (weight + DIFFICULTY_CALLS + misses)
        shifts[domain] = logit(found) - logit(usual)
    return shifts


def shifted(accuracy: float, shift: float) -> float:
    """An accuracy moved by log-odds."""
    return 1.0 / (1.0 + math.exp(-(logit(accuracy) + shift)))


def unseen(accuracy: float, starts: Starts = NOWHERE) -> Skill:
    """A model of which nothing was seen."""
    return Skill(
        quality=Level(overall=Amount(accuracy, 0.2)),
        input_tokens=starts.read,
        output_tokens=Level(overall=starts.written.next),
        latency_ms=Level(overall=starts.taken.next),
    )


def _overall(samples: Sequence[Sample], prior: float, apart: frozenset[str]) -> Amount:
    """How often the model is right in a domain not met yet."""
    told = [tally for domain, tally in _told(samples).items() if domain not in apart]
    mean, judged = across(told, likeness(told), prior=prior, calls=PRIOR_CALLS)
    return Amount(mean, math.sqrt(mean * (1.0 - mean) / (judged + 1.0)))


def _told(samples: Sequence[Sample]) -> dict[str | None, tuple[float, float]]:
    """By domain: weight of the judged answers, and the share of them that was right."""
    sums: dict[str | None, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for sample in samples:
        if sample.label is not None and sample.weight > 0.0:
            sums[sample.domain][0] += sample.weight
            sums[sample.domain][1] += sample.weight * sample.label
    return {domain: (weight, min(right / weight, 1.0)) for domain, (weight, right) in sums.items()}


def _figures(samples: Sequence[Sample], starts: Starts) -> Skill:
    skill = unseen(0.5, starts)
    skill.calls = sum(sample.weight for sample in samples)
    failed = sum(s.weight for s in samples if s.fact.stage.failed)
    skill.reliability = 1.0 - failed / (skill.calls + 10.0)
    read = counted(samples)
    if read:
        skill.input_tokens = line(read, starts.scatter)
        skill.output_tokens = level(read, [float(s.fact.stage.output_tokens) for s in read], starts.written)
    done = timed(samples)
    if done:
        took, stages, weights = [warm_ms(s) for s in done], [s.fact.stage for s in done], [s.weight for s in done]
        skill.latency_ms = level(done, took, starts.taken)
        skill.pace = pace_of(stages, weights)
        skill.crowd = _crowd(skill, done, took)
        if skill.crowd.power > 0.0:
            # What calls take beside usually many, or the slow ones of a burst would be taken for usual.
            slower = [skill.crowd.slower(skill.crowd.told_by(s.before, s.meanwhile)) for s in done]
            skill.latency_ms = level(done, [ms / by for ms, by in zip(took, slower, strict=True)], starts.taken)
            skill.pace = pace_of([_eased(stage, by) for stage, by in zip(stages, slower, strict=True)], weights)
    return skill


def _eased(stage: StageOutcome, by: float) -> StageOutcome:
    """The call as if it had been so many times as fast, but for loading."""
    first, rest = (stage.first_token_ms - stage.load_ms) / by, (stage.duration_ms - stage.first_token_ms) / by
    return replace(stage, first_token_ms=first, duration_ms=first + rest, load_ms=0.0)


def _crowd(skill: Skill, timed: Sequence[Sample], took: Sequence[float]) -> Crowd:
    """How much slower it is beside others, once what each call wrote is taken off where that is known."""

    def usual(sample: Sample) -> float:
        stage = sample.fact.stage
        if skill.pace is None or not stage.output_tokens:
            return skill.latency_ms.at(sample.domain or "").mean
        return skill.pace.at(stage.input_tokens, Amount(stage.output_tokens)).mean

    over = np.array([real / max(usual(sample), 1e-3) for sample, real in zip(timed, took, strict=True)])
    told = np.array([(s.before, s.meanwhile, s.weight) for s in timed], float).reshape(-1, 3).T
    return crowd_of(over, *told)


def _judge(
    skill: Skill,
    samples: Sequence[Sample],
    overall: Amount,
    harder: Mapping[str, float],
    prior: Callable[[str], float],
    apart: frozenset[str],
) -> None:
    """Fill in how often it is right, overall and by domain, and how that hangs on its confidence."""
    hints = _hints(samples)
    skill.curve, skill.confidences = hints.curve, _confidences(samples)
    _gate(skill, [s for s in samples if s.threshold is not None])
    by_domain: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        skill.judged += sample.weight if sample.fact.label is not None else 0.0
        if sample.domain is not None:
            by_domain[sample.domain].append(sample)
    trust = SILENT_WEIGHT * skill.judged / (skill.judged + SILENT_HALF)
    split = {domain: _split(by_domain.get(domain, ()), hints) for domain in {*by_domain, *harder}}
    starts = {
        domain: own if (own := prior(domain)) != prior("") else shifted(overall.mean, harder.get(domain, 0.0))
        for domain in split
    }
    told = {domain: judged for domain, (judged, _) in split.items() if judged.weight > 0.0 and domain not in apart}
    worth = foresight([(one.weight, one.right / one.weight, starts[domain]) for domain, one in told.items()])
    rates = {}
    for domain, (judged, silent) in split.items():
        start = Amount(starts[domain], worth)
        rates[domain] = rate_of(judged, silent, start, usual=hints.usual, trust=trust)
        skill.judged_in[domain] = judged.weight
    skill.quality = Level(overall=overall, by_domain=rates)


def likeness(seen: Sequence[tuple[float, float]]) -> float:
    """How many answers of a domain the rate over all domains is worth: few when the domains differ.

    The prior strength of a beta-binomial by moments (Casella, American Statistician 39, 1985), within
    `LEAST_CALLS` and `DOMAIN_CALLS`.
    """
    total = sum(weight for weight, _ in seen)
    if len(seen) < 2:
        return DOMAIN_CALLS
    mean = sum(weight * rate for weight, rate in seen) / total
    noise = mean * (1.0 - mean) * (len(seen) - 1) / total
    spread = sum(weight * (rate - mean) ** 2 for weight, rate in seen) / total - noise
    if spread <= 0.0:
        return DOMAIN_CALLS
    return min(max(mean * (1.0 - mean) / spread - 1.0, LEAST_CALLS), DOMAIN_CALLS)


def foresight(seen: Sequence[tuple[float, float, float]]) -> float:
    """How many answers of a domain it is worth what is expected there: many when the domains turned out as expected.

    `seen`: by domain the answers judged, the rate of right ones, the rate expected. The variance of rates about what
    was expected is found by moments, weighted as random effects are (DerSimonian and Laird, Controlled Clinical Trials
    7, 1986), where `DOMAIN_CALLS` is believed beforehand as firmly as if one domain had shown it.
    """
    if not seen:
        return DOMAIN_CALLS
    mean = sum(expected for _, _, expected in seen) / len(seen)
    noise = max(mean * (1.0 - mean), 1e-3)
    believed = noise / DOMAIN_CALLS
    sums = [1.0 / believed, 1.0 / believed**2]
    for weight, rate, expected in seen:
        trust = 1.0 / (believed + noise / weight) ** 2
        sums[0] += trust * ((rate - expected) ** 2 - noise / weight)
        sums[1] += trust
    few = likeness([(weight, rate) for weight, rate, _ in seen])
    most = min(max(MOST_SHARE * median(weight for weight, _, _ in seen), few), MOST_CALLS)
    return noise / max(sums[0] / sums[1], noise / most)


def _split(samples: Sequence[Sample], hints: Hints) -> tuple[Judged, Silent]:
    """Judged answers, and hints of those that nobody judged."""
    hinted = [(s, hints.of(s)) for s in samples]
    told = [(s.weight, s.label) for s in samples if s.label is not None]
    checked = [(hint, s.fact.label) for s, hint in hinted if hint is not None and s.fact.label is not None]
    judged = Judged(
        weight=sum(weight for weight, _ in told),
        right=min(sum(weight * label for weight, label in told), sum(weight for weight, _ in told)),
        hints=np.array([hint for hint, _ in checked]),
        labels=np.array([label for _, label in checked]),
    )
    unjudged = [(s.seconded is not None, hint) for s, hint in hinted if hint is not None and s.fact.label is None]
    return judged, Silent(
        sure=np.array([hint for seconded, hint in unjudged if not seconded]),
        seconded=np.array([hint for seconded, hint in unjudged if seconded]),
    )


def _hints(samples: Sequence[Sample]) -> Hints:
    told = [(s, s.fact.label) for s in samples if s.fact.label is not None and not s.fact.stage.failed]
    sure = [(s, label) for s, label in told if s.fact.stage.confidence > 0.0]
    curve = fit_curve(
        np.array([s.fact.stage.confidence for s, _ in sure]),
        np.array([label for _, label in sure]),
        np.array([s.weight for s, _ in sure]),
        [s.domain or "" for s, _ in sure],
    )

    def rate(second: bool, start: float) -> float:
        seen = [(s.weight, label) for s, label in told if s.seconded is second]
        right = sum(weight * label for weight, label in seen)
        return logit((SECOND_CALLS * start + right) / (SECOND_CALLS + sum(weight for weight, _ in seen)))

    usual, _ = across(_told([s for s, _ in sure]).values(), DOMAIN_CALLS, prior=0.5, calls=PRIOR_CALLS)
    return Hints(curve, usual, rate(True, SECONDED), rate(False, ALONE))


def _confidences(samples: Sequence[Sample]) -> dict[str, Array]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.fact.stage.confidence > 0.0 and not sample.fact.stage.failed:
            grouped[sample.domain or ""].append(sample.fact.stage.confidence)
    return {domain: np.array(values) for domain, values in grouped.items()}


def _gate(skill: Skill, fast: Sequence[Sample]) -> None:
    """Share of a cascade's first answers that were kept, and share overruled in spite of their confidence."""
    if not fast:
        return
    skill.kept = level(fast, [float(s.fact.stage.kept) for s in fast], Start(mean=0.6, sd=0.4, worth=2.0))
    sure = [s for s in fast if s.threshold is not None and s.fact.stage.confidence >= s.threshold]
    if sure:
        skill.overruled = level(sure, [float(not s.fact.stage.kept) for s in sure], Start(mean=0.02, sd=0.1, worth=2.0))
