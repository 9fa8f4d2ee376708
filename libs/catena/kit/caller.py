"""Who asks and how long they will wait: carried from the server that took a call to every call made on its behalf.

Set by `kit.serve`, passed on by `kit.dial`; a room reads it in its handlers. Tasks started inside a call inherit both,
so work that outlives its call is started inside `unhurried()`.
"""

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from catena.kit.errors import Invalid

SHARED = "shared"
"""Whose the bases and shipped adapters are: everybody's."""
DEVELOPER = "default"
"""Whom the development key stands for."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant on whose behalf a call runs, and its role (`user` or `admin`).

    Raises Invalid when either is not 1 to 64 letters, digits, dots, hyphens or underscores.
    """

    tenant: str = SHARED
    role: str = "user"

    def __post_init__(self) -> None:
        """Refuse names that could not travel in headers and subjects."""
        for field, value in (("tenant", self.tenant), ("role", self.role)):
            if not _NAME.match(value):
                raise Invalid(f"{field} {value!r} should be 1 to 64 of A-Z a-z 0-9 . _ -", code=f"bad_{field}")


_NOBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("catena_caller", default=_NOBODY)
_due: ContextVar[float] = ContextVar("catena_due", default=math.inf)


def caller() -> Caller:
    """The caller of the running call; outside one, tenant `shared` in role `user`."""
    return _caller.get()


@contextmanager
def as_caller(who: Caller) -> Iterator[Caller]:
    """Make every call inside the block on behalf of `who`."""
    token = _caller.set(who)
    try:
        yield who
    finally:
        _caller.reset(token)


def deadline_s() -> float:
    """Seconds that remain of the running call: never negative, `inf` outside a call."""
    due = _due.get()
    return due if due == math.inf else max(0.0, due - time.monotonic())


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give the calls made inside the block at most `seconds` together; an earlier deadline stays in force."""
    token = _due.set(min(_due.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _due.reset(token)


@contextmanager
def unhurried() -> Iterator[None]:
    """Lift the deadline inside the block, for starting work that outlives the running call."""
    token = _due.set(math.inf)
    try:
        yield
    finally:
        _due.reset(token)


def enter(who: Caller, remaining_s: float) -> None:
    """Mark the running task as serving `who` for `remaining_s` more seconds; for `kit.serve`, once a call's task."""
    _caller.set(who)
    _due.set(time.monotonic() + remaining_s)
