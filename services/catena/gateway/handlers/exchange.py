"""JSON in and out for every route: one limit on bodies, one way to read them, one shape for answers and errors."""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from catena.gateway.handlers import openai
from catena.kit.errors import CatenaError, Invalid, Missing
from catena.kit.telemetry import trace_id

Body = TypeVar("Body")
MOST_DEPTH = 32
INFERENCE = "/v2/"
"""Where errors have the shape of the Open Inference Protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads bodies of at most `max_bytes` (the setting `gateway.max_body_bytes`)."""

    max_bytes: int

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The body as `kind`. Raises Invalid (`body_too_large` and those of `decode`)."""
        return decode(await self.raw(request), kind)

    async def raw(self, request: Request) -> bytes:
        """The whole body. Raises Invalid (`body_too_large`) as soon as it is known to be too large."""
        limit = self.max_bytes
        too_large = Invalid(f"the body is larger than {limit} bytes (gateway.max_body_bytes)", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise too_large
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise too_large
            pieces.append(piece)
        return b"".join(pieces)


def decode(raw: bytes, kind: type[Body]) -> Body:
    """JSON as `kind`, within what the rooms behind can carry. Raises Invalid that quotes what does not fit, no more."""
    try:
        plain = msgspec.json.decode(raw)
    except msgspec.ValidationError as error:
        raise Invalid(f"the request does not fit: {error}", code="bad_request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}", code="bad_json") from None
    except RecursionError:
        raise too_deep() from None
    check_plain(plain)
    try:
        return msgspec.convert(plain, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise Invalid(f"the request does not fit: {error}", code="bad_request") from None


def check_plain(data: Any) -> None:
    """Raise Invalid (`too_deep`, `bad_value`) for JSON that no room could be sent.

    A protobuf message of more than 100 levels is not parsed, and a JSON object within one takes three of them. Numbers
    of more than 64 bits have no exact form there, and PostgreSQL keeps no NUL.
    """
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH + 1:
            raise too_deep()
        level = [inner for item in level for inner in _inside(item)]


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, list):
        return item
    if isinstance(item, str) and "\0" in item:
        raise Invalid(f"{item[:40]!r} holds a NUL character; send text, not binary", code="bad_value")
    if type(item) is int and not -(2**63) <= item < 2**64:
        raise Invalid(f"the number {str(item)[:40]} needs more than 64 bits; send it as text", code="bad_value")
    return []


def too_deep() -> Invalid:
    """The refusal of a body that no message could hold."""
    return Invalid(f"the body is nested more than {MOST_DEPTH} deep; flatten it", code="too_deep")


def json_response(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`data` as JSON."""
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def error_response(error: CatenaError, *, plain: bool = False) -> Response:
    """An OpenAI-shaped error, with Retry-After where waiting helps; `plain`: its text alone, as KServe has it."""
    headers = {"x-catena-trace-id": trace_id()}
    if error.retry_after_s:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    told = {"error": error.message} if plain else openai.error_json(error)
    return json_response(told, status=openai.error_status(error), headers=headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors (unknown path, wrong method) in the same shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        told: CatenaError = Invalid(f"{request.method} is not served at {request.url.path}", code="method_not_allowed")
    elif error.status_code == 404:
        told = Missing(f"nothing is served at {request.url.path}; see the README", code="unknown_path")
    else:
        told = Invalid(str(error.detail), code="bad_request")
    response = error_response(told, plain=request.url.path.startswith(INFERENCE))
    response.status_code = error.status_code
    # 405 comes with `allow`.
    response.headers.update(error.headers or {})
    return response
