"""What the router holds in memory of one tenant: a window of its executions and what was made of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from catena.router.core.board import Board
from catena.router.core.catalogue import Catalogue, catalogue_of
from catena.router.core.domains import Head
from catena.router.core.observation import Observation
from catena.router.core.ports import Noted


@dataclass(slots=True)
class Book:
    """One tenant's page. `board` None: nothing was learned yet; `stale`: something new is to be learned.

    `aliases`: names of domains that were merged into others.
    """

    window: int
    noted: dict[str, Noted] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=lambda: catalogue_of(()))
    catalogue_until_s: float = -math.inf
    board: Board | None = None
    stale: bool = True
    head: Head | None = None
    head_of: tuple[tuple[str, str, float], ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def note(self, noted: Noted, frozen_at: int | None) -> None:
        """Take in a stored observation; of what came after a freeze, nothing."""
        if frozen_at is not None:
            if noted.born > frozen_at:
                return
            if noted.judged_at > frozen_at:
                known = self.noted.get(noted.observation.execution_id)
                if known is not None:
                    return
                noted = replace(noted, observation=replace(noted.observation, score=None))
        self.noted[noted.observation.execution_id] = noted
        self.stale = True
        if len(self.noted) > self.window + self.window // 8:
            kept = sorted(self.noted.values(), key=lambda n: n.born)[-self.window :]
            self.noted = {n.observation.execution_id: n for n in kept}

    def observations(self) -> list[Observation]:
        """The window, in the order of arrival; of a domain that was merged, as of the one that it became."""
        told = [n.observation for n in sorted(self.noted.values(), key=lambda n: n.born)[-self.window :]]
        return [replace(o, domain=self.aliases[o.domain]) if o.domain in self.aliases else o for o in told]

    def judged_since(self, revision: int) -> int:
        """Executions of the window that were judged after this revision."""
        return sum(n.judged_at > revision for n in self.noted.values())

    def take_catalogue(self, catalogue: Catalogue) -> None:
        """Reckon with other models or prices from now on, and learn anew when there is time."""
        self.catalogue = catalogue
        if self.board is not None:
            self.board = self.board.with_catalogue(catalogue)
        self.stale = True
