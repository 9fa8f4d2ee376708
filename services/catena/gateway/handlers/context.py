"""Who asks, for what, within which bounds: read from headers `X-Catena-*` and OpenAI `metadata` keys alike.

A header wins over the metadata key of the same name (`X-Catena-Max-Cost` over `max_cost`).
"""

from collections.abc import Mapping

from catena.api.types.v1 import types_pb2
from catena.gateway.core.choice import cap, objective
from catena.kit.errors import Invalid

TEXTS = ("agent_type", "agent_id", "user_id", "workflow_type", "task", "feature_vector", "memory_collection")
TRUE, FALSE = ("1", "true", "yes"), ("", "0", "false", "no")
MAX_METADATA = 32


def read_context(
    headers: Mapping[str, str], metadata: Mapping[str, str], user: str | None = None
) -> types_pb2.RequestContext:
    """The request's context; `user` is OpenAI's field of that name.

    Raises Invalid (`bad_cap`, `unknown_objective`, `bad_context`) that names the field.
    """
    if len(metadata) > MAX_METADATA:
        raise Invalid(f"{len(metadata)} metadata keys; at most {MAX_METADATA} are taken", code="bad_context")

    # Gone through once: each look into them goes through all of them. Of several with one name the first counts.
    own = [(name, value) for name, value in headers.items() if name.startswith("x-catena-")]
    named = {name[9:].replace("-", "_"): value for name, value in reversed(own)}

    def told(name: str) -> str:
        return named.get(name, metadata.get(name, ""))

    known = {*TEXTS, "critical", "objective", "max_latency", "max_latency_ms", "max_cost", "max_cost_usd"}
    context = types_pb2.RequestContext(
        critical=flag("critical", told("critical")),
        objective=objective(told("objective").strip().lower()),
        max_latency_ms=cap("max latency (ms)", number("max_latency", told("max_latency_ms") or told("max_latency"))),
        max_cost_usd=cap("max cost (USD)", number("max_cost", told("max_cost_usd") or told("max_cost"))),
        metadata={name: value for name, value in metadata.items() if name not in known},
        **{name: told(name) for name in TEXTS},
    )
    context.user_id = context.user_id or user or ""
    return context


def number(name: str, text: str) -> float | None:
    """A number, or None where nothing is said."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"{name} {text!r} is no number", code="bad_cap") from None


def flag(name: str, text: str) -> bool:
    """Whether `text` says yes."""
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise Invalid(f"{name} {text!r} is neither true nor false", code="bad_context")
    return word in TRUE
