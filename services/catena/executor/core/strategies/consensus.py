"""Several models answer, a vote decides."""

import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

from catena.executor.core import voting
from catena.executor.core.actions import Action, Call, Decision, Embed, Mark, Result, Strategy, Together
from catena.executor.core.answers import form_of
from catena.executor.core.chat import ChatRequest
from catena.executor.core.normal import normal_choice
from catena.executor.core.prompts import judging, spoken
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import side_by_side
from catena.kit.errors import CatenaError, Unavailable
from catena.plan.model import Plan, Role, Stage

JUDGE = "Several answers to one request follow, numbered. Reply with the number of the best one and nothing else."
Results = Sequence[Result | None]


def consensus(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The answer that the vote gives; agreement is the winner's share of the members that answered.

    Members that cannot take the request's images or tools are not asked, unless none can.
    Raises the first member's error when every one failed, Unavailable (`no_answers`) when all were silent.
    """
    members = facts.ables(plan.of(Role.MEMBER), request) or plan.of(Role.MEMBER)
    weights = _weights(plan, members)
    asked = yield from side_by_side(request, members)
    results: Results = yield Together(calls=asked, enough=_enough(plan, request, weights))
    forms = _forms(results, request, plan.settings.answer)
    if all(form is None for form in forms):
        raise _nobody(results)
    if plan.settings.vote == "medoid":
        chosen: int = yield from _central(results, forms, weights)
    else:
        chosen = yield from _elected(plan, request, results, forms, weights)
    for member, form in zip(members, forms, strict=True):
        if form is not None:
            agrees = form == forms[chosen]
            reason = "" if agrees else "outvoted"
            yield Mark(name=member.name, outcome="accepted" if agrees else "rejected", reason=reason, form=form)
    answers = [form for form in forms if form is not None]
    winner = results[chosen]
    assert winner is not None
    return Decision(
        choices=winner.choices, model=winner.model, agreement=answers.count(forms[chosen] or "") / len(answers)
    )


def _weights(plan: Plan, members: Sequence[Stage]) -> list[float]:
    if plan.settings.vote != "weighted":
        return [1.0] * len(members)
    return [plan.settings.weights.get(member.name, 1.0) for member in members]


def _enough(plan: Plan, request: ChatRequest, weights: Sequence[float]) -> Callable[[Results], bool]:
    """A medoid needs every answer; a vote is over when the lead cannot be beaten."""

    def enough(results: Results) -> bool:
        if plan.settings.vote == "medoid":
            return False
        forms = [_form(result, request, plan.settings.answer) for result in results]
        return voting.unbeatable(forms, weights, [result is None for result in results])

    return enough


def _forms(results: Results, request: ChatRequest, kind: str) -> list[str | None]:
    """What each answer comes to; where none has anything of the kind wanted, all their words."""
    forms = [_form(result, request, kind) for result in results]
    if any(form is not None for form in forms):
        return forms
    return [normal_choice(result.choices[0]) if _answered(result) and result else None for result in results]


def _form(result: Result | None, request: ChatRequest, kind: str) -> str | None:
    return form_of(result.choices[0], request, kind) if result is not None and _answered(result) else None


def _answered(result: Result | None) -> bool:
    return result is not None and result.error is None and bool(result.choices)


def _nobody(results: Results) -> CatenaError:
    """Why nobody answered: the first member's reason, its kind kept."""
    errors = [result.error for result in results if result is not None and result.error is not None]
    return errors[0] if errors else Unavailable("no member of the consensus gave an answer", code="no_answers")


def _central(results: Results, forms: voting.Forms, weights: Sequence[float]) -> Generator[Action, Any, int]:
    """The place of the answer nearest to all others, by meaning, or by letters where there is no embedding model."""
    answered = [place for place, form in enumerate(forms) if form is not None]
    texts, heard = [forms[place] or "" for place in answered], [weights[place] for place in answered]
    if len(texts) < 3:
        return answered[heard.index(max(heard))]
    vectors = yield Embed(texts=tuple(texts))
    nearness = voting.likeness(texts) if vectors is None else voting.cosines(vectors)
    return answered[voting.medoid(nearness, heard)]


def _elected(
    plan: Plan, request: ChatRequest, results: Results, forms: voting.Forms, weights: Sequence[float]
) -> Generator[Action, Any, int]:
    """The place of the winner; a judge is asked on a tie, and where it is to say whenever there is no majority."""
    votes = voting.tally(forms, weights)
    divided = votes.tied or (plan.settings.vote == "judge" and votes.share <= 0.5)
    if divided and plan.of(Role.JUDGE):
        chosen: int = yield from _judged(plan.of(Role.JUDGE)[0], request, results, forms, votes)
        return chosen
    return _surest(results, forms, votes)


def _surest(results: Results, forms: voting.Forms, votes: voting.Tally) -> int:
    """The place of the winner; of equals the one whose model was surest of it, else the first."""
    most = votes.weights[votes.winner]

    def sureness(place: int) -> tuple[bool, float, int]:
        form, result = forms[place], results[place]
        leads = form is not None and votes.weights[form] >= most
        return leads, (result.confidence or 0.0) if result is not None else 0.0, -place

    return max(range(len(forms)), key=sureness)


def _judged(
    judge: Stage, request: ChatRequest, results: Results, forms: voting.Forms, votes: voting.Tally
) -> Generator[Action, Any, int]:
    """Ask the judge for a number; one that is silent or wild leaves it to the plain vote."""
    places = [forms.index(form) for form in dict.fromkeys(form for form in forms if form is not None)]
    listed = "\n".join(f"{number}. {_words(results[place])}" for number, place in enumerate(places, 1))
    verdict = yield Call(stage=judge, request=judging(request, judge.instruction or JUDGE, listed))
    said = re.search(r"\d+", verdict.text) if verdict.error is None else None
    number = int(said[0]) if said and len(said[0]) < 4 else 0
    return places[number - 1] if 1 <= number <= len(places) else _surest(results, forms, votes)


def _words(result: Result | None) -> str:
    return spoken(result.choices[0]) if result is not None and result.choices else ""
