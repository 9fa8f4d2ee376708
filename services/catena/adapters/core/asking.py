"""What may be asked: the bounds of a question, checked before anything is loaded for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from catena.adapters.core.work import Done, Message, Sampling
from catena.kit.errors import Invalid

MAX_ANSWERS = 16
MAX_TOP = 20
MAX_STOPS = 16
MAX_DRAFT_TOKENS = 16
DRAFT_TOKENS = 5
DEFAULTS = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked. `draft_model` empty: no speculation; `draft_tokens` 0: the default."""

    model: str
    messages: Sequence[Message] = ()
    prompt: str = ""
    sampling: Sampling = DEFAULTS
    draft_model: str = ""
    draft_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How it ended, and `base@adapter:version#digest` that answered."""

    done: Done
    model: str


def check(question: Question) -> None:
    """Raises Invalid when a question is out of bounds."""
    if bool(question.messages) == bool(question.prompt):
        raise Invalid("give either messages or a prompt", code="bad_request")
    if question.draft_tokens > MAX_DRAFT_TOKENS:
        raise Invalid(f"draft_tokens {question.draft_tokens} > {MAX_DRAFT_TOKENS}; draft fewer at a time")
    sampling = question.sampling
    if sampling.temperature is not None:
        _within("temperature", sampling.temperature, 0.0, 2.0)
    _within("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _within("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _within("n", sampling.n, 1, MAX_ANSWERS)
    _within("top_logprobs", sampling.top, 0, MAX_TOP)
    _within("stop texts", len(sampling.stop), 0, MAX_STOPS)
    _within("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p == 0.0:
        raise Invalid("top_p 0 leaves no token; use temperature 0 for the likeliest", code="bad_sampling")
    if any(not stop for stop in sampling.stop):
        raise Invalid("a stop text is empty; leave it out", code="bad_sampling")


def _within(what: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise Invalid(f"{what} {value:g} is not from {low:g} to {high:g}", code="bad_sampling")
