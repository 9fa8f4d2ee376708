"""Is this answer good enough? The cascade's quality checks, each a plain function of request and answer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
import msgspec

from catena.executor.core.actions import Result
from catena.executor.core.chat import ChatRequest
from catena.kit.errors import Invalid
from catena.plan.model import Settings

REFUSALS = (
    "i can't",
    "i cannot",
    "i can not",
    "i'm sorry, but",
    "i am sorry, but",
    "i'm unable",
    "i am unable",
    "i'm not able to",
    "i am not able to",
    "i won't be able to",
    "as an ai",
    "as a language model",
    "i don't have the ability",
    "i must decline",
)
WITHIN_CHARS = 200
"""A refusal opens an answer; the same words further on may be a quotation."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why an answer is not good enough: the check, and a few words without text of the answer."""

    check: str
    reason: str


def doubt(request: ChatRequest, result: Result, settings: Settings) -> Doubt | None:
    """The first check that the answer fails, in order of cost; None: it may stand."""
    if result.error is not None:
        return Doubt("error", f"failed: {result.error.code}")
    if not result.choices:
        return Doubt("empty", "no answer")
    asks_tools = bool(result.choices[0].message.tool_calls)
    checks: Mapping[str, Callable[[], Doubt | None]] = {
        "truncation": lambda: _truncation(result),
        "refusal": lambda: None if asks_tools else _refusal(result.text, settings.refusals),
        "schema": lambda: _schema(request, result),
        "confidence": lambda: _confidence(result, settings.threshold),
    }
    if not asks_tools and len(result.text.strip()) < settings.min_chars:
        return Doubt("min_chars", f"{len(result.text.strip())} characters < {settings.min_chars}")
    return next((found for name in settings.checks if name in checks and (found := checks[name]())), None)


def told_early(request: ChatRequest, settings: Settings) -> bool:
    """Whether the first words of a free answer settle every check: the others have to see how it ends."""
    late = set(settings.checks) - {"refusal"}
    if not request.constrained and not request.tools:
        late.discard("schema")
    if settings.threshold <= 0.0:
        late.discard("confidence")
    return not late


def settled(begun: str, settings: Settings) -> bool:
    """Whether an answer that begins like this passes, `told_early` given, however it goes on."""
    said = begun.strip()
    if "refusal" not in settings.checks:
        return len(said) >= settings.min_chars
    return len(said) >= max(settings.min_chars, WITHIN_CHARS) and not is_refusal(said, settings.refusals)


def _truncation(result: Result) -> Doubt | None:
    if result.finish_reason not in ("stop", "tool_calls"):
        return Doubt("truncation", f"ended by {result.finish_reason or 'nothing'}")
    return Doubt("truncation", "an open code fence") if result.text.count("```") % 2 else None


def _refusal(text: str, extra: Sequence[str]) -> Doubt | None:
    return Doubt("refusal", "a refusal") if is_refusal(text, extra) else None


def is_refusal(text: str, phrases: Sequence[str] = ()) -> bool:
    """Whether `text` declines to answer, by `phrases` or, without any, by the built-in list."""
    head = text.strip()[:WITHIN_CHARS].replace("\u2019", "'").casefold()
    return any(phrase.casefold() in head for phrase in phrases or REFUSALS)


def _schema(request: ChatRequest, result: Result) -> Doubt | None:
    calls = result.choices[0].message.tool_calls
    if not calls:
        if request.tools and request.tool_choice not in ("", "auto", "none"):
            return Doubt("schema", "no tool asked for")
        return Doubt("schema", "does not look as asked") if fits(request, result.text) is False else None
    known = {tool.name: tool for tool in request.tools}
    for call in calls:
        if call.name not in known:
            return Doubt("schema", "asks for a tool that there is not")
        if not fits_schema(call.arguments or "{}", known[call.name].parameters or {}):
            return Doubt("schema", "arguments do not look as the tool wants them")
    return None


def fits(request: ChatRequest, text: str) -> bool | None:
    """Whether `text` satisfies the schema or is one of the choices; None when neither was asked for.

    A regex is left to who generated under it: dialects differ, and a stranger's pattern could take for ever here.
    """
    if request.choices:
        return text in request.choices
    return None if request.json_schema is None else fits_schema(text, request.json_schema)


def fits_schema(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether `text` is JSON that `schema` accepts. Raises Invalid (`bad_schema`) when the schema is none."""
    try:
        value = msgspec.json.decode(text.strip())
    except msgspec.DecodeError:
        return False
    return bool(_validator(msgspec.json.encode(schema, order="sorted")).is_valid(value))


@functools.lru_cache(maxsize=256)
def _validator(schema: bytes) -> Any:
    found = msgspec.json.decode(schema)
    kind = jsonschema.validators.validator_for(found, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(found)
    except jsonschema.SchemaError as error:
        raise Invalid(f"not a JSON schema: {error.message}", code="bad_schema") from error
    return kind(found)


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise Invalid (`bad_schema`) unless `schema` is a JSON schema."""
    _validator(msgspec.json.encode(schema, order="sorted"))


def _confidence(result: Result, threshold: float) -> Doubt | None:
    told = "" if result.confidence is None else below(result.confidence, threshold)
    return Doubt("confidence", f"confidence {told}") if told else None


def below(measured: float, threshold: float) -> str:
    """In words that `measured` misses the threshold; empty: it does not."""
    return "" if measured >= threshold else f"{measured:.3f} < {threshold:g}"
