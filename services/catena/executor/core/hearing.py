"""What has come of one copy of a call so far, and what its route learns from how it ends."""

from dataclasses import dataclass, field, replace

from catena.executor.core.breaker import Permit
from catena.executor.core.chat import Delta, first_call
from catena.executor.core.ports import Ended, Piece
from catena.executor.core.routes import Route
from catena.executor.core.seams import Seam
from catena.kit.errors import CatenaError


@dataclass(slots=True, kw_only=True)
class Heard:
    """Times are of the world's monotonic clock; `asked_s` 0: the provider was never asked; `first_s` 0: no word came.

    `seam` joins the words to those of an answer that broke off. `leads`: of several copies, this is the answer.
    `alive`: it has thought or spoken. `error` is what the provider failed with. `one_call`: of the tools that it asks
    for all but the first are kept from the client, as not every model can be told.
    """

    started_s: float
    seam: Seam | None = None
    one_call: bool = False
    asked_s: float = 0.0
    first_s: float = 0.0
    deltas: list[Delta] = field(default_factory=list)
    ended: Ended | None = None
    alive: bool = False
    spoke: bool = False
    leads: bool = False
    streamed: bool = False
    error: CatenaError | None = None
    _held: list[Delta] = field(default_factory=list)
    _route: Route | None = None
    _permit: Permit | None = None

    @property
    def chars(self) -> int:
        """Characters written so far, arguments of tool calls included."""
        calls = sum(len(call.arguments) for delta in self.deltas for call in delta.tool_calls)
        return calls + sum(len(delta.text) for delta in self.deltas)

    def admitted(self, route: Route, permit: Permit) -> None:
        """The route has given leave."""
        self._route, self._permit = route, permit

    def take(self, piece: Piece, now_s: float) -> list[Delta]:
        """Keep a piece; what of it goes on to the client.

        Openings without a word are held back until one comes: until then the call may be made anew.
        """
        if piece.ended is not None:
            self.ended = piece.ended
        if not self.spoke and any(map(_says, piece.deltas)):
            self.spoke, self.first_s = True, now_s
        if not self.alive and (self.spoke or piece.thinking):
            self.alive = True
            if self._route is not None:
                self._route.hedges.heard(now_s - self.asked_s)
        fresh = [self.seam.join(delta) if self.seam else delta for delta in piece.deltas]
        self.deltas.extend(fresh)
        if self.one_call:
            fresh = [replace(delta, tool_calls=first_call(delta.tool_calls)) for delta in fresh]
        bare = self.seam is not None or self.one_call
        self._held.extend(delta for delta in fresh if not bare or _says(delta) or delta.finish_reason)
        return self.release() if self.spoke else []

    def release(self) -> list[Delta]:
        """What was held back."""
        free, self._held = self._held, []
        return free

    def lost(self, now_s: float) -> None:
        """Another copy was faster; that this one took at least so long counts as well."""
        if self._route is not None and self.asked_s and not self.alive:
            self._route.hedges.heard(now_s - self.asked_s)
        self.settle(self.error, now_s)

    def settle(self, error: CatenaError | None, now_s: float) -> None:
        """It has ended, well or with an error; one that was never asked or was given up tells nothing of the model."""
        if self._route is None or self._permit is None:
            return
        route, permit, self._permit = self._route, self._permit, None
        if not self.asked_s or (error is None and self.ended is None):
            route.breaker.settle(permit, "untold", now_s)
        else:
            route.settle(permit, error, now_s - self.asked_s, now_s)


def _says(delta: Delta) -> bool:
    return bool(delta.text or delta.tool_calls or delta.logprobs)
