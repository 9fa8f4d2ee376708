"""How llama.cpp names and lays out what transformers does otherwise: architectures, tensors, rotated heads.

Mistral is llama.cpp's `llama`. Llama's queries and keys are rotated there in neighbouring pairs of values, in
transformers in halves, so their rows are permuted; the other families are left as they are.
"""

import re
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
ROTATED_IN_PAIRS = frozenset({"llama"})
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS_BACK = {theirs: ours for ours, theirs in ENDS.items()}
BLOCK_BACK = {theirs: ours for ours, theirs in BLOCK.items()}
OURS = re.compile(r"model\.layers\.(\d{1,6})\.(.+)\Z")
THEIRS = re.compile(r"blk\.(\d{1,6})\.(.+)\Z")
Any_ = TypeVar("Any_", bound=np.generic)


def to_gguf(module: str) -> str | None:
    """llama.cpp's name for a module of transformers, None if it has none."""
    if match := OURS.match(module):
        return f"blk.{match[1]}.{BLOCK[match[2]]}" if match[2] in BLOCK else None
    return ENDS.get(module)


def from_gguf(module: str) -> str | None:
    """Transformers' name for a module of llama.cpp, None if it has none."""
    if match := THEIRS.match(module):
        return f"model.layers.{match[1]}.{BLOCK_BACK[match[2]]}" if match[2] in BLOCK_BACK else None
    return ENDS_BACK.get(module)


def heads_rotated(module: str, architecture: str, heads: int, key_heads: int) -> int:
    """How many heads' rows are permuted in this module of transformers' naming; 0: none are."""
    if architecture not in ROTATED_IN_PAIRS:
        return 0
    return {"self_attn.q_proj": heads, "self_attn.k_proj": key_heads}.get(module.split(".", 3)[-1], 0)


def pairs(rows: NDArray[Any_], heads: int) -> NDArray[Any_]:
    """Rows of each head from halves to neighbouring pairs; the same rows when `heads` is 0."""
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halves(rows: NDArray[Any_], heads: int) -> NDArray[Any_]:
    """What undoes `pairs`."""
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
