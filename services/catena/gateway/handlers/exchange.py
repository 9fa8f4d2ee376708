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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads bodies of at most `max_bytes` (the setting `gateway.max_body_bytes`)."""

    max_bytes: int

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The body as `kind`. Raises Invalid (`body_too_large`, `bad_json`, `bad_request`, `too_deep`)."""
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
    """JSON as `kind`. Raises Invalid that quotes what does not fit, never the body."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"the request does not fit: {error}", code="bad_request") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not JSON: {error}", code="bad_json") from None
    except RecursionError:
        raise Invalid("the body is nested too deeply; flatten it", code="too_deep") from None


def json_response(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`data` as JSON."""
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def error_response(error: CatenaError) -> Response:
    """An OpenAI-shaped error, with Retry-After where waiting helps."""
    headers = {"x-catena-trace-id": trace_id()}
    if error.retry_after_s:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return json_response(openai.error_json(error), status=openai.error_status(error), headers=headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors (unknown path, wrong method) in the same shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        told: CatenaError = Invalid(f"{request.method} is not served at {request.url.path}", code="method_not_allowed")
    elif error.status_code == 404:
        told = Missing(f"nothing is served at {request.url.path}; see the README", code="unknown_path")
    else:
        told = Invalid(str(error.detail), code="bad_request")
    response = error_response(told)
    response.status_code = error.status_code
    return response
