"""What is known of a plan in a domain, gathered once: what a request adds to it is then little arithmetic.

Parts are composed by `catena.plan.expect`; an outlook corrects what they come to by what such chains really did.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catena.plan.expect import Amount, Bonds, Call, Gate, Z, agreeing, expect, share
from catena.plan.model import Interval, Plan, Prediction, Role
from catena.router.core.confidence import logit
from catena.router.core.moment import Moment
from catena.router.core.pace import Crowd, Pace
from catena.router.core.samples import Line
from catena.router.core.skills import shifted

NO_SHIFTS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """What bears on cost: characters sent (0: unknown) and the most tokens that may be written (0: any)."""

    chars: int = 0
    max_tokens: int = 0


ANY_LENGTH = Length()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One call of a plan: how often it is right, its tokens and times, its prices in USD per million tokens.

    It reads `turns` times what the line tells and `echo` more; `more` (read, written): times its usual tokens that it
    needs where it is only asked what others did not settle. `load`: what loading takes where the adapter is cold.
    """

    model: str
    quality: Amount
    reads: Line
    written: Amount
    taken: Amount
    prices: tuple[float, float]
    turns: float = 1.0
    echo: float = 0.0
    more: tuple[float, float] = (1.0, 1.0)
    pace: Pace | None = None
    crowd: Crowd | None = None
    load: Amount | None = None

    def call(self, length: Length, by: float, moment: Moment | None) -> Call:
        """On a request of this length that is easier than usual `by` log-odds, asked at this moment (None: any)."""
        more_read, more_written = self.more
        read = self.turns * (self.reads.at(length.chars) + self.echo)
        written = _bounded(self.written, length.max_tokens)
        taken = times(self.taken if self.pace is None else self.pace.at(read, written), more_written)
        read, written = more_read * read, times(written, more_written)
        price_read, price_written = self.prices
        mean, quality = self.quality.mean, self.quality
        return Call(
            quality=Amount(shifted(mean, by), quality.sd) if by and 0.0 < mean < 1.0 else quality,
            cost_usd=Amount(
                (read * price_read + written.mean * price_written) / 1e6,
                math.hypot(read * self.reads.relative_sd * price_read, written.sd * price_written) / 1e6,
                # What is read is paid for, however little is written.
                read * max(1.0 - Z * self.reads.relative_sd, 0.0) * price_read / 1e6,
            ),
            latency_ms=taken if moment is None else self._now(taken, moment),
        )

    def _now(self, taken: Amount, moment: Moment) -> Amount:
        """The time beside the calls in flight, and after what has to be loaded first."""
        if self.crowd is not None and self.crowd.power > 0.0:
            taken = self.crowd.beside(taken, moment.beside.get(self.model, 0))
        if self.load is not None and moment.cold(self.model):
            taken = Amount(taken.mean + self.load.mean, math.hypot(taken.sd, self.load.sd))
        return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A plan's calls, in the order of its stages, the gate between them, and how they depend on each other."""

    plan: Plan
    calls: Sequence[Part]
    gate: Gate | None
    bonds: Bonds

    def compose(
        self, length: Length = ANY_LENGTH, shifts: Mapping[str, float] = NO_SHIFTS, moment: Moment | None = None
    ) -> Prediction:
        """What the parts alone say; a model that was never judged is shifted as the empty name is."""
        usual = shifts.get("", 0.0)
        calls = [part.call(length, shifts.get(part.model, usual), moment) for part in self.calls]
        gate = self._moved_gate(calls) if shifts and self.gate is not None else self.gate
        return expect(self.plan, calls, gate=gate, bonds=self.bonds)

    def _moved_gate(self, calls: Sequence[Call]) -> Gate:
        """The gate for other accuracies than usual, moved as agreement would be."""
        assert self.gate is not None
        places = [place for place, stage in enumerate(self.plan.stages) if stage.role is Role.FAST]
        places = places * 2 if len(places) < 2 else places
        before = agreeing([self.calls[place].quality.mean for place in places], Bonds())
        after = agreeing([calls[place].quality.mean for place in places], Bonds())
        return Gate(
            kept=shifted(self.gate.kept, logit(after.kept) - logit(before.kept)),
            right_if_kept=shifted(self.gate.right_if_kept, logit(after.right_if_kept) - logit(before.right_if_kept)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A plan in a domain. `moved`: how much better than composed such chains did; `reliable`: share of runs that end.

    `doubt`: deviation of the quality beyond that of its parts. `cost`, `latency`: real over composed, and how much
    further than composed the ends lie.
    """

    parts: Parts
    moved: float
    reliable: float
    doubt: float
    cost: tuple[float, float]
    latency: tuple[float, float]

    def predict(
        self, length: Length = ANY_LENGTH, shifts: Mapping[str, float] = NO_SHIFTS, moment: Moment | None = None
    ) -> Prediction:
        """Quality, cost and latency to expect.

        `shifts`: log-odds by which the request is easier than usual, by model; `moment` None: at any.
        """
        composed = self.parts.compose(length, shifts, moment)
        mean = min(max(composed.quality.mean + self.moved, 0.0), 1.0) * self.reliable
        return Prediction(
            quality=share(Amount(mean, math.hypot(deviation(composed.quality), self.doubt))),
            cost_usd=scaled(composed.cost_usd, *self.cost),
            latency_ms=scaled(composed.latency_ms, *self.latency),
        )


def deviation(ends: Interval) -> float:
    """Standard deviation behind a probability's ends, of which one may be cut at 0 or 1."""
    return max(ends.mean - ends.low, ends.high - ends.mean) / Z


def scaled(ends: Interval, by: float, reach: float) -> Interval:
    """The ends moved with the mean by `by`, and `reach` times as far from it in proportion."""
    if ends.mean <= 0.0 or ends.low <= 0.0:
        return Interval(ends.mean * by, ends.low * by, ends.high * by)
    mean = ends.mean * by
    return Interval(mean, mean * (ends.low / ends.mean) ** reach, mean * (ends.high / ends.mean) ** reach)


def times(amount: Amount, by: float) -> Amount:
    """The amount taken so many times."""
    return amount if by == 1.0 else Amount(amount.mean * by, amount.sd * by)


def _bounded(written: Amount, most: int) -> Amount:
    """Tokens written where no more than `most` may be (0: any)."""
    if not most or written.mean + Z * written.sd <= most:
        return written
    mean = min(written.mean, float(most))
    return Amount(mean, min(written.sd, (most - mean) / Z))
