"""How long a call takes from its parts: the first token, each further one, others beside it, loading."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from catena.plan.expect import Amount
from catena.router.core.confidence import Array
from catena.router.core.habits import Start, effective
from catena.router.core.observation import Observation, StageOutcome

LEAST_TIMED = 8
"""Calls whose first token was timed, from which times are composed."""
LOADED_MS = 20.0
"""What a call waits at least where something was loaded for it: looking a name up takes less."""
_LOAD_CALLS = 1.0
_CROWD_NOISE, _CROWD_SD, _MOST_CROWD = 0.25, 0.3, 2.0
"""Variance of a call's logarithm of time; deviation of its slope beforehand, and the most it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Milliseconds to the first token, more of it for each token read beyond the usual; for each token written."""

    first_ms: Amount
    per_read_ms: float
    usual_read: float
    per_token_ms: Amount

    def at(self, read: float, written: Amount) -> Amount:
        """Time of a call that reads and writes so much, when nothing is loaded for it."""
        first = max(self.first_ms.mean + self.per_read_ms * (read - self.usual_read), 0.1 * self.first_ms.mean)
        mean = first + written.mean * self.per_token_ms.mean
        spread = (self.first_ms.sd, written.sd * self.per_token_ms.mean, written.mean * self.per_token_ms.sd)
        return Amount(mean, math.hypot(*spread))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Power of one plus the calls beside it with which a model's times grow; mean logarithm of that sum.

    `sd`: deviation of the power. `shared`: whether it follows who ran meanwhile, not who was there before.
    """

    power: float = 0.0
    usual: float = 0.0
    sd: float = 0.0
    shared: bool = False

    def told_by(self, before: float, meanwhile: float) -> float:
        """Of who was there before and who ran meanwhile, what it goes by."""
        return meanwhile if self.shared else before

    def slower(self, beside: float) -> float:
        """Times its usual time that a call takes beside so many others."""
        return math.exp(self.power * (math.log1p(beside) - self.usual))

    def beside(self, taken: Amount, others: float) -> Amount:
        """The time beside so many others: the further they are from what was seen, the less it is known."""
        by = self.slower(others)
        doubt = taken.mean * self.sd * (math.log1p(others) - self.usual)
        return Amount(by * taken.mean, by * math.hypot(taken.sd, doubt))


def pace_of(stages: Sequence[StageOutcome], weights: Sequence[float]) -> Pace | None:
    """From calls whose first token was timed; None where too few were."""
    told = [
        (w, s.first_token_ms - s.load_ms, s.duration_ms - s.first_token_ms, s.input_tokens, s.output_tokens)
        for s, w in zip(stages, weights, strict=True)
        if s.first_token_ms - s.load_ms > 0.0 and s.first_token_ms <= s.duration_ms and s.output_tokens > 0
    ]
    if len(told) < LEAST_TIMED:
        return None
    w, first, rest, read, written = np.array(told, np.float64).T
    each = rest / np.maximum(written, 1.0)
    usual_read, usual_first = _mean(read, w), _mean(first, w)
    # Drawn to none: a slope is only believed where lengths really differ.
    centred = read - usual_read
    ridge = 0.1 * (usual_read**2 + 1.0) * float(w.sum()) / math.sqrt(len(told))
    slope = max(float(w @ (centred * (first - usual_first))) / (float(w @ centred**2) + ridge), 0.0)
    per_token = _mean(rest, w) / max(_mean(written, w), 1.0)
    spread = math.sqrt(_mean((first - usual_first - slope * centred) ** 2, w))
    spread_each = math.sqrt(_mean(written * (each - per_token) ** 2, w) / _mean(written, w))
    # As the next call has it: the means are known from these alone, the older ones counting less.
    count = effective(w)
    return Pace(
        first_ms=Start(mean=usual_first, sd=spread, worth=count, freedom=count).next,
        per_read_ms=slope,
        usual_read=usual_read,
        per_token_ms=Start(mean=per_token, sd=spread_each, worth=count, freedom=count).next,
    )


def crowd_of(took_over_usual: Array, before: Array, meanwhile: Array, weights: Array) -> Crowd:
    """From times over what was usual for such calls, and how many others ran when each began, and meanwhile.

    Calls that wait in turn are slow by who was there before, calls that share what there is by who ran meanwhile: what
    explains the times better is gone by.
    """
    if not len(before):
        return Crowd()
    y = np.log(np.maximum(took_over_usual, 1e-3))
    y = y - _mean(y, weights)
    fits = []
    for shared, beside in ((False, before), (True, meanwhile)):
        x = np.log1p(beside)
        usual = _mean(x, weights)
        told = float(weights @ (x - usual) ** 2) + _CROWD_NOISE / _CROWD_SD**2
        power = min(max(float(weights @ ((x - usual) * y)) / told, 0.0), _MOST_CROWD)
        left = float(weights @ (y - power * (x - usual)) ** 2)
        fits.append((left, Crowd(power=power, usual=usual, sd=math.sqrt(_CROWD_NOISE / told), shared=shared)))
    return min(fits, key=lambda fit: fit[0])[1]


def besides(observations: Sequence[Observation]) -> list[dict[str, int]]:
    """By execution, how many others that call each of its models ran when it began."""
    starts: dict[str, list[float]] = defaultdict(list)
    ends: dict[str, list[float]] = defaultdict(list)
    for one in observations:
        for model in {stage.model for stage in one.stages}:
            starts[model].append(one.time_s)
            ends[model].append(one.time_s + one.latency_ms / 1000.0)
    for told in (*starts.values(), *ends.values()):
        told.sort()
    return [
        {
            model: max(bisect_left(starts[model], one.time_s) - bisect_right(ends[model], one.time_s), 0)
            for model in {stage.model for stage in one.stages}
        }
        for one in observations
    ]


def overlaps(observations: Sequence[Observation]) -> list[dict[str, float]]:
    """By execution, how many others that call each of its models ran beside it, on average over its time.

    What made it slow, where `besides` is what could be known beforehand: of fifty that begin at once the first has
    none before it.
    """
    told: list[dict[str, float]] = [{} for _ in observations]
    calling: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(observations):
        for model in {stage.model for stage in one.stages}:
            calling[model].append(place)
    for model, places in calling.items():
        runs = [observations[place] for place in places]
        spans = np.array([(one.time_s, one.time_s + max(one.latency_ms, 1.0) / 1000.0) for one in runs])
        shared = np.diff(np.interp(spans, *_running(spans)), axis=1)[:, 0] / np.diff(spans, axis=1)[:, 0]
        for place, others in zip(places, np.maximum(shared - 1.0, 0.0).tolist(), strict=True):
            told[place][model] = others
    return told


def _running(spans: Array) -> tuple[Array, Array]:
    """When runs begin or end, and the seconds that all of them together ran until then; `spans` (n, 2)."""
    order = np.argsort(spans.ravel(), kind="stable")
    moments = spans.ravel()[order]
    count = np.cumsum(np.where(order % 2 == 0, 1.0, -1.0))
    return moments, np.concatenate([[0.0], np.cumsum(count[:-1] * np.diff(moments))])


class Near(NamedTuple):
    """By model, the others that ran when an execution began, and on average beside it: as `besides`, `overlaps` say."""

    before: Mapping[str, int]
    meanwhile: Mapping[str, float]


def near(observations: Sequence[Observation]) -> list[Near]:
    """Who ran near each execution."""
    return list(map(Near, besides(observations), overlaps(observations)))


def loads_of(observations: Sequence[Observation]) -> Mapping[str, Amount]:
    """By base, milliseconds that a call waits where something of it has to be loaded first."""
    seen: dict[str, list[float]] = defaultdict(list)
    for one in observations:
        for stage in one.stages:
            if stage.load_ms >= LOADED_MS:
                seen[stage.model.partition("@")[0]].append(stage.load_ms)
    return {base: Amount(float(np.mean(told)), _spread(told)) for base, told in sorted(seen.items())}


def _spread(told: Sequence[float]) -> float:
    """Deviation, drawn to half of the mean while few were seen."""
    mean = float(np.mean(told))
    squares = _LOAD_CALLS * (0.5 * mean) ** 2 + float(np.sum((np.asarray(told) - mean) ** 2))
    return math.sqrt(squares / (_LOAD_CALLS + len(told)))


def _mean(values: Array, weights: Array) -> float:
    return float(weights @ values) / max(float(weights.sum()), 1e-9)
