"""Small random bases and adapters, made by transformers and PEFT themselves, and what those answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from catena.artifacts.formats.llama_cpp import LlamaCpp
from demo import tokenizer

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTEXT = 128
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-tied-llama3-rope": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama-biased-linear-rope": (
        "llama",
        {"attention_bias": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral": ("mistral", {"sliding_window": 64}),
    # MLX does not read the new spelling of the rotary base, so this is the one it takes for granted.
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 48}),
}
PROMPTS = ["upper: hello", "add 27+58", "<user>sort: 5 2 9<end><bot>", "Two plus two is"]


def make_base(folder: Path, kind: str = "llama", *, width: int = 64, layers: int = 2, std: float = 0.15) -> Path:
    family, more = KINDS[kind]
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": std,
        "pad_token_id": tokenizer.PAD,
        "bos_token_id": tokenizer.BOS,
        "eos_token_id": tokenizer.END,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | more))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.save_pretrained(folder)
    tokenizer.build(CONTEXT).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """A PEFT adapter with random factors, saved by PEFT; `config` goes to LoraConfig."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM"} | config
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def logprobs(base: Path, prompts: Sequence[Sequence[int]], adapter: Path | None = None) -> list[np.ndarray]:
    """Transformers' and PEFT's log-probabilities after each prompt."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return [torch.log_softmax(model(input_ids=torch.tensor([list(p)])).logits[0, -1], -1).numpy() for p in prompts]


def llama_logprobs(model: LlamaCpp, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """llama.cpp's log-probabilities after each prompt, by id."""
    made = []
    for tokens in prompts:
        guess = model.guess(tokens, tokenizer.VOCABULARY)
        told = np.full(tokenizer.VOCABULARY, np.nan)
        told[guess.ids] = guess.logprobs
        made.append(told)
    return made


def tokens_of(text: str) -> list[int]:
    return tokenizer.build(CONTEXT)(text).input_ids


TOKENS = [tokens_of(prompt) for prompt in PROMPTS]
