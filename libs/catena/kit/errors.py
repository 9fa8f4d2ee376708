"""The kinds of error that every room raises and that callers can act upon.

Imports nothing, so that a room's core may use it; `kit.serve` maps each kind to gRPC and the gateway to HTTP.
A message says what is wrong, the value, and the cure.
"""


class CatenaError(Exception):
    """Root of all expected failures; `code` is stable and machine-readable, for example `unknown_model`."""

    default_code = "internal"

    def __init__(self, message: str, *, code: str = "", retry_after_s: float = 0.0) -> None:
        """Keep a `message` for people and a `code` for programs; `retry_after_s` 0 means that waiting gives no cure."""
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s


class Invalid(CatenaError):
    """The request is wrong in itself and will be wrong again."""

    default_code = "invalid"


class Missing(CatenaError):
    """What is named does not exist."""

    default_code = "missing"


class Conflict(CatenaError):
    """The state has moved on (a compare-and-set lost, a name is taken)."""

    default_code = "conflict"


class Exhausted(CatenaError):
    """A budget, rate, queue or memory limit is used up for now."""

    default_code = "exhausted"


class Unavailable(CatenaError):
    """A part that is needed does not answer; the same call may succeed later."""

    default_code = "unavailable"


class Late(CatenaError):
    """The deadline passed."""

    default_code = "late"


class Denied(CatenaError):
    """The caller is unknown or may not do this."""

    default_code = "denied"
