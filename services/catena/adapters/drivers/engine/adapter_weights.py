"""Reads checked adapters into memory: LoRA, rsLoRA, DoRA, and weighted compositions of the first two.

The values of a file become the adapter's memory as they are, so that each byte is read once, and hashed beside that.
The gate has matched every tensor to its layer already and tells where it lies; scales come with the order.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from catena.adapters.core.work import Module, Part
from catena.adapters.drivers.engine.arena import HOST, Arena, moved
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.lora import SITE_OF, Adapter, Block, Site, Where
from catena.adapters.drivers.engine.values import read_values
from catena.kit.errors import Invalid

PATH = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(qkv|q|k|v|o|gate_up|gate|up|down)_proj\Z")


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
    outs = _outs(decoder)
    layers = [_layer(number, part, module, outs) for number, part in enumerate(parts) for module in part.modules]
    cuts = [_cut(part) for part in parts]
    size = sum(prod(extent) for cut in cuts for extent in cut.values())
    for where in {layer.where for layer in layers if parts[0].dora}:
        size += 2 * _linear(where, decoder).outputs
    arena = Arena(size, decoder.shape.dtype, locked=decoder.shape.device.type == "cuda")
    found: dict[Where, list[_Layer]] = {}
    with ThreadPoolExecutor(1, "hash") as hashing:
        flats = [arena.take(sum(map(prod, cut.values()))) for cut in cuts]
        reads = [read_values(part, min(cut), flat, hashing) for part, cut, flat in zip(parts, cuts, flats, strict=True)]
        values = [_cut_up(flat, cut) for flat, cut in zip(flats, cuts, strict=True)]
        for layer in layers:
            found.setdefault(layer.where, []).append(layer)
        sites = {where: _site(some, values, decoder, arena) for where, some in found.items()}
        for read in reads:
            read.result()
    assert arena.full
    return Adapter(key, sites, arena.flat_N.nbytes, parts[0].invocation)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One adapted layer: which part's, its site, where within the site its outputs begin, what its B is worth."""

    part: int
    module: Module
    where: Where
    out: int
    scale: float


def _layer(number: int, part: Part, module: Module, outs: Mapping[str, int]) -> _Layer:
    layer, name = _place(module.path)
    return _Layer(number, module, (layer, SITE_OF[name]), outs.get(name, 0), module.scale * part.weight)


@lru_cache(maxsize=1 << 14)
def _place(path: str) -> tuple[int, str]:
    """Which projection of which layer it is: adapters of one base name the same ones over and over."""
    match = PATH.match(path)
    if match is None:
        raise Invalid(
            f"the adapter changes {path!r}; only the blocks' projections are served", code="unsupported_adapter"
        )
    return int(match[1]), match[2]


def _cut(part: Part) -> dict[int, tuple[int, ...]]:
    """Where each tensor of a file begins, in order, and its extent. They lie side by side: the gate saw to that."""
    cut: dict[int, tuple[int, ...]] = {}
    for module in part.modules:
        cut[module.a_at] = (module.rank, module.inputs)
        cut[module.b_at] = (module.outputs, module.rank)
        if module.magnitude_at >= 0:
            cut[module.magnitude_at] = (module.outputs,)
    return dict(sorted(cut.items()))


def _cut_up(flat_N: Tensor, cut: Mapping[int, tuple[int, ...]]) -> dict[int, Tensor]:
    """A file's tensors by where they begin in it."""
    pieces, reached = {}, flat_N.storage_offset()
    for at, extent in cut.items():
        pieces[at] = flat_N.as_strided(extent, (extent[-1], 1)[-len(extent) :], reached)
        reached += prod(extent)
    return pieces


def _site(layers: Sequence[_Layer], values: Sequence[Mapping[int, Tensor]], decoder: Decoder, arena: Arena) -> Site:
    blocks = []
    for layer in layers:
        module, mine = layer.module, values[layer.part]
        blocks.append(Block(mine[module.a_at], mine[module.b_at], layer.out, layer.scale))
    if layers[0].module.magnitude_at < 0:
        return Site(tuple(blocks))
    linear = _linear(layers[0].where, decoder)
    weight_OI, bias_O = linear.weight(), linear.bias_O
    norm_O = arena.take(linear.outputs).fill_(1.0)
    for layer, block in zip(layers, blocks, strict=True):
        rows = slice(block.out, block.out + block.b_OR.shape[0])
        # Equation 5 of arXiv 2402.09353: magnitude over the norm of each row of W + scale B A.
        b_OR, a_RI = (factor.to(weight_OI.device).float() for factor in (block.b_OR, block.a_RI))
        length_O = torch.addmm(weight_OI[rows].float(), b_OR, a_RI, alpha=block.scale).norm(dim=1)
        norm_O[rows] = values[layer.part][layer.module.magnitude_at].float() / length_O.to(HOST)
    shift_O = arena.take(linear.outputs).zero_()
    if bias_O is not None:
        shift_O.copy_(bias_O.to(HOST) * (1 - norm_O))
    return Site(tuple(blocks), norm_O, shift_O)


def _linear(where: Where, decoder: Decoder) -> Linear:
    layer, site = where
    return decoder.layers[layer].sites[site]


def _outs(decoder: Decoder) -> dict[str, int]:
    """Where the outputs of layers begin that are not the first of their site."""
    shape = decoder.shape
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    return {"k": queries, "v": queries + keys, "up": shape.feed_forward}
