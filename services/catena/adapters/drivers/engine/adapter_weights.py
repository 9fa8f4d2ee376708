"""Reads checked adapters into memory: LoRA, rsLoRA, DoRA, and weighted compositions of the first two.

The values of a file become the adapter's memory as they are, so that each byte is read once, and hashed while it is.
The gate has matched every tensor to its layer already and tells where it lies; scales come with the order.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from catena.adapters.core.work import Part
from catena.adapters.drivers.engine.arena import HOST, Arena, moved
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.lora import SITE_OF, Adapter, Block, Site, Where
from catena.adapters.drivers.engine.values import DTYPES, read_values
from catena.kit.errors import Invalid

PATH = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(qkv|q|k|v|o|gate_up|gate|up|down)_proj\Z")
_Read = tuple[Block, Tensor | None]
"""What was read of one layer: its factors, and DoRA's magnitudes."""


def read_adapter(key: str, parts: Sequence[Part], decoder: Decoder) -> Adapter:
    """The adapter that the parts make together, on the decoder's device; see `read_parts`."""
    return moved(read_parts(key, parts, decoder), decoder.shape.device)


def read_parts(key: str, parts: Sequence[Part], decoder: Decoder) -> Adapter:
    """The adapter that the parts make together, in host memory: the sum of what each adds, times its weight.

    Raises Invalid (`unsupported_adapter`) for layers outside the blocks, or a DoRA adapter within a composition, and
    Untrusted (`adapter_tampered`) where a file is not the one that the gate saw.
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
    places = [[_place(module.path) for module in part.modules] for part in parts]
    size = sum(map(_numbers, parts))
    for where in {where for part in places for where, _ in part} if parts[0].dora else ():
        size += 2 * _linear(where, decoder).outputs
    arena = Arena(size, decoder.shape.dtype, locked=decoder.shape.device.type == "cuda")
    outs = _outs(decoder)
    found: dict[Where, list[_Read]] = {}
    for part, placed in zip(parts, places, strict=True):
        take = _taker(part, arena)
        for module, (where, name) in zip(part.modules, placed, strict=True):
            a_RI, b_OR = take(module.a_at, module.rank, module.inputs), take(module.b_at, module.outputs, module.rank)
            magnitude_O = take(module.magnitude_at, module.outputs) if part.dora else None
            block = Block(a_RI, b_OR, outs.get(name, 0), module.scale * part.weight)
            found.setdefault(where, []).append((block, magnitude_O))
    sites = {where: _site(where, read, decoder, arena) for where, read in found.items()}
    assert arena.full
    return Adapter(key, sites, arena.flat_N.nbytes, parts[0].invocation)


@lru_cache(maxsize=1 << 14)
def _place(path: str) -> tuple[Where, str]:
    """The site of a projection, and its name: adapters of one base name the same ones over and over."""
    match = PATH.match(path)
    if match is None:
        raise Invalid(
            f"the adapter changes {path!r}; only the blocks' projections are served", code="unsupported_adapter"
        )
    return (int(match[1]), SITE_OF[match[2]]), match[2]


def _numbers(part: Part) -> int:
    """How many values a part's file has."""
    factors = sum(module.rank * (module.inputs + module.outputs) for module in part.modules)
    return factors + sum(module.outputs for module in part.modules if part.dora)


def _taker(part: Part, arena: Arena) -> Callable[..., Tensor]:
    """Read a part's file; what gives its tensors by where they begin in it, side by side as the gate saw them."""
    begin = min(min(module.a_at, module.b_at) for module in part.modules)
    if part.dora:
        begin = min(begin, *(module.magnitude_at for module in part.modules))
    flat_N = arena.take(_numbers(part))
    read_values(part, begin, flat_N)
    first, each = flat_N.storage_offset(), DTYPES[part.dtype].itemsize

    def take(at: int, *extent: int) -> Tensor:
        return flat_N.as_strided(extent, (extent[-1], 1)[-len(extent) :], first + (at - begin) // each)

    return take


def _site(where: Where, read: Sequence[_Read], decoder: Decoder, arena: Arena) -> Site:
    blocks = tuple(block for block, _ in read)
    if read[0][1] is None:
        return Site(blocks)
    linear = _linear(where, decoder)
    weight_OI, bias_O = linear.weight(), linear.bias_O
    norm_O = arena.take(linear.outputs).fill_(1.0)
    for block, magnitude_O in read:
        assert magnitude_O is not None
        rows = slice(block.out, block.out + block.b_OR.shape[0])
        # Equation 5 of arXiv 2402.09353: magnitude over the norm of each row of W + scale B A.
        b_OR, a_RI = (factor.to(weight_OI.device).float() for factor in (block.b_OR, block.a_RI))
        length_O = torch.addmm(weight_OI[rows].float(), b_OR, a_RI, alpha=block.scale).norm(dim=1)
        norm_O[rows] = magnitude_O.float() / length_O.to(HOST)
    shift_O = arena.take(linear.outputs).zero_()
    if bias_O is not None:
        shift_O.copy_(bias_O.to(HOST) * (1 - norm_O))
    return Site(blocks, norm_O, shift_O)


def _linear(where: Where, decoder: Decoder) -> Linear:
    layer, site = where
    return decoder.layers[layer].sites[site]


def _outs(decoder: Decoder) -> dict[str, int]:
    """Where the outputs of layers begin that are not the first of their site."""
    shape = decoder.shape
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    return {"k": queries, "v": queries + keys, "up": shape.feed_forward}
