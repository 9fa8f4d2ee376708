"""Reads a base folder that passed the gate into a `Decoder`."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Decoder, Ends, Layer
from catena.adapters.drivers.engine.families import Config, read_config, unsupported
from catena.adapters.drivers.engine.linear import Linear
from catena.adapters.drivers.engine.nf4 import Nf4
from catena.adapters.drivers.engine.prefix import BLOCK
from catena.adapters.drivers.engine.shape import Shape
from catena.kit.errors import Invalid

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tensors(Protocol):
    """A base's tensors by the names that transformers gives them, on their device."""

    def __call__(self, name: str) -> Tensor:
        """One that has to be there. Raises Invalid (`base_incomplete`)."""

    def maybe(self, name: str) -> Tensor | None:
        """One that some architectures have."""

    def done(self, *, tied: bool) -> None:
        """All are taken. Raises Invalid when one would have no effect."""


def read_base(
    folder: Path, *, dtype: str, device: torch.device, kv_bytes: int, most_tokens: int = 0, nf4: bool = False
) -> Decoder:
    """The base in `folder`. `dtype` `auto` is float32 on a CPU, else bfloat16.

    `kv_bytes` caps the context, and so does `most_tokens` unless it is 0. With `nf4` the blocks' products keep their
    weights in four bits; embeddings, norms and head stay as they are, and all that is computed is of `dtype`.
    Raises Invalid (`unsupported_architecture`) for a model that this engine would get wrong.
    """
    tensors = _Tensors(folder, DTYPES[auto_dtype(dtype, device)], device)
    return assemble(read_config(folder), tensors, kv_bytes=kv_bytes, most_tokens=most_tokens, nf4=nf4)


def assemble(config: Config, tensors: Tensors, *, kv_bytes: int, most_tokens: int = 0, nf4: bool = False) -> Decoder:
    """The decoder that `config` describes, from its tensors; the rest as for `read_base`."""
    embed_VD = tensors("model.embed_tokens.weight")
    shape = _shape(config, embed_VD, kv_bytes, most_tokens)
    kinds = sorted(set(config.turn_kinds))
    read = _Layers(config, tensors, kinds, nf4=nf4)
    layers = [read(index) for index in range(shape.layers)]
    norm_D = read.norm("model.norm.weight")
    head = Linear(embed_VD if config.tie_word_embeddings else tensors("lm_head.weight"))
    tensors.done(tied=config.tie_word_embeddings)
    turns = [config.turn(kind, shape.context, shape.dtype) for kind in kinds]
    turns = [(cos_PR.to(shape.device), sin_PR.to(shape.device)) for cos_PR, sin_PR in turns]
    return Decoder(shape, layers, Ends(embed_VD=embed_VD, norm_D=norm_D, head=head, turns=turns))


def weight_bytes(decoder: Decoder) -> int:
    """Bytes of the weights on the device; tied weights count once, unless the head's are packed."""
    ends = decoder.ends
    vectors = [ends.norm_D]
    held = sum(linear.bytes for layer in decoder.layers for linear in layer.sites)
    for layer in decoder.layers:
        norms = (layer.norm_in_D, layer.norm_attended_D, layer.norm_mlp_D, layer.norm_fed_D)
        vectors += [vector for vector in (*norms, layer.q_norm_E, layer.k_norm_E) if vector is not None]
    held += sum(vector.numel() * vector.element_size() for vector in vectors)
    embed = ends.embed_VD.numel() * ends.embed_VD.element_size()
    return held + embed + (0 if ends.head.shares(ends.embed_VD) else ends.head.bytes)


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
        left = {name for name in self._unused if not name.endswith("rotary_emb.inv_freq")}
        if tied:
            left.discard("lm_head.weight")
        if left:
            raise unsupported(f"tensor {min(left)!r} and {len(left) - 1} more have no place in this architecture")


class _Layers:
    """Reads one block at a time, so that no more than one is held twice."""

    def __init__(self, config: Config, tensors: Tensors, kinds: list[str], *, nf4: bool) -> None:
        self._config, self._tensors, self._nf4 = config, tensors, nf4
        self._windows, self._turns = config.windows, [kinds.index(kind) for kind in config.turn_kinds]

    def __call__(self, index: int) -> Layer:
        at = f"model.layers.{index}."
        attention, mlp, gemma = f"{at}self_attn.", f"{at}mlp.", self._config.gemma
        return Layer(
            norm_in_D=self.norm(f"{at}input_layernorm.weight"),
            qkv=self._linear(f"{attention}qkv", *(f"{attention}{name}" for name in "qkv")),
            q_norm_E=self._maybe_norm(f"{attention}q_norm.weight"),
            k_norm_E=self._maybe_norm(f"{attention}k_norm.weight"),
            o=self._linear("", f"{attention}o"),
            norm_attended_D=self.norm(f"{at}post_attention_layernorm.weight") if gemma else None,
            norm_mlp_D=self.norm(f"{at}{'pre_feedforward' if gemma else 'post_attention'}_layernorm.weight"),
            gate_up=self._linear(f"{mlp}gate_up", f"{mlp}gate", f"{mlp}up"),
            down=self._linear("", f"{mlp}down"),
            norm_fed_D=self.norm(f"{at}post_feedforward_layernorm.weight") if gemma else None,
            window=self._windows[index],
            turn=self._turns[index],
        )

    def norm(self, name: str) -> Tensor:
        weight_D = self._tensors(name)
        return weight_D + 1 if self._config.gemma else weight_D

    def _maybe_norm(self, name: str) -> Tensor | None:
        weight_D = self._tensors.maybe(name)
        return weight_D + 1 if weight_D is not None and self._config.gemma else weight_D

    def _linear(self, fused: str, *names: str) -> Linear:
        """The product that several layers make together; some families keep it as one."""
        whole = self._tensors.maybe(f"{fused}_proj.weight") if fused else None
        if whole is not None:
            return Linear(self._stacked([whole]), self._tensors.maybe(f"{fused}_proj.bias"))
        weights = [self._tensors(f"{name}_proj.weight") for name in names]
        found = [self._tensors.maybe(f"{name}_proj.bias") for name in names]
        biases = [bias for bias in found if bias is not None]
        if biases and len(biases) < len(found):
            raise unsupported(f"only some of {', '.join(names)} have a bias")
        return Linear(self._stacked(weights), torch.cat(biases) if biases else None)

    def _stacked(self, weights: list[Tensor]) -> Tensor | Nf4:
        if self._nf4:
            return Nf4(weights)
        return weights[0] if len(weights) == 1 else torch.cat(weights)


def auto_dtype(dtype: str, device: torch.device) -> str:
    """The name of the type of weights that `auto` means on a device."""
    if dtype != "auto":
        return dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def _shape(config: Config, embed_VD: Tensor, kv_bytes: int, most_tokens: int) -> Shape:
    heads = config.num_attention_heads
    shape = Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        key_heads=config.num_key_value_heads or heads,
        head=config.head,
        turned=config.turned,
        scale=config.scale,
        embed_scale=float(config.hidden_size**0.5) if config.gemma else 1.0,
        feed_forward=config.intermediate_size,
        activation=config.activation,
        vocabulary=embed_VD.shape[0],
        epsilon=config.rms_norm_eps,
        context=config.context,
        dtype=embed_VD.dtype,
        device=embed_VD.device,
    )
    longest = kv_bytes // (BLOCK * shape.kv_bytes_per_token) * BLOCK
    if not longest:
        raise Invalid(f"adapters.kv_bytes {kv_bytes} holds no row of this base; raise it", code="bad_config")
    return replace(shape, context=min(shape.context, longest, most_tokens or longest))
