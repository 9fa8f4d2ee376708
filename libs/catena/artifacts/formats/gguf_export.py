"""A base, as it is or with an adapter merged into it, as one GGUF file for llama.cpp at a level of precision."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from catena.artifacts.formats import gguf_names
from catena.artifacts.formats.arrays import Floats, Planned, Step, silent
from catena.artifacts.formats.gguf_file import write_gguf
from catena.artifacts.formats.gguf_tokens import token_metadata
from catena.artifacts.formats.levels import FILE_TYPE, Level, type_of
from catena.artifacts.formats.models import Config, Weights, unsupported

MAY_HAVE_BIAS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj"),
    "qwen3": (),
}


def export_gguf(
    weights: Weights,
    path: Path,
    *,
    level: Level,
    name: str,
    origin: dict[str, str] | None = None,
    step: Step = silent,
) -> None:
    """Write a new file. `origin` is kept as `catena.*`: the digests that it was made from.

    Raises Invalid (`unsupported_architecture`, `unsupported_tokenizer`) for what llama.cpp would get wrong.
    """
    config = weights.config
    rows = weights.info("model.embed_tokens.weight").shape[0]
    config = msgspec.structs.replace(config, vocab_size=rows)
    metadata = {"general.name": name, "general.type": "model", "general.file_type": FILE_TYPE[level]}
    metadata |= {"general.quantization_version": 2} if level.startswith("Q") else {}
    metadata |= {f"catena.{key}": value for key, value in (origin or {}).items()}
    metadata |= _shape_metadata(config) | token_metadata(weights.folder, config)
    plan = [*_rope_factors(config), *(_planned(weights, tensor, level) for tensor in weights.names())]
    write_gguf(path, gguf_names.ARCHITECTURES[config.model_type], metadata, plan, step=step)


def value_count(weights: Weights) -> int:
    """How many values an export goes through, for a progress bar."""
    return sum(math.prod(weights.info(name).shape) for name in weights.names())


def _shape_metadata(config: Config) -> dict[str, Any]:
    at = gguf_names.ARCHITECTURES[config.model_type]
    rope = config.rope
    if float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise unsupported("rotary embedding of a part of each head cannot be converted")
    made: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.key_heads,
        "attention.key_length": config.head,
        "attention.value_length": config.head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] == "linear":
        made |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif rope["rope_type"] not in ("default", "llama3"):
        raise unsupported(f"rotary embedding {rope['rope_type']!r}; default, linear and llama3 can be converted")
    return {f"{at}.{key}": value for key, value in made.items()}


def _rope_factors(config: Config) -> list[Planned]:
    """Llama 3.1's slowed waves, which llama.cpp takes as divisors of each frequency."""
    if config.rope["rope_type"] != "llama3":
        return []
    factors = llama3_factors(config.head, config.rope)
    return [Planned(name="rope_freqs.weight", shape=factors.shape, dtype="F32", make=lambda: factors)]


def llama3_factors(head: int, rope: dict[str, Any]) -> Floats:
    """What each frequency is divided by: 1 for short waves, `factor` for long ones, smooth between; (head / 2,).

    Source: Llama 3.1's published rule.
    """
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, length = (float(rope[key]) for key in keys)
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, head, 2) / head)
    share = ((length / waves - low) / (high - low)).clip(0, 1)
    return (1 / (share + (1 - share) / factor)).astype(np.float32)


def _planned(weights: Weights, tensor: str, level: Level) -> Planned:
    config, info = weights.config, weights.info(tensor)
    architecture = gguf_names.ARCHITECTURES[config.model_type]
    module, _, ending = tensor.rpartition(".")
    theirs = gguf_names.to_gguf(module)
    if theirs is None or ending not in ("weight", "bias"):
        raise unsupported(f"tensor {tensor!r} has no place in llama.cpp's {architecture}")
    if ending == "bias" and module.rpartition(".")[2] not in MAY_HAVE_BIAS[architecture]:
        raise unsupported(f"tensor {tensor!r}: llama.cpp's {architecture} has no bias there")
    name = f"{theirs}.{ending}"
    heads = gguf_names.heads_rotated(module, architecture, config.num_attention_heads, config.key_heads)
    dtype = type_of(level, name, info.shape, layers=config.num_hidden_layers, tied=config.tie_word_embeddings)
    make = partial(_rotated, weights, tensor, heads)
    return Planned(name=name, shape=info.shape, dtype=dtype, make=make)


def _rotated(weights: Weights, tensor: str, heads: int) -> Floats:
    return gguf_names.pairs(weights.values(tensor), heads)
