"""Several models answer, a vote decides."""

import re
from collections.abc import Callable, Generator, Sequence

from catena.executor.core import voting
from catena.executor.core.actions import Call, Decision, Mark, Result, Strategy, Together
from catena.executor.core.chat import ChatRequest, Message
from catena.executor.core.normal import normal_choice
from catena.executor.core.prompts import for_stage, one, plain, question
from catena.executor.core.strategies.facts import Facts
from catena.kit.errors import CatenaError, Unavailable
from catena.plan.model import Plan, Role, Stage

JUDGE = "Several answers to one request follow, numbered. Reply with the number of the best one and nothing else."


def consensus(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The answer that the vote gives; agreement is the winner's share of the members that answered.

    Raises the first member's error when every one failed, Unavailable (`no_answers`) when all were silent.
    """
    members = plan.of(Role.MEMBER)
    weights = _weights(plan, members)
    asked = tuple(Call(stage=member, request=for_stage(one(request), member)) for member in members)
    results: Sequence[Result | None] = yield Together(calls=asked, enough=_enough(plan, weights))
    forms = [_form(result) for result in results]
    if all(form is None for form in forms):
        raise _nobody(results)
    chosen = _vote(plan, results, weights)
    if chosen is None:
        chosen = yield from _judged(plan, request, results, weights)
    for member, form in zip(members, forms, strict=True):
        if form is not None:
            agrees = form == forms[chosen]
            reason = "" if agrees else "outvoted"
            yield Mark(name=member.name, outcome="accepted" if agrees else "rejected", reason=reason)
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


def _enough(plan: Plan, weights: Sequence[float]) -> Callable[[Sequence[Result | None]], bool]:
    """A medoid needs every answer; a vote is over when the lead cannot be beaten."""

    def enough(results: Sequence[Result | None]) -> bool:
        if plan.settings.vote == "medoid":
            return False
        return voting.unbeatable([_form(result) for result in results], weights, [result is None for result in results])

    return enough


def _form(result: Result | None) -> str | None:
    if result is None or result.error is not None or not result.choices:
        return None
    return normal_choice(result.choices[0])


def _nobody(results: Sequence[Result | None]) -> CatenaError:
    """Why nobody answered: the first member's reason, its kind kept."""
    errors = [result.error for result in results if result is not None and result.error is not None]
    return errors[0] if errors else Unavailable("no member of the consensus gave an answer", code="no_answers")


def _vote(plan: Plan, results: Sequence[Result | None], weights: Sequence[float]) -> int | None:
    """The place of the winner; None when a judge has to say."""
    forms = [_form(result) for result in results]
    answered = [place for place, form in enumerate(forms) if form is not None]
    if plan.settings.vote == "medoid":
        texts, heard = [forms[place] or "" for place in answered], [weights[place] for place in answered]
        return answered[voting.medoid(texts, heard)]
    votes = voting.tally(forms, weights)
    divided = votes.tied or (plan.settings.vote == "judge" and votes.share <= 0.5)
    if divided and plan.of(Role.JUDGE):
        return None
    return _surest(results, forms, votes)


def _surest(results: Sequence[Result | None], forms: voting.Forms, votes: voting.Tally) -> int:
    """The place of the winner; of equals the one whose model was surest of it, else the first."""
    most = votes.weights[votes.winner]

    def sureness(place: int) -> tuple[bool, float, int]:
        form, result = forms[place], results[place]
        leads = form is not None and votes.weights[form] >= most
        return leads, (result.confidence or 0.0) if result is not None else 0.0, -place

    return max(range(len(forms)), key=sureness)


def _judged(
    plan: Plan, request: ChatRequest, results: Sequence[Result | None], weights: Sequence[float]
) -> Generator[Call, Result, int]:
    """Ask the judge for a number; one that is silent or wild leaves it to the plain vote."""
    judge = plan.of(Role.JUDGE)[0]
    forms = [_form(result) for result in results]
    places = [forms.index(form) for form in dict.fromkeys(form for form in forms if form is not None)]
    listed = "\n".join(f"{number}. {_words(results[place])}" for number, place in enumerate(places, 1))
    asked = ChatRequest(
        messages=(
            Message(role="system", content=judge.instruction or JUDGE),
            Message(role="user", content=f"{question(request)}\n\n{listed}"),
        ),
        sampling=plain(request).sampling,
    )
    verdict = yield Call(stage=judge, request=asked)
    said = re.search(r"\d+", verdict.text) if verdict.error is None else None
    number = int(said[0]) if said and len(said[0]) < 4 else 0
    if 1 <= number <= len(places):
        return places[number - 1]
    return _surest(results, forms, voting.tally(forms, weights))


def _words(result: Result | None) -> str:
    return result.text if result is not None else ""
