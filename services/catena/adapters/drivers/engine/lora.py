"""What an adapter is in memory: LoRA factors for the products of the base's forward pass.

A site is one of these products; q, k and v share one, and so do gate and up. Legend: I inputs, O outputs, R ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from catena.kit.errors import Invalid

SITE_OF = {"qkv": 0, "q": 0, "k": 0, "v": 0, "o": 1, "gate_up": 2, "gate": 2, "up": 2, "down": 3}

Where = tuple[int, int]
"""A layer, and a site within it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One adapted layer within its site, as its file has it: `scale` times B A, for outputs from `out` on."""

    a_RI: Tensor
    b_OR: Tensor
    out: int
    scale: float

    @property
    def part(self) -> tuple[int, int]:
        """The first of its outputs, and how many there are."""
        return self.out, self.b_OR.shape[0]


@dataclass(frozen=True, slots=True)
class Site:
    """What an adapter adds to one site.

    DoRA: outputs are then multiplied by `norm_O` and `shift_O` added, which undoes the scaling of the bias.
    """

    blocks: tuple[Block, ...]
    norm_O: Tensor | None = None
    shift_O: Tensor | None = None

    @property
    def inputs(self) -> int:
        """How many inputs its layers share."""
        return self.blocks[0].a_RI.shape[1]

    def ranks(self) -> dict[tuple[int, int], int]:
        """Ranks that act on each part of the outputs; a composition has several blocks for one."""
        ranks: dict[tuple[int, int], int] = {}
        for block in self.blocks:
            ranks[block.part] = ranks.get(block.part, 0) + block.b_OR.shape[1]
        return ranks


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter in memory; `sites` by layer and site. `bytes` counts its factors and vectors exactly.

    With an `invocation` it acts from the last occurrence of these tokens in a prompt on.
    """

    key: str
    sites: Mapping[Where, Site]
    bytes: int
    invocation: tuple[int, ...] = ()

    def acts_from(self, prompt: Sequence[int]) -> int:
        """The first token of a prompt on which it acts. Raises Invalid (`invocation_missing`) when there is none."""
        size = len(self.invocation)
        if not size:
            return 0
        for begin in range(len(prompt) - size, -1, -1):
            if tuple(prompt[begin : begin + size]) == self.invocation:
                return begin
        raise Invalid(
            f"the prompt lacks the {size} tokens that activate this adapter; end the prompt as it was trained, "
            "or ask the base",
            code="invocation_missing",
        )

    def rank(self) -> int:
        """The most ranks that act on one part."""
        return max((rank for site in self.sites.values() for rank in site.ranks().values()), default=0)
