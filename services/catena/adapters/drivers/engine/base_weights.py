"""Reads a base folder that passed the gate into a `Decoder`: Llama, Mistral, Qwen2 and Qwen3 blocks.

Only static rotary embeddings are known; anything else is refused by name rather than computed wrongly.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Decoder, Ends, Layer
from catena.adapters.drivers.engine.kv import longest_row
from catena.adapters.drivers.engine.shape import Shape
from catena.kit.errors import Invalid

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_base(folder: Path, *, dtype: str, device: torch.device, kv_bytes: int, most_tokens: int = 0) -> Decoder:
    """The base in `folder`. `dtype` `auto` is float32 on a CPU, else bfloat16.

    `kv_bytes` caps the context, and so does `most_tokens` unless it is 0.
    Raises Invalid (`unsupported_architecture`) for a model that this engine would get wrong.
    """
    config = read_config(folder)
    tensors = _Tensors(folder, DTYPES[_auto(dtype, device)], device)
    shape = _shape(config, tensors("model.embed_tokens.weight"), kv_bytes, most_tokens)
    layers = [_layer(tensors, f"model.layers.{index}.") for index in range(shape.layers)]
    embed_VD = tensors("model.embed_tokens.weight")
    head_VD = embed_VD if config.tie_word_embeddings else tensors("lm_head.weight")
    cos_PE, sin_PE = _rotation(config, shape)
    tensors.done(tied=config.tie_word_embeddings)
    norm_D = tensors("model.norm.weight")
    return Decoder(shape, layers, Ends(embed_VD=embed_VD, norm_D=norm_D, head_VD=head_VD, cos_PE=cos_PE, sin_PE=sin_PE))


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of the weights on the device; tied weights count once."""
    held: dict[int, int] = {}
    for layer in decoder.layers:
        for tensor in (getattr(layer, field.name) for field in fields(Layer)):
            if tensor is not None:
                held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    for tensor in (decoder.ends.embed_VD, decoder.ends.norm_D, decoder.ends.head_VD):
        held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(held.values())


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of `config.json` matters; names as transformers writes them, defaults as its Llama has them."""

    model_type: str = ""
    hidden_act: str = "silu"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class _Tensors:
    """The folder's tensors by name, cast when taken; every one has to be taken."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._held: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._held |= load_file(path)
        self._unused = set(self._held)
        self._dtype, self._device = dtype, device

    def __call__(self, name: str) -> Tensor:
        found = self.maybe(name)
        if found is None:
            raise Invalid(f"the base lacks tensor {name!r}; save it again with transformers", code="base_incomplete")
        return found

    def maybe(self, name: str) -> Tensor | None:
        self._unused.discard(name)
        found = self._held.get(name)
        return None if found is None else found.to(self._device, self._dtype)

    def done(self, *, tied: bool) -> None:
        """Raises Invalid when a tensor would have no effect."""
        left = {n for n in self._unused - {"model.norm.weight"} if not n.endswith("rotary_emb.inv_freq")}
        if tied:
            left.discard("lm_head.weight")
        if left:
            raise _unsupported(f"tensor {min(left)!r} and {len(left) - 1} more have no place in this architecture")


def _auto(dtype: str, device: torch.device) -> str:
    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def read_config(folder: Path) -> Config:
    """The folder's `config.json`. Raises Invalid (`unsupported_architecture`, `base_bad_config`)."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise Invalid(f"config.json of {folder.name}: {error}; save the base again", code="base_bad_config") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise _unsupported(f"{folder.name} is a {config.model_type or 'model of no type'}; this engine runs {known}")
    if config.hidden_act != "silu":
        raise _unsupported(f"{folder.name} uses {config.hidden_act}; this engine runs silu")
    return config


def _shape(config: Config, embed_VD: Tensor, kv_bytes: int, most_tokens: int) -> Shape:
    heads = config.num_attention_heads
    # Qwen names a window even where it does not use it; for Mistral there is no such switch.
    slides = config.model_type == "mistral" if config.use_sliding_window is None else config.use_sliding_window
    window = config.sliding_window if slides and config.sliding_window else config.max_position_embeddings
    shape = Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        key_heads=config.num_key_value_heads or heads,
        head=config.head_dim or config.hidden_size // heads,
        feed_forward=config.intermediate_size,
        vocabulary=embed_VD.shape[0],
        epsilon=config.rms_norm_eps,
        # Within its window a sliding attention is a plain one.
        context=min(config.max_position_embeddings, window),
        dtype=embed_VD.dtype,
        device=embed_VD.device,
    )
    longest = longest_row(bytes_per_token=shape.kv_bytes_per_token, budget=kv_bytes)
    if not longest:
        raise Invalid(f"adapters.kv_bytes {kv_bytes} holds no row of this base; raise it", code="bad_config")
    return replace(shape, context=min(shape.context, longest, most_tokens or longest))


def _layer(tensors: _Tensors, at: str) -> Layer:
    attention, mlp = f"{at}self_attn.", f"{at}mlp."

    def stacked(*names: str) -> Tensor:
        return torch.cat([tensors(f"{name}_proj.weight") for name in names])

    def biases(*names: str) -> Tensor | None:
        found = [tensors.maybe(f"{name}_proj.bias") for name in names]
        present = [bias for bias in found if bias is not None]
        if present and len(present) < len(found):
            raise _unsupported(f"only some of {', '.join(names)} have a bias")
        return torch.cat(present) if present else None

    qkv = [f"{attention}{name}" for name in "qkv"]
    both = [f"{mlp}gate", f"{mlp}up"]
    return Layer(
        norm_in_D=tensors(f"{at}input_layernorm.weight"),
        qkv_OD=stacked(*qkv),
        qkv_bias_O=biases(*qkv),
        q_norm_E=tensors.maybe(f"{attention}q_norm.weight"),
        k_norm_E=tensors.maybe(f"{attention}k_norm.weight"),
        o_DO=tensors(f"{attention}o_proj.weight"),
        o_bias_D=biases(f"{attention}o"),
        norm_mlp_D=tensors(f"{at}post_attention_layernorm.weight"),
        gate_up_FD=stacked(*both),
        gate_up_bias_F=biases(*both),
        down_DF=tensors(f"{mlp}down_proj.weight"),
        down_bias_D=biases(f"{mlp}down"),
    )


def _rotation(config: Config, shape: Shape) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), _frequencies(config, shape.head))
    cos, sin = angles.cos(), angles.sin()
    both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return both[0].to(shape.device, shape.dtype), both[1].to(shape.device, shape.dtype)


def _frequencies(config: Config, head: int) -> Tensor:
    rules = {"rope_theta": config.rope_theta} | (config.rope_scaling or {}) | (config.rope_parameters or {})
    kind = rules.get("rope_type", rules.get("type", "default"))
    plain = 1.0 / (float(rules["rope_theta"]) ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
    if float(rules.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _unsupported("rotary embedding of a part of each head")
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / float(rules["factor"])
    if kind == "llama3":
        return _llama3(plain, rules)
    raise _unsupported(f"rotary embedding {kind!r}; this engine knows default, linear and llama3")


def _llama3(plain: Tensor, rules: Mapping[str, Any]) -> Tensor:
    """Long waves slowed down, short ones kept, a smooth passage between; source: Llama 3.1's reference code."""
    low, high, length = (
        float(rules[key]) for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    waves = 2 * math.pi / plain
    share = ((length / waves - low) / (high - low)).clamp(0.0, 1.0)
    return share * plain + (1 - share) * plain / float(rules["factor"])


def _unsupported(message: str) -> Invalid:
    return Invalid(
        f"{message}; serve another base or put a server that knows it behind the executor",
        code="unsupported_architecture",
    )
