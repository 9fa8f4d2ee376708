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
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.lora import SITE_OF, Adapter, Block, Site
from catena.kit.errors import Invalid

PREFIX = "base_model.model."
PATH = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(qkv|q|k|v|o|gate_up|gate|up|down)_proj\Z")


def read_adapter(key: str, parts: Sequence[Part], decoder: Decoder) -> Adapter:
    """The adapter that the parts make together: the sum of what each adds, times its weight.

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
        for factors in _read_part(part, decoder):
            found.setdefault((factors.layer, factors.site), []).append(factors)
    sites = {where: _site(factors, decoder) for where, factors in found.items()}
    return Adapter(key, sites, sum(_bytes(site) for site in sites.values()), parts[0].invocation)


class _Factors:
    """One adapted layer: where it is, A, B already scaled, and DoRA's magnitudes."""

    def __init__(self, module: Module) -> None:
        match = PATH.match(module.path)
        if match is None:
            raise Invalid(
                f"the adapter changes {module.path!r}; only the blocks' projections are served",
                code="unsupported_adapter",
            )
        self.layer, self.name = int(match[1]), match[2]
        self.site = SITE_OF[self.name]
        self.a_RI = self.b_OR = torch.empty(0)
        self.magnitude_O: Tensor | None = None


def _read_part(part: Part, decoder: Decoder) -> list[_Factors]:
    embed = decoder.ends.embed_VD
    made = []
    with safe_open(Path(part.folder) / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
        for module in part.modules:
            factors = _Factors(module)
            at = f"{PREFIX}{module.path}."

            def take(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(name)
                return tensor.to(embed.device, embed.dtype)

            factors.a_RI = take(f"{at}lora_A.weight")
            factors.b_OR = take(f"{at}lora_B.weight") * (module.scale * part.weight)
            if part.dora:
                plain = f"{at}lora_magnitude_vector"
                factors.magnitude_O = take(plain if plain in names else f"{plain}.weight")
            made.append(factors)
    return made


def _site(found: Sequence[_Factors], decoder: Decoder) -> Site:
    layer = decoder.layers[found[0].layer]
    blocks, rank = [], 0
    for factors in found:
        blocks.append(Block(factors.b_OR, _offset(factors.name, decoder), rank))
        rank += factors.a_RI.shape[0]
    a_RI = torch.cat([factors.a_RI for factors in found])
    if all(factors.magnitude_O is None for factors in found):
        return Site(a_RI, tuple(blocks))
    linear = layer.sites[found[0].site]
    weight_OI, bias_O = linear.weight(), linear.bias_O
    norm_O = torch.ones_like(weight_OI[:, 0])
    for factors, block in zip(found, blocks, strict=True):
        rows = slice(block.out, block.out + block.b_OR.shape[0])
        if factors.magnitude_O is not None:
            # Equation 5 of arXiv 2402.09353: magnitude over the norm of each row of W + scale B A.
            whole_OI = weight_OI[rows].float() + block.b_OR.float() @ factors.a_RI.float()
            norm_O[rows] = (factors.magnitude_O.float() / whole_OI.norm(dim=1)).to(norm_O.dtype)
    shift_O = torch.zeros_like(norm_O) if bias_O is None else bias_O * (1 - norm_O)
    return Site(a_RI, tuple(blocks), norm_O, shift_O)


def _offset(name: str, decoder: Decoder) -> int:
    """Where a layer's outputs begin within its site."""
    shape = decoder.shape
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    return {"k": queries, "v": queries + keys, "up": shape.feed_forward}.get(name, 0)


def _bytes(site: Site) -> int:
    tensors = [site.a_RI, *(block.b_OR for block in site.blocks)]
    tensors += [vector for vector in (site.norm_O, site.shift_O) if vector is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
