"""Who judges answers without being asked: scores in 0 to 1 with their source, else none."""

from collections.abc import Mapping, Sequence

from catena.executor.core.actions import Decision
from catena.executor.core.chat import ChatRequest, Choice, Score
from catena.executor.core.checks import fits, is_refusal
from catena.executor.core.normal import normal
from catena.executor.core.ports import Verifier


def schema(request: ChatRequest, choices: Sequence[Choice]) -> Score | None:
    """1 or 0: whether the answer fits the schema or the choices that were asked for."""
    if not choices or choices[0].message.tool_calls:
        return None
    fitting = fits(request, choices[0].text)
    return None if fitting is None else Score(value=float(fitting), source="schema")


def refusal(request: ChatRequest, choices: Sequence[Choice]) -> Score | None:
    """0 for an answer that declines."""
    declined = bool(choices) and not choices[0].message.tool_calls and is_refusal(choices[0].text)
    return Score(value=0.0, source="refusal") if declined else None


def exact(answer: str, expected: str) -> Score:
    """1 or 0: whether the answer says what a pipeline expected."""
    return Score(value=float(normal(answer) == normal(expected)), source="exact")


VERIFIERS: Mapping[str, Verifier] = {"schema": schema, "refusal": refusal}


def judge(
    request: ChatRequest, decision: Decision, verifiers: Mapping[str, Verifier], names: Sequence[str]
) -> tuple[Score, ...]:
    """What the named verifiers say, and how far the models that were asked agreed on this answer."""
    scores = [score for name in names if (score := verifiers[name](request, decision.choices)) is not None]
    if decision.agreement is not None:
        scores.append(Score(value=decision.agreement, source="agreement"))
    return tuple(scores)
