"""Small random bases and adapters for these tests, made by transformers and PEFT themselves."""

import itertools
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from catena.adapters.core.work import Module, Part
from catena.artifacts import manifest
from catena.artifacts.base import check_base
from catena.artifacts.gate import Rules, check_adapter
from demo import tokenizer

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTEXT = 256
UNSEALED = Rules(require_manifest=False, require_signature=False)


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
    if kind == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=32))
    else:
        biased = {"attention_bias": True, "mlp_bias": True} if kind == "biased" else {}
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=kind != "untied", **biased))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.build(CONTEXT).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 1, **config: Any) -> Path:
    """A PEFT adapter with random factors, saved by PEFT; `config` goes to LoraConfig."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM"} | config
    torch.manual_seed(seed)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings))
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
    modules = tuple(Module(path, module.rank, module.scale) for path, module in checked.modules.items())
    return Part(folder=str(adapter), modules=modules, dora=checked.dora, weight=weight)


def peft_logits(base: Path, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """The reference: transformers and PEFT, one sequence alone, (T, V) in fp32."""
    model: Any = LlamaForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.tensor([tokens]), use_cache=False).logits[0]
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
