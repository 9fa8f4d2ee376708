"""A random base and its adapters, made on the device, in PEFT; and the same weights, not copies of them, in the engine.

Imports nothing but torch, transformers, PEFT, msgspec and what of Catena needs no more.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from catena.adapters.drivers.engine.base_weights import assemble
from catena.adapters.drivers.engine.decoder import Decoder
from catena.adapters.drivers.engine.families import Config
from catena.adapters.drivers.engine.lora import Adapter, Block, Site

RANK = 16
SITES = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
STD = 0.02
SIZES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
    },
    "exact": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 2000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    },
}
"""The first has the sizes of Llama 2 7B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The base in PEFT and in the engine, and its adapters by name."""

    peft: Any
    decoder: Decoder
    adapters: dict[str, Adapter]

    def prompts(self, count: int, length: int, seed: int = 1) -> list[list[int]]:
        """Random prompts."""
        chance = random.Random(seed)
        return [[chance.randrange(5, self.decoder.shape.vocabulary) for _ in range(length)] for _ in range(count)]


def make(size: str, adapters: int, *, dtype: torch.dtype, device: torch.device, kv_bytes: int) -> Subject:
    """A Llama of `size` with LoRA adapters of rank 16 on all its projections, none of it ever on disk."""
    torch.manual_seed(0)
    own: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    config = LlamaConfig(**SIZES[size], **own, max_position_embeddings=2048, tie_word_embeddings=False)
    with device:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    known = msgspec.convert(config.to_dict(), Config)
    decoder = assemble(known, _Shared(dict(model.named_parameters())), kv_bytes=kv_bytes)
    targets = [f"{name}_proj" for names in SITES for name in names]
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    names = [f"a{number}" for number in range(adapters)]
    # As wide as the base, and not drawn twice: PEFT would keep factors in fp32 and draw them on the host.
    peft: Any = get_peft_model(model, lora, names[0], autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    for name in names[1:]:
        peft.add_adapter(name, lora, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    for module in peft.modules():
        for factors in (getattr(module, "lora_A", {}), getattr(module, "lora_B", {})):
            for factor in factors.values():
                drawn = torch.randn(factor.weight.shape, dtype=dtype, device=device) * STD
                factor.weight = nn.Parameter(drawn, requires_grad=False)
    return Subject(peft=peft.eval(), decoder=decoder, adapters={name: _adapter(peft, name) for name in names})


class _Shared:
    """The model's own tensors; what the engine stacks becomes the memory of its parts."""

    def __init__(self, held: dict[str, nn.Parameter]) -> None:
        self._held = held

    def __call__(self, name: str) -> Tensor:
        return self._held[name].data

    def maybe(self, name: str) -> Tensor | None:
        at, _, last = name.removesuffix("_proj.weight").rpartition(".")
        parts = {"qkv": SITES[0], "gate_up": SITES[2]}.get(last)
        if parts is None:
            return self._held[name].data if name in self._held else None
        held = [self._held[f"{at}.{part}_proj.weight"] for part in parts]
        stacked = torch.cat([part.data for part in held])
        for part, shared in zip(held, stacked.split([part.shape[0] for part in held]), strict=True):
            part.data = shared
        return stacked

    def done(self, *, tied: bool) -> None:
        """Nothing is left over: the names are a Llama's."""


def _adapter(peft: Any, name: str) -> Adapter:
    """One of PEFT's adapters, as the engine holds it."""
    sites = {}
    for number, layer in enumerate(peft.get_base_model().model.layers):
        for kind, names in enumerate(SITES):
            home = layer.self_attn if kind < 2 else layer.mlp
            sites[number, kind] = _site([getattr(home, f"{part}_proj") for part in names], name)
    size = sum(
        tensor.numel() * tensor.element_size()
        for site in sites.values()
        for tensor in (factor for block in site.blocks for factor in (block.a_RI, block.b_OR))
    )
    return Adapter(name, sites, size)


def _site(modules: Sequence[Any], name: str) -> Site:
    blocks, out = [], 0
    for module in modules:
        a_RI, b_OR = module.lora_A[name].weight.data, module.lora_B[name].weight.data
        blocks.append(Block(a_RI, b_OR, out, module.scaling[name]))
        out += b_OR.shape[0]
    return Site(tuple(blocks))
