"""All that one tenant's executions have taught, and what it says of a plan: parts composed, then corrected.

`catena.plan.expect` composes a chain from its calls; `learning` finds by how much judged runs of each shape and chain
then differed from what was composed.
"""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np

from catena.plan.expect import Amount, Bonds, Call, Gate, Z, agreeing, expect, share
from catena.plan.model import Interval, Plan, Prediction, Role, Shape, Stage
from catena.router.core.beforehand import Beforehand, Kinds
from catena.router.core.catalogue import Catalogue
from catena.router.core.confidence import Array, logit
from catena.router.core.drift import Change
from catena.router.core.evidence import Evidence
from catena.router.core.gates import Opening, gate, opening
from catena.router.core.intervals import Reaches, bills, width
from catena.router.core.moment import Moment
from catena.router.core.observation import QUALITY_OF, Mode, family_of, mode_of
from catena.router.core.outcomes import Outcomes
from catena.router.core.replay import Replay, Shares, replay, shares, surplus
from catena.router.core.samples import Key
from catena.router.core.scorers import Scorer
from catena.router.core.skills import Skill, shifted, unseen

GAIN_WITH_MEMORY = 0.9
"""Share of the failures that a search mends beforehand in domains that need memory, for a model that never errs."""
DOUBT, LOCAL_DOUBT = 0.2, 0.06
"""Deviation between a composed quality and the truth of a chain that nobody judged: anywhere, and in this domain."""
GATE_DOUBT = 0.25
"""The share of those doubts that cascades deserve: both answers and the gate between them are seen one by one."""

EXACT = (Shape.SEQUENTIAL, Shape.SPECULATIVE)
"""Shapes that are right exactly when their main model is; nothing is left to correct."""

ALL = "*"
Where = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """What bears on cost: characters sent (0: unknown) and the most tokens that may be written (0: any)."""

    chars: int = 0
    max_tokens: int = 0


ANY_LENGTH = Length()
NO_SHIFTS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A chain replayed on requests whose calls were all seen: its gate, and what is left beyond its composition.

    `surplus`: how many times its usual tokens the main model reads, and writes, on what the gate lets pass.
    """

    kept: Shares
    right_if_kept: Shares
    left: Shares
    surplus: tuple[float, float] = (1.0, 1.0)


@dataclass(slots=True, kw_only=True)
class Knowledge:
    """Estimates as of one moment; made by `learning.learn`, never changed afterwards.

    `offsets`, `judged`: by (shape or family, domain or `*`); a difference of probabilities, and the judged runs behind.
    `ratios`: real over composed cost, and time, by family. `openings` and `rehearsals` are worked out when first asked
    for. `outcome`: what a request's features say; `scorers`: what an answer's do. `changes`: models that became others,
    of which nothing judged earlier counts; `judged_lately`: judged outcomes since the latest. `loads`: milliseconds
    that loading takes by base. `moment` None: any.
    """

    catalogue: Catalogue
    kinds: Kinds
    beforehand: Beforehand = field(default_factory=Beforehand)
    changes: Mapping[str, Change] = field(default_factory=dict)
    skills: Mapping[Key, Skill] = field(default_factory=dict)
    offsets: dict[Where, float] = field(default_factory=dict)
    judged: dict[Where, float] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)
    cost_reaches: Reaches = field(default_factory=Reaches)
    latency_reaches: Reaches = field(default_factory=Reaches)
    widths: dict[str, tuple[float, float]] = field(default_factory=dict)
    openings: dict[tuple[str, str], Opening | None] = field(default_factory=dict)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    evidence: Evidence | None = None
    outcome: Outcomes = field(default_factory=Outcomes)
    rehearsals: dict[str, Rehearsed | None] = field(default_factory=dict)
    outcomes: int = 0
    judged_outcomes: int = 0
    judged_lately: int = 0
    loads: Mapping[str, Amount] = field(default_factory=dict)
    moment: Moment | None = None
    _billed: Array | None = field(default=None, init=False)

    def predict(
        self, plan: Plan, domain: str, length: Length = ANY_LENGTH, shifts: Mapping[str, float] = NO_SHIFTS
    ) -> Prediction:
        """Quality, cost and latency to expect of `plan` in `domain` (empty: none was sure).

        `shifts`: log-odds by which this request is easier than usual, by model. Raises Missing when a model of the plan
        is unknown.
        """
        composed = self.compose(plan, domain, length, shifts)
        family = family_of(plan)
        cost, latency = self.ratios.get(family, (1.0, 1.0))
        cost_width, latency_width = self.width(plan)
        reliable = {s.model: self.skill(s.model, Mode.PLAIN, domain).reliability for s in plan.stages}
        moved = self.offset(plan, domain) * self.exposure(plan, domain)
        rehearsed = self.rehearsed(plan)
        moved += rehearsed.left.at(domain) if rehearsed is not None else 0.0
        mean = min(max(composed.quality.mean + moved, 0.0), 1.0) * math.prod(reliable.values())
        return Prediction(
            quality=share(Amount(mean, math.hypot(deviation(composed.quality), self._doubt(plan, domain)))),
            cost_usd=_scaled(composed.cost_usd, cost, cost_width * self.cost_reaches.of(family).factor),
            latency_ms=_scaled(composed.latency_ms, latency, latency_width * self.latency_reaches.of(family).factor),
        )

    def compose(
        self, plan: Plan, domain: str, length: Length = ANY_LENGTH, shifts: Mapping[str, float] = NO_SHIFTS
    ) -> Prediction:
        """The same from the parts alone."""
        calls = [self._call(plan, stage, domain, length) for stage in plan.stages]
        gate = self._gate(plan, domain)
        if shifts:
            usual = [call.quality.mean for call in calls]
            calls = [_eased(call, shifts, stage) for call, stage in zip(calls, plan.stages, strict=True)]
            gate = _moved_gate(gate, plan, usual, [call.quality.mean for call in calls])
        gain = GAIN_WITH_MEMORY * self._able(plan.main_model) if domain in self.kinds.needs_memory else 0.0
        return expect(plan, calls, gate=gate, bonds=Bonds(search_gain=gain))

    def rehearsed(self, plan: Plan) -> Rehearsed | None:
        """What replaying the chain told; None when too few requests show all its calls."""
        if plan.shape not in (Shape.CASCADE, Shape.CONSENSUS) or self.evidence is None:
            return None
        key = _chain(plan)
        if key not in self.rehearsals:
            replayed = replay(plan, self.evidence)
            self.rehearsals[key] = None if replayed is None else self._rehearse(plan, replayed)
        return self.rehearsals[key]

    def width(self, plan: Plan) -> tuple[float, float]:
        """How much wider than composed the ends of cost and time must be, by replaying the chain; 1 where none can."""
        if self.evidence is None:
            return 1.0, 1.0
        key = _chain(plan)
        if key not in self.widths:
            told = bills(plan, self.evidence, self._bill())
            self.widths[key] = (1.0, 1.0)
            if told is not None:
                calm = self.at(None)
                usual = {domain: calm.compose(plan, domain) for domain in sorted(set(told.domains))}
                cost, latency = self.ratios.get(family_of(plan), (1.0, 1.0))
                self.widths[key] = (
                    width([_scaled(usual[name].cost_usd, cost, 1.0) for name in told.domains], told.usd),
                    width([_scaled(usual[name].latency_ms, latency, 1.0) for name in told.domains], told.ms),
                )
        return self.widths[key]

    def _bill(self) -> Array:
        """(n, m) USD of every call in the evidence, had its request been of the usual length."""
        if self._billed is None:
            assert self.evidence is not None
            self._billed = np.full(self.evidence.read.shape, np.nan)
            for model, place in self.evidence.models.items():
                if self.catalogue.knows(model):
                    card, reads = self.catalogue.card(model), self.skill(model, Mode.PLAIN).input_tokens
                    chars = self.evidence.chars
                    longer = np.where(chars > 0.0, reads.intercept + reads.slope * chars - reads.mean, 0.0)
                    read = np.maximum(self.evidence.read[:, place] - longer, 1.0)
                    self._billed[:, place] = (
                        read * card.price_input + self.evidence.written[:, place] * card.price_output
                    ) / 1e6
        return self._billed

    def skill(self, model: str, mode: Mode, domain: str = "") -> Skill:
        """What is known of a model in a mode; of one never seen, what is assumed."""
        return self.skills.get((model, mode)) or unseen(self.beforehand.of(model, domain, self.kinds, self.catalogue))

    def offset(self, plan: Plan, domain: str) -> float:
        """How much better than composed such chains did, as a difference of probabilities."""
        if plan.shape in EXACT:
            return 0.0
        family = family_of(plan)
        ladder = ((str(plan.shape), ALL), (str(plan.shape), domain), (family, ALL), (family, domain))
        return sum(self.offsets.get(where, 0.0) for where in ladder)

    def exposure(self, plan: Plan, domain: str) -> float:
        """Share of the answers that can be other than their parts say: of a cascade those that its gate lets pass."""
        first = self._gate(plan, domain)
        return first.kept if first is not None else 1.0

    def runs_judged(self, plan: Plan, domain: str) -> float:
        """Judged outcomes, faded with age, on which the quality rests directly."""
        if plan.shape in EXACT:
            return self.skill(plan.main_model, Mode.PLAIN).judged_in.get(domain, 0.0)
        rehearsed = self.rehearsed(plan)
        seen = rehearsed.left.rows_in.get(domain, 0.0) if rehearsed is not None else 0.0
        return self.judged.get((family_of(plan), domain), 0.0) + seen

    def _rehearse(self, plan: Plan, replayed: Replay) -> Rehearsed:
        usual = [self.skill(stage.model, Mode.PLAIN).quality.overall.mean for stage in plan.stages]
        fast = [q for q, stage in zip(usual, plan.stages, strict=True) if stage.role is not Role.MAIN]
        told = agreeing(fast, Bonds())
        stood = replace(replayed, weights=replayed.weights * replayed.kept)
        rehearsed = Rehearsed(
            kept=shares(replayed.kept, replayed, told.kept),
            right_if_kept=shares(replayed.right, stood, told.right_if_kept),
            left=Shares(overall=0.0),
            surplus=(surplus(replayed.read, replayed), surplus(replayed.written, replayed)),
        )
        self.rehearsals[_chain(plan)] = rehearsed
        calls = {domain: [self._call(plan, s, domain, ANY_LENGTH) for s in plan.stages] for domain in replayed.names}
        gates = {
            domain: Gate(kept=rehearsed.kept.at(domain), right_if_kept=rehearsed.right_if_kept.at(domain))
            for domain in replayed.names
        }
        composed = np.array(
            [expect(plan, calls[domain], gate=gates[domain]).quality.mean for domain in replayed.names], np.float64
        )
        return replace(rehearsed, left=shares(replayed.right - composed[replayed.domains], replayed, 0.0))

    def _able(self, model: str) -> float:
        """How often a model is right where it needs no memory: it reads what was found no better than that."""
        quality = self.skill(model, Mode.PLAIN).quality
        elsewhere = [amount.mean for name, amount in quality.by_domain.items() if name not in self.kinds.needs_memory]
        return sum(elsewhere) / len(elsewhere) if elsewhere else quality.overall.mean

    def _gate(self, plan: Plan, domain: str) -> Gate | None:
        if plan.shape is not Shape.CASCADE:
            return None
        rehearsed = self.rehearsed(plan)
        if rehearsed is not None:
            return Gate(kept=rehearsed.kept.at(domain), right_if_kept=rehearsed.right_if_kept.at(domain))
        if "agreement" in plan.settings.checks and len(plan.of(Role.FAST)) > 1:
            return None
        expected = self._opening(plan.of(Role.FAST)[0].model, domain)
        return gate(expected, plan.settings.threshold) if expected is not None else None

    def _opening(self, model: str, domain: str) -> Opening | None:
        if (model, domain) not in self.openings:
            self.openings[model, domain] = opening(self.skill(model, Mode.PLAIN, domain), domain)
        return self.openings[model, domain]

    def _doubt(self, plan: Plan, domain: str) -> float:
        if plan.shape in EXACT:
            return 0.0
        family = family_of(plan)
        whole, here = self.judged.get((family, ALL), 0.0), self.runs_judged(plan, domain)
        rehearsed = self.rehearsed(plan)
        whole += rehearsed.left.rows if rehearsed is not None else 0.0
        part = GATE_DOUBT * self.exposure(plan, domain) if plan.shape is Shape.CASCADE else 1.0
        return part * math.hypot(DOUBT * math.sqrt(4.0 / (4.0 + whole)), LOCAL_DOUBT * math.sqrt(4.0 / (4.0 + here)))

    def _call(self, plan: Plan, stage: Stage, domain: str, length: Length) -> Call:
        mode = mode_of(plan.shape, stage)
        able = self.skills.get((stage.model, QUALITY_OF[mode])) or self.skill(stage.model, Mode.PLAIN, domain)
        read, written, taken = self._effort(stage.model, mode, domain, length)
        if plan.shape is Shape.CASCADE and stage.role is Role.MAIN and (told := self.rehearsed(plan)) is not None:
            read, written, taken = (
                _times(read, told.surplus[0]),
                _times(written, told.surplus[1]),
                _times(taken, told.surplus[1]),
            )
        taken = self._now(stage.model, mode, taken)
        card = self.catalogue.card(stage.model)
        cost = Amount(
            (read.mean * card.price_input + written.mean * card.price_output) / 1e6,
            math.hypot(read.sd * card.price_input, written.sd * card.price_output) / 1e6,
        )
        return Call(quality=able.quality.at(domain), cost_usd=cost, latency_ms=taken)

    def _now(self, model: str, mode: Mode, taken: Amount) -> Amount:
        """A call's time as it is just now: beside the calls in flight, and after what has to be loaded first."""
        moment = self.moment
        if moment is None:
            return taken
        known = self.skills.get((model, mode)) or self.skills.get((model, Mode.PLAIN))
        if known is not None and known.crowd.power > 0.0:
            taken = _times(taken, known.crowd.slower(moment.beside.get(model, 0)))
        load = self.loads.get(model.partition("@")[0])
        if load is not None and moment.cold(model):
            taken = Amount(taken.mean + load.mean, math.hypot(taken.sd, load.sd))
        return taken

    def at(self, moment: Moment | None) -> "Knowledge":
        """The same, for a decision at this moment; None: at any."""
        current = copy(self)
        current.moment = moment
        return current

    def _effort(self, model: str, mode: Mode, domain: str, length: Length) -> tuple[Amount, Amount, Amount]:
        """Tokens read, tokens written, milliseconds; of an unseen mode, the plain one's with what it adds."""
        known = self.skills.get((model, mode))
        skill = known or self.skill(model, Mode.PLAIN, domain)
        read = skill.input_tokens.at(length.chars)
        written, taken = skill.output_tokens.at(domain), skill.latency_ms.at(domain)
        if known is None:
            turns = 2.0 if mode is Mode.SEARCH else 1.0
            echo = written.mean if mode in (Mode.REFINE, Mode.VERIFY) else 0.0
            read = turns * (read + echo)
            written, taken = _times(written, turns), _times(taken, turns)
        if length.max_tokens and written.mean + Z * written.sd > length.max_tokens:
            mean = min(written.mean, float(length.max_tokens))
            written = Amount(mean, min(written.sd, (length.max_tokens - mean) / Z))
        if skill.pace is not None:
            taken = skill.pace.at(read, written)
        return Amount(read, read * skill.input_tokens.relative_sd), written, taken


def _chain(plan: Plan) -> str:
    """The same for plans that replay alike."""
    told = plan.settings
    # Of two that have to agree, any threshold asks for both.
    bar = told.threshold if len(plan.of(Role.FAST)) > 2 else 0.0
    return f"{family_of(plan)} {told.vote} {'agreement' in told.checks} {bar:g}"


def _eased(call: Call, shifts: Mapping[str, float], stage: Stage) -> Call:
    """The call on a request that is easier or harder than usual; a model that was never judged is as the others."""
    by = shifts.get(stage.model, shifts.get("", 0.0))
    mean = call.quality.mean
    return replace(call, quality=replace(call.quality, mean=shifted(mean, by) if 0.0 < mean < 1.0 else mean))


def _moved_gate(gate: Gate | None, plan: Plan, usual: Sequence[float], now: Sequence[float]) -> Gate | None:
    """The gate for other accuracies than usual, moved as agreement would be."""
    if gate is None:
        return None
    places = [place for place, stage in enumerate(plan.stages) if stage.role is Role.FAST]
    if len(places) < 2:
        places = places * 2
    before, after = (agreeing([told[place] for place in places], Bonds()) for told in (usual, now))
    return Gate(
        kept=shifted(gate.kept, logit(after.kept) - logit(before.kept)),
        right_if_kept=shifted(gate.right_if_kept, logit(after.right_if_kept) - logit(before.right_if_kept)),
    )


def deviation(ends: Interval) -> float:
    """Standard deviation behind a probability's ends, of which one may be cut at 0 or 1."""
    return max(ends.mean - ends.low, ends.high - ends.mean) / Z


def _scaled(ends: Interval, by: float, reach: float) -> Interval:
    """The ends moved with the mean by `by`, and `reach` times as far from it in proportion."""
    if ends.mean <= 0.0 or ends.low <= 0.0:
        return Interval(ends.mean * by, ends.low * by, ends.high * by)
    mean = ends.mean * by
    return Interval(mean, mean * (ends.low / ends.mean) ** reach, mean * (ends.high / ends.mean) ** reach)


def _times(amount: Amount, by: float) -> Amount:
    return Amount(amount.mean * by, amount.sd * by)
