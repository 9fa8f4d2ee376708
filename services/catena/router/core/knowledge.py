"""All that one tenant's executions have taught, and what it says of a plan: parts composed, then corrected.

`catena.plan.expect` composes a chain from its calls; `learning` finds by how much judged runs of each shape and chain
then differed from what was composed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from catena.plan.expect import Amount, Bonds, Gate, agreeing
from catena.plan.model import Plan, Prediction, Role, Shape, Stage
from catena.router.core.beforehand import Beforehand, Kinds
from catena.router.core.catalogue import Catalogue
from catena.router.core.confidence import Array
from catena.router.core.drift import Change
from catena.router.core.evidence import Evidence
from catena.router.core.gates import Opening, gate, opening
from catena.router.core.intervals import Kept, Reaches, bills, width
from catena.router.core.moment import Moment
from catena.router.core.observation import QUALITY_OF, Mode, family_of, mode_of
from catena.router.core.outcomes import Outcomes
from catena.router.core.outlook import ANY_LENGTH, NO_SHIFTS, Length, Outlook, Part, Parts, scaled, times
from catena.router.core.replay import Replay, Shares, replay, shares, surplus
from catena.router.core.samples import Key
from catena.router.core.scorers import Scorer
from catena.router.core.skills import Skill, unseen
from catena.router.core.starts import NOWHERE, Starts

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
    that loading takes by base. `starts`: what a model that was not seen reads, writes and takes. `kept`: what the
    intervals told so far held.
    """

    catalogue: Catalogue
    kinds: Kinds
    beforehand: Beforehand = field(default_factory=Beforehand)
    changes: Mapping[str, Change] = field(default_factory=dict)
    skills: Mapping[Key, Skill] = field(default_factory=dict)
    starts: Starts = NOWHERE
    offsets: dict[Where, float] = field(default_factory=dict)
    judged: dict[Where, float] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float]] = field(default_factory=dict)
    cost_reaches: Reaches = field(default_factory=Reaches)
    latency_reaches: Reaches = field(default_factory=Reaches)
    kept: Kept = field(default_factory=Kept)
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
    _billed: Array | None = field(default=None, init=False)

    def predict(
        self,
        plan: Plan,
        domain: str,
        length: Length = ANY_LENGTH,
        shifts: Mapping[str, float] = NO_SHIFTS,
        moment: Moment | None = None,
    ) -> Prediction:
        """Quality, cost and latency to expect of `plan` in `domain`, as `Outlook.predict` says; the same errors."""
        return self.outlook(plan, domain).predict(length, shifts, moment)

    def outlook(self, plan: Plan, domain: str) -> Outlook:
        """All that is known of `plan` in `domain` (empty: none was sure). Raises Missing for an unknown model."""
        parts, family = self.parts(plan, domain), family_of(plan)
        cost, latency = self.ratios.get(family, (1.0, 1.0))
        cost_width, latency_width = self.width(plan)
        reliable = {s.model: self.skill(s.model, Mode.PLAIN, domain).reliability for s in plan.stages}
        rehearsed = self.rehearsed(plan)
        left = rehearsed.left.at(domain) if rehearsed is not None else 0.0
        return Outlook(
            parts=parts,
            moved=self.offset(plan, domain) * _exposure(parts.gate) + left,
            reliable=math.prod(reliable.values()),
            doubt=self._doubt(plan, domain, _exposure(parts.gate)),
            cost=(cost, cost_width * self.cost_reaches.of(family)),
            latency=(latency, latency_width * self.latency_reaches.of(family)),
        )

    def parts(self, plan: Plan, domain: str) -> Parts:
        """The plan's calls there and the gate between them."""
        gain = GAIN_WITH_MEMORY * self._able(plan.main_model) if domain in self.kinds.needs_memory else 0.0
        return Parts(
            plan=plan,
            calls=[self._part(plan, stage, domain) for stage in plan.stages],
            gate=self._gate(plan, domain),
            bonds=Bonds(search_gain=gain),
        )

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
                usual = {domain: self.parts(plan, domain).compose() for domain in sorted(set(told.domains))}
                cost, latency = self.ratios.get(family_of(plan), (1.0, 1.0))
                self.widths[key] = (
                    width([scaled(usual[name].cost_usd, cost, 1.0) for name in told.domains], told.usd, told.pull),
                    width([scaled(usual[name].latency_ms, latency, 1.0) for name in told.domains], told.ms, told.pull),
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
        known = self.skills.get((model, mode))
        return known or unseen(self.beforehand.of(model, domain, self.kinds, self.catalogue), self.starts)

    def offset(self, plan: Plan, domain: str) -> float:
        """How much better than composed such chains did, as a difference of probabilities."""
        if plan.shape in EXACT:
            return 0.0
        family = family_of(plan)
        ladder = ((str(plan.shape), ALL), (str(plan.shape), domain), (family, ALL), (family, domain))
        return sum(self.offsets.get(where, 0.0) for where in ladder)

    def exposure(self, plan: Plan, domain: str) -> float:
        """Share of the answers that can be other than their parts say: of a cascade those that its gate lets pass."""
        return _exposure(self._gate(plan, domain))

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
        composed = np.array([self.parts(plan, domain).compose().quality.mean for domain in replayed.names], np.float64)
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

    def _doubt(self, plan: Plan, domain: str, exposure: float) -> float:
        if plan.shape in EXACT:
            return 0.0
        family = family_of(plan)
        whole, here = self.judged.get((family, ALL), 0.0), self.runs_judged(plan, domain)
        rehearsed = self.rehearsed(plan)
        whole += rehearsed.left.rows if rehearsed is not None else 0.0
        part = GATE_DOUBT * exposure if plan.shape is Shape.CASCADE else 1.0
        return part * math.hypot(DOUBT * math.sqrt(4.0 / (4.0 + whole)), LOCAL_DOUBT * math.sqrt(4.0 / (4.0 + here)))

    def _part(self, plan: Plan, stage: Stage, domain: str) -> Part:
        """What the stage's call does; of a mode that was not seen, the plain one's with what it adds."""
        model, mode = stage.model, mode_of(plan.shape, stage)
        able = self.skills.get((model, QUALITY_OF[mode])) or self.skill(model, Mode.PLAIN, domain)
        known = self.skills.get((model, mode))
        skill, card = known or self.skill(model, Mode.PLAIN, domain), self.catalogue.card(model)
        written, taken = skill.output_tokens.at(domain), skill.latency_ms.at(domain)
        turns = 2.0 if known is None and mode is Mode.SEARCH else 1.0
        told = self.rehearsed(plan) if plan.shape is Shape.CASCADE and stage.role is Role.MAIN else None
        return Part(
            model=model,
            quality=able.quality.at(domain),
            reads=skill.input_tokens,
            written=times(written, turns),
            taken=times(taken, turns),
            prices=(card.price_input, card.price_output),
            turns=turns,
            echo=written.mean if known is None and mode in (Mode.REFINE, Mode.VERIFY) else 0.0,
            more=told.surplus if told is not None else (1.0, 1.0),
            pace=skill.pace,
            crowd=skill.crowd,
            load=self.loads.get(model.partition("@")[0]),
        )


def _exposure(gate: Gate | None) -> float:
    return gate.kept if gate is not None else 1.0


def _chain(plan: Plan) -> str:
    """The same for plans that replay alike."""
    told = plan.settings
    # Of two that have to agree, any threshold asks for both.
    bar = told.threshold if len(plan.of(Role.FAST)) > 2 else 0.0
    return f"{family_of(plan)} {told.vote} {'agreement' in told.checks} {bar:g}"
