"""A GGUF base as a transformers folder, dequantised; the gate then sees it like any other base."""

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from catena.artifacts.base import CONFIG
from catena.artifacts.digest import CHUNK
from catena.artifacts.formats import gguf_names
from catena.artifacts.formats.arrays import Floats, Planned, Step, silent, write_safetensors
from catena.artifacts.formats.gguf_export import llama3_factors
from catena.artifacts.formats.gguf_file import GgufFile, shortest
from catena.artifacts.formats.gguf_vocabulary import write_tokenizer
from catena.artifacts.formats.merging import WEIGHTS
from catena.artifacts.formats.models import unsupported
from catena.artifacts.refusal import refused
from catena.kit.errors import Invalid

ROPE = "rope_freqs.weight"
FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# The rules of Llama 3.1 to 3.3; a file holds only what they come to.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def import_gguf(path: Path, folder: Path, *, dtype: str = "", step: Step = silent) -> dict[str, int]:
    """Fill an empty folder from a GGUF file and return how many of its tensors had each type.

    `dtype` is what to store, `F32`, `F16` or `BF16`; empty: the file's own if all its matrices have one, else `F16`.
    Raises Refused for a damaged file or tensors that do not fit, Invalid (`unsupported_architecture`,
    `unsupported_tokenizer`) for what this platform would get wrong.
    """
    file = GgufFile(path, "base")
    if file.get("general.type", "model") != "model":
        raise Invalid(f"{path.name} is no model but {file.get('general.type')!r}", code="bad_format")
    architecture = file.need("general.architecture")
    if architecture not in FAMILIES:
        raise unsupported(f"{path.name} is a {architecture!r} model; {', '.join(FAMILIES)} can be imported")
    held = Counter(file.type(name) for name in file.names() if len(file.shape(name)) > 1)
    stored = dtype or (next(iter(held)) if len(held) == 1 and set(held) <= {"F32", "F16", "BF16"} else "F16")
    config = _config(file, architecture, stored)
    plan = [_planned(file, name, config, stored) for name in file.names() if name != ROPE]
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    write_tokenizer(file, folder, context=config["max_position_embeddings"])
    write_safetensors(folder / WEIGHTS, plan, step=step)
    return dict(held)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hex."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            hasher.update(part)
    return hasher.hexdigest()


def _config(file: GgufFile, architecture: str, dtype: str) -> dict[str, Any]:
    def need(key: str) -> Any:
        return file.need(f"{architecture}.{key}")

    heads, width = int(need("attention.head_count")), int(need("embedding_length"))
    head = int(file.get(f"{architecture}.attention.key_length", width // max(heads, 1)))
    if int(file.get(f"{architecture}.rope.dimension_count", head)) != head:
        raise unsupported(f"{file.path.name} rotates a part of each head, which is not served here")
    names = set(file.names())
    # Both spellings of the rotary base: not every reader knows the new one.
    rope = _rope(file, architecture, head)
    rows = file.shape("token_embd.weight")[0] if "token_embd.weight" in names else 0
    made = {
        "architectures": [FAMILIES[architecture]],
        "model_type": architecture,
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": int(need("feed_forward_length")),
        "num_hidden_layers": int(need("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.get(f"{architecture}.attention.head_count_kv", heads)),
        "head_dim": head,
        "vocab_size": rows,
        "max_position_embeddings": int(need("context_length")),
        "rms_norm_eps": shortest(need("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "attention_bias": "blk.0.attn_q.bias" in names,
    }
    if architecture == "llama":
        made["mlp_bias"] = "blk.0.ffn_up.bias" in names
    ids = {role: file.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return made | {f"{role}_token_id": number for role, number in ids.items() if number is not None}


def _rope(file: GgufFile, architecture: str, head: int) -> dict[str, Any]:
    at = f"{architecture}.rope"
    made: dict[str, Any] = {"rope_theta": shortest(file.get(f"{at}.freq_base", 10_000.0)), "rope_type": "default"}
    kind = file.get(f"{at}.scaling.type", "none")
    if kind == "linear":
        made |= {"rope_type": "linear", "factor": shortest(file.need(f"{at}.scaling.factor"))}
    elif kind != "none":
        raise unsupported(f"{file.path.name} scales its rotary embedding by {kind!r}; linear and llama3 are served")
    if ROPE in file.names():
        told = file.values(ROPE)
        made |= {"rope_type": "llama3", "factor": shortest(told.max()), **LLAMA3}
        if told.shape != (head // 2,) or not np.allclose(told, llama3_factors(head, made), rtol=1e-4):
            raise unsupported(f"{file.path.name} has rotary factors that are not Llama 3's; they are not served here")
    return made


def _planned(file: GgufFile, name: str, config: dict[str, Any], dtype: str) -> Planned:
    theirs, _, ending = name.rpartition(".")
    module = gguf_names.from_gguf(theirs)
    if module is None or ending not in ("weight", "bias"):
        raise refused("base", "bad_tensor", f"{file.path.name}: {name!r} has no place in {config['model_type']}")
    heads = gguf_names.heads_rotated(
        module, config["model_type"], config["num_attention_heads"], config["num_key_value_heads"]
    )
    shape = file.shape(name)
    if heads and shape[0] % (2 * heads):
        raise refused("base", "bad_tensor", f"{file.path.name}: {name!r} has {shape[0]} rows for {heads} heads")
    return Planned(name=f"{module}.{ending}", shape=shape, dtype=dtype, make=partial(_values, file, name, heads))


def _values(file: GgufFile, name: str, heads: int) -> Floats:
    return np.ascontiguousarray(gguf_names.halves(file.values(name), heads))
