"""Rows of a batch: an answer that is being written, and a draft that runs ahead of one on another base."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from catena.adapters.drivers.engine.answer import Answer, Generation, Tops
from catena.adapters.drivers.engine.lookup import Lookup
from catena.adapters.drivers.engine.lora import Adapter
from catena.adapters.drivers.engine.prefix import BLOCK
from catena.adapters.drivers.engine.sampling import Draw
from catena.kit.errors import Invalid

if TYPE_CHECKING:
    from catena.adapters.drivers.engine.grammar import Grammar


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """An answer. `tokens` is prompt and answer; the first `cached` of them have keys and values in slot `slot`.

    `limit` is the most tokens it may come to. `grammar` None: free text. `twin` is the row of the same prompt whose
    keys and values it may copy. The adapter acts from token `acts` on; whoever asks for the same `salt` may share what
    was read; `blocks` are the names that the prefix cache gave its beginning so far.
    """

    generation: Generation
    answer: Answer
    tokens: list[int]
    prompt: int
    limit: int
    adapter: Adapter | None
    draw: Draw
    grammar: "Grammar | None" = None
    salt: str = ""
    acts: int = 0
    twin: "Row | None" = None
    draft: "Draft | Lookup | None" = None
    slot: int = -1
    cached: int = 0
    blocks: list[bytes] = field(default_factory=list)

    @property
    def proposal(self) -> Sequence[int]:
        """Drafted tokens to be verified now."""
        draft = self.draft
        return draft.proposal if draft is not None and self._drafting(draft) and draft.complete else ()

    def pending(self) -> int:
        """Tokens to feed now; 0 while it waits for its draft or its twin."""
        draft = self.draft
        if draft is not None and self._drafting(draft):
            return len(self.tokens) + len(draft.proposal) - self.cached if draft.complete else 0
        if self.twin is not None:
            return 0
        return len(self.tokens) - self.cached

    def feed(self, count: int) -> list[int]:
        """The next `count` tokens."""
        begin, have = self.cached, len(self.tokens)
        if begin + count <= have:
            return self.tokens[begin : begin + count]
        return [*self.tokens[begin:], *self.proposal[: begin + count - have]]

    def weights(self, count: int) -> list[Adapter | None]:
        """The adapter of each of the next `count` tokens."""
        return _acting(self.adapter, self.acts - self.cached, count)

    def salts(self) -> list[str]:
        """What each block depends on beside the tokens; blocks before the adapter acts are the base's."""
        own = f"{self.salt}|{self.adapter.key if self.adapter is not None else ''}"
        return [f"{self.salt}|"] * (self.acts // BLOCK) + [f"{own}|{self.acts}" if self.acts else own]

    def wants(self) -> int:
        """Positions at the end of what is fed whose logits are needed, once everything pending is fed."""
        return 1 + len(self.proposal)

    def _drafting(self, draft: "Draft | Lookup") -> bool:
        # A draft that found no slot yet must not hold its target up: two bases could wait for each other.
        return draft.slot >= 0 and len(self.tokens) > self.prompt and draft.room() > 0

    def take(self, token: int, logprob: float, tops: Tops) -> bool:
        """Append a drawn token; whether the answer goes on."""
        if self.grammar is not None:
            self.grammar.take(token)
            if self.grammar.error:
                self.generation.fail(Invalid(self.grammar.error, code="constraint_failed"))
                self.answer.close("stop")
                return False
        self.tokens.append(token)
        if self.draw.penalised:
            self.draw.counts[token] = self.draw.counts.get(token, 0) + 1
        self.answer.take(token, logprob, tops)
        if not self.answer.finish and self.grammar is not None and self.grammar.complete:
            self.answer.close("stop")
        if not self.answer.finish and len(self.tokens) >= self.limit:
            self.answer.close("length")
        return not self.answer.finish

    def take_forced(self) -> bool:
        """Append what the grammar leaves no choice about; whether the answer goes on.

        Certain within the grammar, it costs neither a draw nor a forward pass of its own. To be called when all drawn
        tokens are taken and `cached` is cut back to them.
        """
        forced = self.grammar.forced() if self.grammar is not None else ()
        return all(self.take(token, 0.0, ()) for token in forced)


@dataclass(slots=True, eq=False, kw_only=True)
class Draft:
    """A row on the draft's base that proposes up to `most` tokens after those of `target`.

    `queued` is set once it was given to its batch. `drafted` holds the distributions that the proposal was drawn
    from, unless it is greedy.
    """

    target: Row
    most: int
    limit: int
    ends: frozenset[int]
    adapter: Adapter | None
    draw: Draw
    queued: bool = False
    proposal: list[int] = field(default_factory=list)
    drafted: list[Tensor] = field(default_factory=list)
    slot: int = -1
    cached: int = 0
    blocks: list[bytes] = field(default_factory=list)

    def room(self) -> int:
        """Tokens worth proposing: the target must have room for them and one of its own."""
        have = len(self.target.tokens)
        return min(self.most, self.target.limit - have - 1, self.limit - have)

    @property
    def complete(self) -> bool:
        """Whether the proposal can be verified."""
        proposal = self.proposal
        return len(proposal) >= max(self.room(), 1) or (bool(proposal) and proposal[-1] in self.ends)

    def pending(self) -> int:
        """Tokens to feed now; 0 while the target has to answer first."""
        if self.room() <= 0 or self.complete:
            return 0
        return len(self.target.tokens) + len(self.proposal) - self.cached

    def feed(self, count: int) -> list[int]:
        """The next `count` tokens."""
        begin, tokens = self.cached, self.target.tokens
        if begin + count <= len(tokens):
            return tokens[begin : begin + count]
        return [*tokens, *self.proposal][begin : begin + count]

    @property
    def prompt(self) -> int:
        """Tokens of the target's prompt."""
        return self.target.prompt

    def weights(self, count: int) -> list[Adapter | None]:
        """The adapter of each of the next `count` tokens."""
        return [self.adapter] * count

    def salts(self) -> list[str]:
        """What keys and values depend on beside the tokens."""
        return [f"{self.target.salt}|{self.adapter.key if self.adapter is not None else ''}"]

    def wants(self) -> int:
        """Only the last position matters, and only once the target has begun to answer."""
        return 1 if len(self.target.tokens) > self.target.prompt else 0

    def verified(self, before: int, accepted: int) -> None:
        """The target kept `accepted` of the proposal, which began at its token `before`; forget the rest."""
        self.cached = min(self.cached, before + accepted)
        self.forget()

    def forget(self) -> None:
        """Drop the proposal."""
        self.proposal.clear()
        self.drafted.clear()


def _acting(adapter: Adapter | None, before: int, count: int) -> list[Adapter | None]:
    """`count` tokens' adapters, none for the first `before`."""
    idle = min(max(before, 0), count)
    return [None] * idle + [adapter] * (count - idle)
