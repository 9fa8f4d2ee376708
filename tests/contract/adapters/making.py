"""Small random bases and adapters for these tests, made by transformers and PEFT themselves."""

import itertools
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from catena.adapters.core.work import Part
from catena.adapters.drivers import gate
from catena.artifacts import manifest
from catena.artifacts.base import check_base
from catena.artifacts.gate import Rules, check_adapter
from demo import tokenizer

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTEXT = 256
UNSEALED = Rules(require_manifest=False, require_signature=False)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5]}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama3": (LlamaConfig, {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "biased": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "mistral": (MistralConfig, {"sliding_window": 9}),
    "qwen2": (Qwen2Config, {}),
    "qwen2-window": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {"head_dim": 32}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 24,
        },
    ),
    "phi3": (Phi3Config, {"sliding_window": 10, "tie_word_embeddings": False}),
    "phi4-mini": (
        Phi3Config,
        {
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 128,
            "rope_parameters": LONG
            | {"long_factor": [3.0] * 6, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128},
        },
    ),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0]}),
}
"""Small random configurations of every family that the engine runs."""


def make_base(
    folder: Path, *, width: int = 64, layers: int = 2, key_heads: int = 2, seed: int = 0, kind: str = "llama"
) -> Path:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.15,
        "pad_token_id": tokenizer.PAD,
        "bos_token_id": tokenizer.BOS,
        "eos_token_id": tokenizer.END,
    }
    family, own = FAMILIES[kind]
    model: Any = AutoModelForCausalLM.from_config(family(**sizes | own))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=parameter.data.mean().item(), std=0.2)
    model.save_pretrained(folder)
    tokenizer.build(CONTEXT).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """A PEFT adapter with random factors, saved by PEFT; `config` goes to LoraConfig."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM"} | config
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            std = 0.3 if "magnitude" in name else 0.15
            torch.nn.init.normal_(parameter, mean=1.0 if "magnitude" in name else 0.0, std=std)
    model.save_pretrained(folder)
    for path in (folder / "README.md",):
        path.unlink(missing_ok=True)
    return folder


def part_of(base: Path, adapter: Path, weight: float = 1.0) -> Part:
    """The adapter as the gate describes it to the engine."""
    checked_base = check_base(base)
    checked = check_adapter(adapter, base_digest=checked_base.digest, shape=checked_base.shape, keys={}, rules=UNSEALED)
    return gate.part_of(checked, weight)


def peft_logits(base: Path, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """The reference: transformers and PEFT, one sequence alone, (T, V) in fp32."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def prompts(count: int, shortest: int = 3) -> list[list[int]]:
    """Token sequences of differing lengths."""
    letters = itertools.cycle(b"the quick brown fox jumps over a lazy dog 0123456789")
    return [[next(letters) for _ in range(shortest + 5 * i)] for i in range(count)]


def seal(folder: Path, base: Path, *, name: str, version: str, base_name: str, tasks: tuple[str, ...] = ()) -> None:
    """Give an adapter folder its manifest, as a trainer does."""
    config = LoraConfig.from_pretrained(folder)
    targets = tuple(sorted(config.target_modules))
    manifest.seal(
        folder,
        manifest.Manifest(
            name=name,
            version=version,
            base_name=base_name,
            base_digest=check_base(base).digest,
            tasks=tasks,
            rank=config.r,
            alpha=config.lora_alpha,
            target_modules=targets,
            metrics={"accuracy": 0.9},
            training=manifest.Training(examples=200),
        ),
    )
