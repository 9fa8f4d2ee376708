"""LoRA adapters as llama.cpp reads them: one GGUF file of factors, scaled by `adapter.lora.alpha` over their rank.

Factors keep PEFT's orientation; where the architecture rotates in pairs, B of queries and keys is permuted as their
weights are. DoRA has no place in the format. An activated LoRA keeps its invocation tokens; llama.cpp's server (build
11549) lets it act from the token before them on.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from catena.artifacts.formats import gguf_names
from catena.artifacts.formats.arrays import Floats, Planned
from catena.artifacts.formats.factors import Factors, LoraWeights, check_fit, even_scales
from catena.artifacts.formats.gguf_file import GgufFile, shortest, write_gguf
from catena.artifacts.formats.models import BaseModel, Config
from catena.artifacts.refusal import refused
from catena.kit.errors import Invalid

A, B = ".weight.lora_a", ".weight.lora_b"
INVOCATION = "adapter.alora.invocation_tokens"


def write_gguf_adapter(
    adapter: LoraWeights,
    path: Path,
    config: Config,
    *,
    name: str = "",
    dtype: Literal["F32", "F16"] = "F32",
    more: dict[str, Any] | None = None,
) -> None:
    """Write an adapter. `more` is further metadata.

    Raises Invalid (`unsupported_adapter`) for DoRA, Refused for layers that llama.cpp cannot adapt.
    """
    if adapter.dora:
        raise Invalid(
            "llama.cpp's adapters hold no DoRA magnitudes; merge the adapter into its base and export that",
            code="unsupported_adapter",
        )
    architecture = gguf_names.ARCHITECTURES[config.model_type]
    alpha, b_by_module = even_scales(adapter, by_rank=True)
    plan = []
    for module, factors in adapter.modules.items():
        theirs = gguf_names.to_gguf(module)
        if theirs is None:
            raise refused("adapter", "bad_tensor", f"llama.cpp has no name for {module!r}; leave that layer out")
        heads = gguf_names.heads_rotated(module, architecture, config.num_attention_heads, config.key_heads)
        plan.append(_planned(f"{theirs}{A}", factors.A_RI, dtype))
        plan.append(_planned(f"{theirs}{B}", gguf_names.pairs(b_by_module[module], heads), dtype))
    metadata: dict[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(alpha)}
    metadata |= ({"general.name": name} if name else {}) | (more or {})
    metadata |= {INVOCATION: adapter.invocation} if adapter.invocation else {}
    write_gguf(path, architecture, metadata, plan)


def read_gguf_adapter(path: Path, base: BaseModel) -> LoraWeights:
    """The adapter in a GGUF file, factors dequantised. Raises Refused for what is no LoRA for this base."""
    file = GgufFile(path, "adapter")
    _check_kind(file, base)
    alpha = shortest(file.need("adapter.lora.alpha"))
    grouped: dict[str, dict[str, Floats]] = {}
    for name in file.names():
        ending = name[-len(A) :]
        module = gguf_names.from_gguf(name.removesuffix(ending)) if ending in (A, B) else None
        if module is None:
            raise refused("adapter", "bad_tensor", f"{path.name}: {name!r} is no LoRA factor of a known layer")
        grouped.setdefault(module, {})[ending] = file.values(name)
    architecture, config = gguf_names.ARCHITECTURES[base.config.model_type], base.config
    modules = {}
    for module, parts in grouped.items():
        if set(parts) != {A, B} or parts[A].ndim != 2 or parts[B].ndim != 2:
            raise refused("adapter", "incomplete", f"{path.name}: {module!r} has not both factors; convert it again")
        heads = gguf_names.heads_rotated(module, architecture, config.num_attention_heads, config.key_heads)
        if heads and len(parts[B]) % (2 * heads):
            raise refused("adapter", "bad_tensor", f"{path.name}: {module!r} has {len(parts[B])} rows, {heads} heads")
        # llama.cpp takes an alpha of 0 for "no scaling".
        scale = alpha / len(parts[A]) if alpha else 1.0
        rows = np.ascontiguousarray(gguf_names.halves(parts[B], heads))
        modules[module] = Factors(A_RI=parts[A], B_OR=rows, scale=scale)
    halved = {file.type(name) for name in file.names()} == {"F16"}
    invocation = tuple(int(number) for number in file.get(INVOCATION, ()))
    made = LoraWeights(modules=modules, dtype="F16" if halved else "F32", invocation=invocation)
    return check_fit(made, base.shape, path.name)


def _check_kind(file: GgufFile, base: BaseModel) -> None:
    kind, sort = file.get("general.type", "model"), file.get("adapter.type", "none")
    if (kind, sort) != ("adapter", "lora"):
        message = f"{file.path.name} is of type {kind!r}, adapter {sort!r}; LoRA adapters can be imported"
        raise refused("adapter", "bad_config", message)
    told, wanted = file.need("general.architecture"), gguf_names.ARCHITECTURES[base.config.model_type]
    if told != wanted:
        message = f"{file.path.name} is for {told!r}, the base is {wanted!r} to llama.cpp; name its own base"
        raise refused("adapter", "base_mismatch", message)


def _planned(name: str, values: Floats, dtype: str) -> Planned:
    return Planned(name=name, shape=values.shape, dtype=dtype, make=lambda: values)
