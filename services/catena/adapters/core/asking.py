"""What may be asked: the bounds of a question, checked before anything is loaded for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from catena.adapters.core.tools import check_tools, demanded
from catena.adapters.core.work import Constraint, Done, Message, Sampling, Tool
from catena.kit.errors import Invalid

MAX_ANSWERS = 16
MAX_TOP = 20
MAX_STOPS = 16
MAX_BIASES = 1024
MAX_TOP_K = 1 << 20
MAX_CONSTRAINT_CHARS = 200_000
"""Enough for a schema of thousands of properties; one that is longer would hold up the others' prompts."""
MAX_DRAFT_TOKENS = 16
DRAFT_TOKENS = 5
DEFAULTS = Sampling()
Served = Literal["asked", "fallback", "auto", "auto-base"]
"""What was asked for; a declared stand-in; the best adapter for the task; the base, where no adapter is for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked. `draft_model` empty: no speculation; `draft_tokens` 0: the default.

    `tools` may be called as `tool_choice` says: `auto` (empty is that), `none`, `required`, or the one of this name;
    with `one_call` an answer calls one at most.
    `user` and `workflow`, empty if unknown, say whose habits to learn from; `task` what `base@auto` chooses for.
    """

    model: str
    messages: Sequence[Message] = ()
    prompt: str = ""
    sampling: Sampling = DEFAULTS
    draft_model: str = ""
    draft_tokens: int = 0
    constraint: Constraint | None = None
    tools: Sequence[Tool] = ()
    tool_choice: str = ""
    one_call: bool = False
    user: str = ""
    workflow: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How it ended, and `base@adapter:version#digest` that answered.

    `served` and `reason`: whether that is what was asked for, and why if not. `load_ms` went on making it resident.
    """

    done: Done
    model: str
    served: Served = "asked"
    reason: str = ""
    load_ms: float = 0.0


def check(question: Question) -> None:
    """Raises Invalid when a question is out of bounds."""
    if bool(question.messages) == bool(question.prompt):
        raise Invalid("give either messages or a prompt", code="bad_request")
    if question.draft_tokens > MAX_DRAFT_TOKENS:
        raise Invalid(f"draft_tokens {question.draft_tokens} > {MAX_DRAFT_TOKENS}; draft fewer at a time")
    _check_sampling(question.sampling)
    check_tools(question.tools, question.tool_choice)
    if question.tools and question.prompt:
        raise Invalid("tools need messages; a raw prompt has no place for them", code="bad_tools")
    if question.constraint is not None and demanded(question.tools, question.tool_choice) is not None:
        raise Invalid("an answer cannot be a call and be of another form; ask for one of them", code="bad_constraint")
    if question.constraint is not None:
        _check_constraint(question.constraint)
        if question.sampling.ignore_eos or question.sampling.min_tokens:
            raise Invalid(
                "what an answer must look like decides where it ends; ask without ignore_eos and min_tokens",
                code="bad_constraint",
            )


def _check_sampling(sampling: Sampling) -> None:
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
    _within("top_k", sampling.top_k, 0, MAX_TOP_K)
    _within("min_tokens", sampling.min_tokens, 0, sampling.max_tokens or math.inf)
    _within("min_p", sampling.min_p, 0.0, 1.0)
    # Written so that NaN, which compares with nothing, is refused too.
    if not 0.0 < sampling.repetition_penalty < math.inf:
        raise Invalid(
            f"repetition_penalty {sampling.repetition_penalty:g} is not above 0; use 1 for none", code="bad_sampling"
        )
    _within("number of logit_bias tokens", len(sampling.logit_bias), 0, MAX_BIASES)
    for token, bias in sampling.logit_bias:
        _within("logit_bias token", token, 0, math.inf)
        _within(f"logit_bias of token {token}", bias, -100.0, 100.0)


def _check_constraint(asked: Constraint) -> None:
    if [bool(asked.json_schema), bool(asked.regex), bool(asked.choices)].count(True) != 1:
        raise Invalid("constrain an answer by one of a JSON schema, a regex and choices", code="bad_constraint")
    chars = len(asked.json_schema) + len(asked.regex) + sum(map(len, asked.choices))
    if chars > MAX_CONSTRAINT_CHARS:
        raise Invalid(
            f"the constraint has {chars} characters > {MAX_CONSTRAINT_CHARS}; shorten it", code="bad_constraint"
        )
    if any(not choice for choice in asked.choices):
        raise Invalid("a choice is empty; leave it out", code="bad_constraint")


def _within(what: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise Invalid(f"{what} {value:g} is not from {low:g} to {high:g}", code="bad_sampling")
