"""What a chain is expected to do, composed from what each of its calls does. Pure; the router feeds it what it learned.

Whether a call is right is a threshold on a latent score; the scores of different models share one factor, the
question's difficulty, of weight `rho` (one-factor Gaussian copula). Given the difficulty, models err independently, so
a cascade, a refinement and a vote need nothing but each model's own accuracy and `rho`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from catena.plan.model import Interval, Plan, Prediction, Role, Shape

Z = 1.645
"""Half-width of every interval in standard deviations: nine in ten."""

RARE = 0.05
"""A path that is taken less often than this does not count towards an upper end."""

_NODES = 16
_NORMAL = NormalDist()
_MAX_OF_NORMALS = (0.0, 0.0, 0.56, 0.85, 1.03, 1.16, 1.27, 1.35)


@dataclass(frozen=True, slots=True)
class Amount:
    """A mean with its standard deviation, in the unit of what it measures; never less than `floor`."""

    mean: float
    sd: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call: probability of a right answer when asked alone, USD, milliseconds."""

    quality: Amount
    cost_usd: Amount
    latency_ms: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How a cascade's fast answers fare: share kept, and probability that a kept one is right."""

    kept: float
    right_if_kept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bonds:
    """How calls depend on each other.

    `rho`: weight of the shared difficulty, 0 to below 1. `coincidence`: chance that two wrong answers are the same.
    `rescue`: chance that a refiner which fails alone keeps a right draft; `spoil`: that a wrong draft misleads one that
    would be right. `search_gain`: share of the questions failed without memory that a search puts right.
    `acceptance`: chance that a drafted token is accepted.
    """

    rho: float = 0.5
    coincidence: float = 0.2
    rescue: float = 0.3
    spoil: float = 0.02
    search_gain: float = 0.0
    acceptance: float = 0.8


DEFAULT_BONDS = Bonds()


def expect(plan: Plan, calls: Sequence[Call], *, gate: Gate | None = None, bonds: Bonds = DEFAULT_BONDS) -> Prediction:
    """Quality, cost and latency of `plan`, whose stages are expected to do `calls`, in the order of the stages.

    `gate` is read by cascades alone; absent, answers of several fast stages that must agree stand when they do, and a
    lone fast answer is kept when right, and half of the time when wrong.
    """
    match plan.shape:
        case Shape.CASCADE:
            return _cascade(_first(plan, calls), calls[_main(plan)], gate or _gate_of(plan, calls, bonds), bonds)
        case Shape.DRAFT_REFINE:
            return _series(calls, _refined(calls[0], calls[1], bonds))
        case Shape.CONSENSUS:
            return _consensus(plan, calls, bonds)
        case Shape.SPECULATIVE:
            return _speculative(calls[0], calls[1], plan.settings.draft_tokens, bonds)
        case Shape.SEARCH:
            gained = calls[0].quality.mean + bonds.search_gain * (1.0 - calls[0].quality.mean)
            return _series(calls, Amount(gained, calls[0].quality.sd))
        case Shape.SEQUENTIAL:
            return _series(calls, calls[0].quality)


def both_right(first: float, second: float, rho: float) -> float:
    """Probability that two models of these accuracies are right on the same question."""
    pairs = zip(_given_difficulty(first, rho), _given_difficulty(second, rho), strict=True)
    joint = sum(a * b for a, b in pairs) / _NODES
    return min(max(joint, first + second - 1.0, 0.0), first, second)


def agreeing(accuracies: Sequence[float], bonds: Bonds) -> Gate:
    """How often models of these accuracies all give the same answer, and how often it is then the right one."""
    return _agreeing(tuple(round(accuracy, 3) for accuracy in accuracies), bonds.rho, bonds.coincidence)


def if_disagreed(fast: Sequence[float], main: float, bonds: Bonds = DEFAULT_BONDS) -> float:
    """How often a model of accuracy `main` is right where models of the accuracies `fast` did not all agree.

    Of one fast model alone: where it was wrong.
    """
    firsts = [round(accuracy, 2) for accuracy in fast]
    if len(firsts) == 1:
        both = both_right(firsts[0], main, bonds.rho)
        return (main - both) / (1.0 - firsts[0]) if firsts[0] < 1.0 else main
    kept = right = 0.0
    columns = [_given_difficulty(accuracy, bonds.rho) for accuracy in firsts]
    for node, able in enumerate(_given_difficulty(round(main, 2), bonds.rho)):
        agreed = math.prod(column[node] for column in columns)
        agreed += math.prod(1.0 - column[node] for column in columns) * bonds.coincidence ** (len(firsts) - 1)
        kept += agreed / _NODES
        right += (1.0 - agreed) * able / _NODES
    return right / (1.0 - kept) if kept < 1.0 else main


def vote(accuracies: Sequence[float], bonds: Bonds, *, judge: float | None = None) -> float:
    """Probability that a plurality vote is right; a tie falls to a `judge` of that accuracy, or to chance."""
    columns = [_given_difficulty(accuracy, bonds.rho) for accuracy in accuracies]
    wins = [_win(right, len(accuracies), bonds.coincidence, judge) for right in range(len(accuracies) + 1)]
    total = 0.0
    for node in range(_NODES):
        chances = [1.0]
        for column in columns:
            p = column[node]
            grown = [chance * (1.0 - p) for chance in chances] + [0.0]
            for right, chance in enumerate(chances):
                grown[right + 1] += chance * p
            chances = grown
        total += sum(chance * win for chance, win in zip(chances, wins, strict=True))
    return total / _NODES


def interval(amount: Amount) -> Interval:
    """Ends of an amount with a long right tail: above its floor, log-normal of the same mean and deviation."""
    above = amount.mean - amount.floor
    if above <= 0.0:
        return Interval(amount.mean, amount.mean, amount.mean)
    variance = math.log1p((amount.sd / above) ** 2)
    middle, spread = math.log(above) - variance / 2.0, Z * math.sqrt(variance)
    return Interval(amount.mean, amount.floor + math.exp(middle - spread), amount.floor + math.exp(middle + spread))


def share(amount: Amount) -> Interval:
    """Ends of a probability."""
    mean = min(max(amount.mean, 0.0), 1.0)
    return Interval(mean, max(0.0, mean - Z * amount.sd), min(1.0, mean + Z * amount.sd))


def total(amounts: Sequence[Amount]) -> Amount:
    """Sum of independent amounts."""
    deviation = math.sqrt(sum(a.sd**2 for a in amounts))
    return Amount(sum(a.mean for a in amounts), deviation, sum(a.floor for a in amounts))


def _series(calls: Sequence[Call], quality: Amount) -> Prediction:
    return Prediction(
        quality=share(quality),
        cost_usd=interval(total([call.cost_usd for call in calls])),
        latency_ms=interval(total([call.latency_ms for call in calls])),
    )


def _main(plan: Plan) -> int:
    """The place of the main stage."""
    return next(place for place, stage in enumerate(plan.stages) if stage.role is Role.MAIN)


def _first(plan: Plan, calls: Sequence[Call]) -> Call:
    """All that a cascade does before its main stage as one call: samples, further fast stages, a verifier.

    Fast stages that are asked in turn count in full, because the later ones are rarely spared.
    """
    paired = list(zip(plan.stages, calls, strict=True))
    fast = [call for stage, call in paired if stage.role is Role.FAST]
    judges = [c for s, c in paired if s.role is Role.JUDGE] if "verifier" in plan.settings.checks else []
    agree = "agreement" in plan.settings.checks
    asked = fast * plan.settings.samples if agree and len(fast) == 1 else fast
    slowest = max((call.latency_ms for call in fast), key=lambda amount: amount.mean)
    times = [slowest] if agree else [call.latency_ms for call in fast]
    return Call(
        quality=fast[0].quality,
        cost_usd=total([call.cost_usd for call in (*asked, *judges)]),
        latency_ms=total([*times, *(judge.latency_ms for judge in judges)]),
    )


def _cascade(fast: Call, main: Call, gate: Gate, bonds: Bonds) -> Prediction:
    kept = min(max(gate.kept, 0.0), 1.0)
    passed = 1.0 - kept
    right = kept * gate.right_if_kept
    if passed > 0.0:
        q_fast, q_main = fast.quality.mean, main.quality.mean
        both = both_right(q_fast, q_main, bonds.rho)
        fast_right_if_passed = min(max((q_fast - right) / passed, 0.0), 1.0)
        main_if_fast_right = both / q_fast if q_fast > 0.0 else q_main
        main_if_fast_wrong = (q_main - both) / (1.0 - q_fast) if q_fast < 1.0 else q_main
        right += passed * (
            fast_right_if_passed * main_if_fast_right + (1.0 - fast_right_if_passed) * main_if_fast_wrong
        )
    quality = Amount(right, math.hypot(kept * fast.quality.sd, passed * main.quality.sd))
    return Prediction(
        quality=share(quality),
        cost_usd=_two_paths(fast.cost_usd, main.cost_usd, passed),
        latency_ms=_two_paths(fast.latency_ms, main.latency_ms, passed),
    )


def _two_paths(first: Amount, second: Amount, passed: float) -> Interval:
    """`first` always, `second` with probability `passed`: the ends are those of the paths that are not rare."""
    short, long = interval(first), interval(total([first, second]))
    return Interval(
        first.mean + passed * second.mean,
        short.low if passed < 1.0 - RARE else long.low,
        long.high if passed >= RARE else max(short.high, first.mean + passed * second.mean),
    )


def _refined(draft: Call, main: Call, bonds: Bonds) -> Amount:
    both = both_right(draft.quality.mean, main.quality.mean, bonds.rho)
    rescued = bonds.rescue * (draft.quality.mean - both)
    spoilt = bonds.spoil * (main.quality.mean - both)
    return Amount(main.quality.mean + rescued - spoilt, main.quality.sd)


def _consensus(plan: Plan, calls: Sequence[Call], bonds: Bonds) -> Prediction:
    paired = list(zip(plan.stages, calls, strict=True))
    members = [call for stage, call in paired if stage.role is Role.MEMBER]
    judges = [call for stage, call in paired if stage.role is Role.JUDGE]
    right = vote([m.quality.mean for m in members], bonds, judge=judges[0].quality.mean if judges else None)
    spread = math.sqrt(sum(m.quality.sd**2 for m in members)) / math.sqrt(len(members))
    slowest = max(members, key=lambda m: m.latency_ms.mean).latency_ms
    extra = _MAX_OF_NORMALS[min(len(members), len(_MAX_OF_NORMALS) - 1)]
    together = Amount(slowest.mean + extra * slowest.sd, slowest.sd)
    return Prediction(
        quality=share(Amount(right, spread)),
        cost_usd=interval(total([call.cost_usd for call in calls])),
        latency_ms=interval(total([together, *(judge.latency_ms for judge in judges)])),
    )


def _speculative(draft: Call, main: Call, drafted: int, bonds: Bonds) -> Prediction:
    """Expected tokens a pass: (1 - a^(k+1)) / (1 - a), Leviathan et al., arXiv 2211.17192, equation 1."""
    a = min(max(bonds.acceptance, 0.0), 0.999)
    a_pass = (1.0 - a ** (drafted + 1)) / (1.0 - a)
    latency = Amount(main.latency_ms.mean / a_pass + draft.latency_ms.mean * drafted / a_pass, main.latency_ms.sd)
    return Prediction(
        quality=share(main.quality),
        cost_usd=interval(total([draft.cost_usd, main.cost_usd])),
        latency_ms=interval(latency),
    )


def _gate_of(plan: Plan, calls: Sequence[Call], bonds: Bonds) -> Gate:
    fast = [call.quality.mean for stage, call in zip(plan.stages, calls, strict=True) if stage.role is Role.FAST]
    if "agreement" in plan.settings.checks and len(fast) > 1:
        return agreeing(fast, bonds)
    return _blind_gate(fast[0])


def _blind_gate(accuracy: float) -> Gate:
    kept = accuracy + 0.5 * (1.0 - accuracy)
    return Gate(kept=kept, right_if_kept=accuracy / kept if kept else 0.0)


def _win(right: int, members: int, coincidence: float, judge: float | None) -> float:
    """Chance that the right answer wins when `right` of `members` give it and the wrong ones coincide by chance."""
    wrong = members - right
    if right == 0 or right > wrong:
        return float(right > 0)
    tie = 1.0 / members if judge is None else judge
    if right == 1:
        scattered: float = (1.0 - coincidence) ** (wrong * (wrong - 1) / 2)
        return scattered * (0.5 if members == 2 and judge is None else tie)
    as_large: float = min(1.0, math.comb(wrong, right) * coincidence ** (right - 1))
    rescued: float = 0.5 if judge is None else judge
    return 1.0 - as_large * (1.0 - rescued)


@lru_cache(maxsize=16384)
def _agreeing(accuracies: tuple[float, ...], rho: float, coincidence: float) -> Gate:
    columns = [_given_difficulty(accuracy, rho) for accuracy in accuracies]
    right = sum(math.prod(node) for node in zip(*columns, strict=True)) / _NODES
    wrong = sum(math.prod(1.0 - p for p in node) for node in zip(*columns, strict=True)) / _NODES
    kept = right + wrong * coincidence ** (len(accuracies) - 1)
    return Gate(kept=kept, right_if_kept=right / kept if kept else 0.0)


@lru_cache(maxsize=16384)
def _given_difficulty(accuracy: float, rho: float) -> tuple[float, ...]:
    """Accuracy at each of `_NODES` equally likely difficulties, easy to hard reversed."""
    if accuracy <= 0.0 or accuracy >= 1.0:
        return (min(max(accuracy, 0.0), 1.0),) * _NODES
    level, load, rest = _NORMAL.inv_cdf(accuracy), math.sqrt(rho), math.sqrt(1.0 - rho)
    nodes = (_NORMAL.inv_cdf((k + 0.5) / _NODES) for k in range(_NODES))
    return tuple(_NORMAL.cdf((level + load * node) / rest) for node in nodes)
