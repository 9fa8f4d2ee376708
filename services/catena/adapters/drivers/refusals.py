"""What was refused a moment ago is refused again without reading it: whoever asks in a loop costs nobody the disk."""

from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Unavailable

REMEMBERED = 4096


class Refusals:
    """Failures by name, each for a while."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        """Remember each for `ttl_s` seconds."""
        self._clock = clock
        self._ttl_s = ttl_s
        self._known: dict[str, tuple[float, CatenaError]] = {}

    def check(self, name: str) -> None:
        """Raises what was remembered of a name."""
        until_s, error = self._known.get(name, (0.0, None))
        if error is not None and self._clock.monotonic() < until_s:
            # Anew, for one that is raised again and again gathers every trace.
            raise type(error)(error.message, code=error.code, retry_after_s=error.retry_after_s)

    def remember(self, name: str, error: CatenaError) -> None:
        """Keep a failure, unless it is one that waiting cures."""
        if isinstance(error, Unavailable):
            return
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[name] = (self._clock.monotonic() + self._ttl_s, error)

    def forget(self, name: str) -> None:
        """It may be well now."""
        self._known.pop(name, None)
