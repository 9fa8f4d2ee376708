"""Keys and values of texts read before, kept in blocks of tokens and found again by what they are.

A block's name is a digest of everything that its content depends on: the salt (whose it is, and which weights read it),
every token before it, and its own. So neither other weights nor another tenant can meet it, and equal beginnings share
their blocks. One cache belongs to one base in memory.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

BLOCK = 32
"""Tokens of a block: what a hit is rounded down to."""


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


class Rows(Protocol):
    """Rows whose blocks can be kept without a copy."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token takes."""

    def take(self, slot: int, number: int) -> int:
        """The row's block of that number, to be released once."""

    def put(self, slot: int, number: int, block: int) -> None:
        """Let a row have a block that was taken."""

    def release(self, block: int) -> None:
        """It is needed no more."""


class PrefixCache:
    """Blocks within a budget of bytes, the least recently used dropped first. `hits` and `looked` count tokens."""

    def __init__(self, budget: int) -> None:
        """Start empty; a budget of 0 keeps nothing."""
        self.hits = self.looked = self.bytes = 0
        self._budget = budget
        self._blocks: OrderedDict[bytes, int] = OrderedDict()

    def fill(self, kv: Rows, slot: int, salts: Sequence[str], tokens: Sequence[int], names: list[bytes]) -> int:
        """Put into `slot` what is known of the beginning of `tokens`; how many tokens that are.

        `salts` are those of each block; `names` grows by the blocks' names as they are needed, for texts only grow. The
        last token is never filled: its logits are needed.
        """
        self.looked += len(tokens)
        filled = 0
        for name in _named(salts, tokens[: len(tokens) - 1], names):
            block = self._blocks.get(name)
            if block is None:
                break
            self._blocks.move_to_end(name)
            kv.put(slot, filled // BLOCK, block)
            filled += BLOCK
        self.hits += filled
        return filled

    def keep(self, kv: Rows, slot: int, salts: Sequence[str], tokens: Sequence[int], names: list[bytes]) -> None:
        """Remember the whole blocks of `tokens`, which `slot` holds; the rest as for `fill`."""
        if not self._budget:
            return
        for number, name in enumerate(_named(salts, tokens, names)):
            if name in self._blocks:
                self._blocks.move_to_end(name)
                continue
            self._blocks[name] = kv.take(slot, number)
            self.bytes += BLOCK * kv.bytes_per_token
        while self.bytes > self._budget:
            kv.release(self._blocks.popitem(last=False)[1])
            self.bytes -= BLOCK * kv.bytes_per_token


def _named(salts: Sequence[str], tokens: Sequence[int], names: list[bytes]) -> Iterator[bytes]:
    """The name of each whole block, each made from the one before, once."""
    for number in range(len(tokens) // BLOCK):
        if number == len(names):
            block = ",".join(map(str, tokens[number * BLOCK : (number + 1) * BLOCK]))
            text = f"{salts[min(number, len(salts) - 1)]}|{block}"
            names.append(blake2b((names[-1] if names else b"") + text.encode(), digest_size=20).digest())
        yield names[number]
