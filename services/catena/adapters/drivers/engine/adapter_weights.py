"""Reads checked adapter folders into an `Adapter`: LoRA, rsLoRA, DoRA, and weighted compositions of the first two.

The gate has matched every tensor to its layer already; scales come with the order, so no configuration is read here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from catena.adapters.core.work import Module, Part
from catena.adapters.drivers.engine.arena import HOST, Arena, moved
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.lora import SITE_OF, Adapter, Block, Site
from catena.kit.errors import Invalid

PREFIX = "base_model.model."
PATH = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(qkv|q|k|v|o|gate_up|gate|up|down)_proj\Z")


def read_adapter(key: str, parts: Sequence[Part], decoder: Decoder) -> Adapter:
    """The adapter that the parts make together, on the decoder's device; see `read_parts`."""
    return moved(read_parts(key, parts, decoder), decoder.shape.device)


def read_parts(key: str, parts: Sequence[Part], decoder: Decoder) -> Adapter:
    """The adapter that the parts make together, in host memory: the sum of what each adds, times its weight.

    Raises Invalid (`unsupported_adapter`) for layers outside the blocks, or a DoRA adapter within a composition.
    """
    if len(parts) > 1 and any(part.dora for part in parts):
        raise Invalid(
            "a DoRA adapter rescales the base, so it cannot be composed; name it alone", code="unsupported_adapter"
        )
    if len(parts) > 1 and any(part.invocation for part in parts):
        raise Invalid(
            "an activated LoRA begins to act within a prompt, so it cannot be composed; name it alone",
            code="unsupported_adapter",
        )
    found: dict[tuple[int, int], list[_Factors]] = {}
    for part in parts:
        for factors in _read_part(part):
            found.setdefault((factors.layer, factors.site), []).append(factors)
    size = sum(_size(factors, decoder) for factors in found.values())
    arena = Arena(size, decoder.shape.dtype, locked=decoder.shape.device.type == "cuda")
    sites = {where: _site(factors, decoder, arena) for where, factors in found.items()}
    assert arena.full
    return Adapter(key, sites, arena.flat_N.nbytes, parts[0].invocation)


class _Factors:
    """One adapted layer as its file has it: where it is, A, B with what to multiply it by, and DoRA's magnitudes."""

    def __init__(self, module: Module, weight: float) -> None:
        match = PATH.match(module.path)
        if match is None:
            raise Invalid(
                f"the adapter changes {module.path!r}; only the blocks' projections are served",
                code="unsupported_adapter",
            )
        self.layer, self.name = int(match[1]), match[2]
        self.site = SITE_OF[self.name]
        self.scale = module.scale * weight
        self.a_RI = self.b_OR = torch.empty(0)
        self.magnitude_O: Tensor | None = None


def _read_part(part: Part) -> list[_Factors]:
    made = []
    with safe_open(Path(part.folder) / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        for module in part.modules:
            factors = _Factors(module, part.weight)
            at = f"{PREFIX}{module.path}."
            factors.a_RI = file.get_tensor(f"{at}lora_A.weight")
            factors.b_OR = file.get_tensor(f"{at}lora_B.weight")
            if part.dora:
                plain = f"{at}lora_magnitude_vector"
                factors.magnitude_O = file.get_tensor(plain if plain in names else f"{plain}.weight")
            made.append(factors)
    return made


def _size(found: Sequence[_Factors], decoder: Decoder) -> int:
    """How many numbers a site takes."""
    factors = sum(one.a_RI.numel() + one.b_OR.numel() for one in found)
    return factors + (2 * _linear(found, decoder).outputs if _scaled(found) else 0)


def _site(found: Sequence[_Factors], decoder: Decoder, arena: Arena) -> Site:
    a_RI = arena.take(sum(factors.a_RI.shape[0] for factors in found), found[0].a_RI.shape[1])
    blocks, rank = [], 0
    for factors in found:
        end = rank + factors.a_RI.shape[0]
        a_RI[rank:end] = factors.a_RI
        b_OR = arena.take(*factors.b_OR.shape)
        torch.mul(factors.b_OR, factors.scale, out=b_OR)
        blocks.append(Block(b_OR, _offset(factors.name, decoder), rank))
        rank = end
    if not _scaled(found):
        return Site(a_RI, tuple(blocks))
    linear = _linear(found, decoder)
    weight_OI, bias_O = linear.weight(), linear.bias_O
    norm_O = arena.take(linear.outputs).fill_(1.0)
    for factors, block in zip(found, blocks, strict=True):
        rows = slice(block.out, block.out + block.b_OR.shape[0])
        if factors.magnitude_O is not None:
            # Equation 5 of arXiv 2402.09353: magnitude over the norm of each row of W + scale B A.
            change_OI = (
                block.b_OR.to(weight_OI.device).float()
                @ a_RI[block.rank :][: block.b_OR.shape[1]].to(weight_OI.device).float()
            )
            length_O = (weight_OI[rows].float() + change_OI).norm(dim=1)
            norm_O[rows] = factors.magnitude_O.float() / length_O.to(HOST)
    shift_O = arena.take(linear.outputs).zero_()
    if bias_O is not None:
        shift_O.copy_(bias_O.to(HOST) * (1 - norm_O))
    return Site(a_RI, tuple(blocks), norm_O, shift_O)


def _scaled(found: Sequence[_Factors]) -> bool:
    return any(factors.magnitude_O is not None for factors in found)


def _linear(found: Sequence[_Factors], decoder: Decoder) -> Linear:
    return decoder.layers[found[0].layer].sites[found[0].site]


def _offset(name: str, decoder: Decoder) -> int:
    """Where a layer's outputs begin within its site."""
    shape = decoder.shape
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    return {"k": queries, "v": queries + keys, "up": shape.feed_forward}.get(name, 0)
