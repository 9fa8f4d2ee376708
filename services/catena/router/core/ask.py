"""The request as the router sees it, and which bounds it sets. Refuses what cannot be meant."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from catena.kit.errors import Invalid
from catena.plan.model import Shape

OBJECTIVES = ("cost", "latency", "quality", "balanced")
AUTO = "auto"

_TASK = re.compile(r"[^a-z0-9]+")
_HARD = re.compile(
    r"\b(prove|explain|analy[sz]e|compare|design|refactor|debug|derive|plan|implement|essay|argue|evaluate|optimi[sz]e"
    r"|architecture|step by step|why|trade-?offs?)\b",
    re.IGNORECASE,
)
_LONG_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Who asks what. `text` is the last user turn, `chars` the length of all that is sent; caps of 0 bind nothing.

    `max_tokens` 0: the answer may be of any length. `who` makes experiments sticky: user, agent, else the text.
    `structured`: the answer has to keep a schema; `tools`: functions may be called.
    """

    text: str
    chars: int
    turns: int = 1
    structured: bool = False
    tools: bool = False
    model: str = AUTO
    shape: Shape | None = None
    objective: str = ""
    task: str = ""
    critical: bool = False
    max_latency_ms: float = 0.0
    max_cost_usd: float = 0.0
    max_tokens: int = 0
    collection: str = ""
    who: str = ""


def check(ask: Ask) -> Ask:
    """The same request. Raises Invalid for an unknown objective or a cap that is negative or not a number."""
    if ask.objective and ask.objective not in OBJECTIVES:
        raise Invalid(
            f"unknown objective {ask.objective!r}; use one of {', '.join(OBJECTIVES)}", code="unknown_objective"
        )
    for name, cap in (("max_latency_ms", ask.max_latency_ms), ("max_cost_usd", ask.max_cost_usd)):
        if not math.isfinite(cap) or cap < 0.0:
            raise Invalid(f"{name} is {cap}; send a positive number, or 0 for no cap", code="bad_cap")
    return ask


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of cost, latency and quality that add up to 1. Raises Invalid when one is negative or not a number."""
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0.0:
            raise Invalid(f"weight of {name} is {weight}; set it to 0 or more (router.weights)", code="bad_weights")
    total = sum(weights.values())
    if total <= 0.0:
        raise Invalid("every weight is 0; set at least one (router.weights)", code="bad_weights")
    return {name: weight / total for name, weight in weights.items()}


def check_budget(usd: float) -> float:
    """The same budget. Raises Invalid when it is negative or not a number."""
    if not math.isfinite(usd) or usd < 0.0:
        raise Invalid(f"router.budget_usd is {usd}; set a positive number, or 0 for no budget", code="bad_budget")
    return usd


def task_name(task: str) -> str:
    """A task as the name of a domain: lower-case letters, digits and hyphens; empty when nothing is left."""
    return _TASK.sub("-", task.strip().lower()).strip("-")[:64]


def is_complex(ask: Ask) -> bool:
    """Whether the request reads as more than a quick question; used until outcomes tell better."""
    signs = (
        ask.chars > _LONG_CHARS,
        len(_HARD.findall(ask.text)) > 0,
        "```" in ask.text,
        ask.text.count("?") > 2,
        ask.turns > 6,
    )
    return sum(signs) >= 1
