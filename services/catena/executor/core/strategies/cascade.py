"""A cheap model answers; a strong one is asked only if the answer is doubtful."""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from catena.executor.core import voting
from catena.executor.core.actions import Action, Call, Mark, Result, Sift, Strategy, Together, decided
from catena.executor.core.answers import form_of
from catena.executor.core.chat import ChatRequest, Delta, Sampling
from catena.executor.core.checks import Doubt, below, doubt, settled, told_early
from catena.executor.core.prompts import judging, spoken
from catena.executor.core.strategies.draft_refine import agreement
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import side_by_side, staged
from catena.plan.answer import answer_features, sureness
from catena.plan.model import Plan, Role, Settings, Stage

VERIFY = (
    "An answer to the request follows it. Reply YES if the answer is right and complete, else NO, and nothing else."
)
SAMPLE_TEMPERATURE = 0.7
"""Of samples that are to agree: at 0 they would be one answer, told several times."""
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """A fast answer with how sure it is, by whatever measures that, and the doubt in it (None: it may stand).

    `names`: the stages that gave it; `form`: what it came to where several were compared.
    """

    names: tuple[str, ...]
    result: Result
    sureness: float
    doubt: Doubt | None
    form: str = ""


def cascade(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The first acceptable answer. The fast ones are held back until they have passed; the strong one streams.

    Fast models that cannot take the request's images or tools are not asked.
    """
    fast: Result | None = None
    fasts = facts.ables(plan.of(Role.FAST), request)
    together = "agreement" in plan.settings.checks
    for stages in [fasts] if together and fasts else [(stage,) for stage in fasts]:
        trying = _agreed(plan, request, stages) if together else _alone(plan, request, facts, stages[0])
        tried: Try = yield from trying
        tried = yield from _verified(plan, request, facts, tried)
        yield from _marks(tried)
        fast = tried.result
        # Words that the client has cannot be taken back: an answer that breaks off behind them is an error.
        if tried.doubt is None or fast.streamed:
            return decided(_as_asked(fast, request))
    main = plan.of(Role.MAIN)[0]
    strong: Result = yield Call(stage=main, request=(yield from staged(request, main)), stream=True)
    if strong.error is not None and main.optional and fast is not None and fast.error is None and not strong.streamed:
        return decided(_as_asked(fast, request))
    form = _form(strong, request, plan.settings) if together else None
    if form is not None:
        # In the form that the fast answers were compared in, or whoever learns would take the same answer for another.
        yield Mark(name=main.name, outcome="accepted", form=form)
    return decided(strong, agreement=None if fast is None else agreement(fast, strong))


def _marks(tried: Try) -> Generator[Mark, None, None]:
    if tried.result.error is not None:
        return
    outcome, reason = ("accepted", "") if tried.doubt is None else ("rejected", tried.doubt.reason)
    for name in tried.names:
        yield Mark(name=name, outcome=outcome, reason=reason, confidence=tried.sureness, form=tried.form)


def _alone(plan: Plan, request: ChatRequest, facts: Facts, stage: Stage) -> Generator[Action, Any, Try]:
    """One fast answer, as sure as its model was of it, or, where that is not told, as the plan's scorer is.

    It streams where its first words tell that it passes.
    """
    early = told_early(request, plan.settings)
    asked = _measured((yield from staged(request, stage)), stage, facts)
    sift = partial(_holding, request, plan.settings) if early else None
    result: Result = yield Call(stage=stage, request=asked, stream=early, sift=sift)
    if result.confidence is None and result.error is None and plan.settings.scorer:
        sure = sureness(answer_features(asked.asked, result.text), plan.settings.scorer)
        result = replace(result, confidence=sure)
    found = doubt(request, result, plan.settings)
    return Try(names=(stage.name,), result=result, sureness=result.confidence or 0.0, doubt=found)


def _holding(request: ChatRequest, settings: Settings) -> Sift:
    """Holds pieces back until the answer passes, then lets all of them go."""
    held: list[Delta] = []
    passed = False

    def sift(deltas: Sequence[Delta]) -> Sequence[Delta]:
        nonlocal passed
        held.extend(deltas)
        if not passed:
            first = [delta for delta in held if delta.index == 0]
            calls = any(delta.tool_calls for delta in first)
            passed = calls or settled("".join(delta.text for delta in first), settings)
        if not passed:
            return ()
        free = [delta if request.sampling.logprobs else replace(delta, logprobs=()) for delta in held]
        held.clear()
        return free

    return sift


def _agreed(plan: Plan, request: ChatRequest, stages: tuple[Stage, ...]) -> Generator[Action, Any, Try]:
    """The answer that most of the fast models, or most samples of one, came to; as sure as their share."""
    voters = stages if len(stages) > 1 else _samples(stages[0], plan.settings)
    calls = yield from side_by_side(request, voters)
    results: Sequence[Result | None] = yield Together(calls=calls, enough=lambda found: False)
    forms = [_form(result, request, plan.settings) for result in results]
    if all(form is None for form in forms):
        failed = next((result for result in results if result is not None), Result())
        return Try(names=(), result=failed, sureness=0.0, doubt=doubt(request, failed, plan.settings) or NOTHING)
    votes = voting.tally(forms, [1.0] * len(forms))
    winners = [place for place, form in enumerate(forms) if form == votes.winner]
    # Whoever did not answer agreed with nobody.
    share = len(winners) / len(voters)
    for voter, form in zip(voters, forms, strict=True):
        if form is not None and form != votes.winner:
            yield Mark(name=voter.name, outcome="rejected", reason="outvoted", form=form)
    result = results[winners[0]]
    assert result is not None
    settings = replace(plan.settings, checks=tuple(name for name in plan.settings.checks if name != "confidence"))
    found = doubt(request, result, settings)
    if found is None and (votes.tied or len(winners) < 2 or share < plan.settings.threshold):
        found = Doubt("agreement", f"{len(winners)} of {len(voters)} agree")
    names = tuple(voters[place].name for place in winners)
    return Try(names=names, result=result, sureness=share, doubt=found, form=votes.winner)


NOTHING = Doubt("empty", "no answer")


def _samples(stage: Stage, settings: Settings) -> tuple[Stage, ...]:
    """The stage several times over; warm, where the plan does not say how warm."""
    warm = SAMPLE_TEMPERATURE if stage.temperature is None else stage.temperature
    names = [stage.name, *(f"{stage.name}-{number}" for number in range(2, settings.samples + 1))]
    return tuple(replace(stage, name=name, temperature=warm) for name in names)


def _form(result: Result | None, request: ChatRequest, settings: Settings) -> str | None:
    if result is None or result.error is not None or not result.choices:
        return None
    return form_of(result.choices[0], request, settings.answer)


def _verified(plan: Plan, request: ChatRequest, facts: Facts, tried: Try) -> Generator[Action, Any, Try]:
    """What the verifier, if there is one, thinks of an answer that has passed so far. No verdict is a doubt."""
    judges = plan.of(Role.JUDGE) if "verifier" in plan.settings.checks else ()
    if not judges or tried.doubt is not None or tried.result.choices[0].message.tool_calls:
        return tried
    judge = judges[0]
    asked = judging(request, judge.instruction or VERIFY, f"answer: {spoken(tried.result.choices[0])}")
    cold = replace(asked, sampling=Sampling(temperature=0.0, max_tokens=asked.sampling.max_tokens))
    verdict: Result = yield Call(stage=judge, request=_measured(cold, judge, facts))
    likely = probability(verdict)
    if likely is None:
        return replace(tried, doubt=Doubt("verifier", "the verifier gave no verdict"))
    refused = below(likely, plan.settings.threshold)
    return replace(tried, sureness=likely, doubt=Doubt("verifier", f"verified {refused}") if refused else None)


def probability(verdict: Result) -> float | None:
    """How likely the verifier thinks a right answer, by how sure it was of its yes or no; None: it said neither."""
    said = _VERDICT.match(verdict.text) if verdict.error is None else None
    if said is None:
        return None
    sure = 1.0 if verdict.confidence is None else verdict.confidence
    return sure if said[1].lower() == "yes" else 1.0 - sure


def _measured(request: ChatRequest, stage: Stage, facts: Facts) -> ChatRequest:
    """Ask for log-probabilities where the provider only measures confidence by them."""
    if not facts.logprobs(stage.model):
        return request
    return replace(request, sampling=replace(request.sampling, logprobs=True))


def _as_asked(result: Result, request: ChatRequest) -> Result:
    """Take back log-probabilities that only the check had wanted."""
    if request.sampling.logprobs:
        return result
    return replace(result, choices=tuple(replace(choice, logprobs=()) for choice in result.choices))
