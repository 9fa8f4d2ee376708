"""What a provider's HTTP error means to us."""

from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

import msgspec

from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Missing, Unavailable

MOST_CHARS = 500


def refusal(status: int, headers: Mapping[str, str], body: bytes, *, server: str, now_s: float) -> CatenaError:
    """The error kind of an answer that is not 200. A key that is refused is our fault, not the caller's."""
    message, code = told(body)
    says = f"{server} answered {status}: {message}"
    wait_s = retry_after_s(headers, now_s)
    match status:
        case 400 if "api key not valid" in message.casefold():
            # Gemini's way to refuse a key.
            return Unavailable(f"{says}; check api_key_env of the model", code="provider_key_refused")
        case 400 | 413 | 422:
            return Invalid(says, code=_code_400(code, message))
        case 401 | 403:
            return Unavailable(f"{says}; check api_key_env of the model", code="provider_key_refused")
        case 404:
            return Missing(f"{says}; check upstream_name and base_url", code="unknown_model")
        case 408:
            return Late(says, code="provider_timeout")
        case 429:
            return Exhausted(says, code="provider_busy", retry_after_s=wait_s)
        case _ if status >= 500:
            return Unavailable(says, code="provider_error", retry_after_s=wait_s)
    return Invalid(says, code="provider_refused")


def told(body: bytes) -> tuple[str, str]:
    """Message and code of an error; the start of the body where it is not JSON.

    OpenAI and Gemini say `{error: {message, code}}`, Anthropic `{error: {message, type}}`, TGI `{error, error_type}`.
    """
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:MOST_CHARS].decode(errors="replace"), ""
    error = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or ""
        code = next((error[name] for name in ("code", "type", "status") if isinstance(error.get(name), str)), "")
        return str(message)[:MOST_CHARS], code
    kind = found.get("error_type") if isinstance(found, dict) else ""
    return str(error)[:MOST_CHARS], str(kind or "")


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float:
    """Seconds that the server asks us to wait, given as seconds or as a date; 0: it does not say."""
    asked = headers.get("retry-after-ms") or headers.get("Retry-After-Ms")
    if asked and asked.replace(".", "", 1).isdigit():
        return float(asked) / 1000
    asked = headers.get("Retry-After") or headers.get("retry-after") or ""
    if asked.replace(".", "", 1).isdigit():
        return float(asked)
    try:
        until: datetime = parsedate_to_datetime(asked)
    except ValueError:
        return 0.0
    return max(0.0, until.timestamp() - now_s)


TOO_LONG = (
    "context_length",
    "context length",
    "maximum context",
    "prompt is too long",
    "exceeds the maximum number of tokens",
    "tokens + `max_new_tokens` must be",
    "`inputs` must have less than",
)
"""OpenAI and vLLM, Anthropic, Gemini, TGI."""
FILTERED = ("content_filter", "content filter", "content_policy", "content policy")


def _code_400(code: str, message: str) -> str:
    text = f"{code} {message}".casefold()
    if any(words in text for words in TOO_LONG):
        return "context_length_exceeded"
    return "content_filter" if any(words in text for words in FILTERED) else "provider_refused"
