"""The random models and requests that all of this runs on; transformers and PEFT make them, both sides read them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from transformers import AutoModelForCausalLM, LlamaConfig

from catena.adapters.core.work import Module, Part
from catena.artifacts.base import CheckedBase, check_base
from catena.artifacts.gate import Rules, check_adapter

RANK = 16
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
UNSEALED = Rules(require_manifest=False, require_signature=False)
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 2000},
    "220m": {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "vocab_size": 32_000},
    "0.5b": {"hidden_size": 1536, "num_hidden_layers": 14, "num_attention_heads": 16, "vocab_size": 32_000},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A base, its adapters by name, and the same in PEFT."""

    base: Path
    adapters: dict[str, Path]
    peft: Any
    vocabulary: int

    def prompts(self, count: int, lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
        """Random prompts of these lengths, over and over."""
        chance = random.Random(seed)
        return [
            [chance.randrange(5, self.vocabulary) for _ in range(lengths[number % len(lengths)])]
            for number in range(count)
        ]


def make(folder: Path, size: str, adapters: int, dtype: torch.dtype) -> Subject:
    """Make a Llama of `size` in `folder` with LoRA adapters of rank 16 on all of its projections."""
    torch.manual_seed(0)
    sizes = SIZES[size]
    config = LlamaConfig(
        **sizes,
        intermediate_size=4 * sizes["hidden_size"],
        num_key_value_heads=sizes["num_attention_heads"] // 4,
        max_position_embeddings=8192,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    base = folder / "base"
    model.save_pretrained(base)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model, lora, adapter_name="a0")
    for number in track(range(adapters), description="making adapters", transient=True):
        if number:
            peft.add_adapter(f"a{number}", lora)
        for name, parameter in peft.named_parameters():
            if f".a{number}." in name:
                torch.nn.init.normal_(parameter, std=0.02)
    peft.save_pretrained(folder / "adapters")
    folders = {f"a{number}": folder / "adapters" / f"a{number}" for number in range(adapters)}
    for readme in (folder / "adapters").rglob("README.md"):
        readme.unlink()
    return Subject(base=base, adapters=folders, peft=peft.eval(), vocabulary=sizes["vocab_size"])


def part_of(base: CheckedBase, folder: Path) -> Part:
    """An adapter as the gate describes it to the engine."""
    checked = check_adapter(folder, base_digest=base.digest, shape=base.shape, keys={}, rules=UNSEALED)
    modules = tuple(Module(path, module.rank, module.scale) for path, module in checked.modules.items())
    return Part(folder=str(folder), modules=modules, invocation=checked.invocation)


def checked(subject: Subject) -> CheckedBase:
    """The base through its gate."""
    return check_base(subject.base)
