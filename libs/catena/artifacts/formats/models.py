"""A base model's folder as its configuration and its tensors, for everything here that reads weights.

`Weights` is what a writer needs; a base has it, and so has a base with an adapter merged into it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from catena.artifacts import tensors
from catena.artifacts.base import CONFIG, check_base
from catena.artifacts.files import PlainFile, list_files
from catena.artifacts.formats.arrays import Floats, load
from catena.artifacts.refusal import refused
from catena.artifacts.tensors import TensorInfo
from catena.kit.errors import Invalid

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of `config.json` shapes a conversion; names as transformers writes them, defaults as its Llama has them."""

    model_type: str
    hidden_act: str = "silu"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def context(self) -> int:
        """Positions within which a sliding attention is a plain one."""
        # Qwen names a window even where it does not use it; for Mistral there is no such switch.
        slides = self.model_type == "mistral" if self.use_sliding_window is None else self.use_sliding_window
        window = self.sliding_window if slides and self.sliding_window else self.max_position_embeddings
        return min(self.max_position_embeddings, window)

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary embedding's rules, old and new spelling, always with `rope_theta` and `rope_type`."""
        rules = {"rope_theta": self.rope_theta} | (self.rope_scaling or {}) | (self.rope_parameters or {})
        return rules | {"rope_type": rules.get("rope_type", rules.get("type", "default"))}


class Weights(Protocol):
    """Tensors by transformers' names; values are computed or read when asked for."""

    @property
    def config(self) -> Config:
        """The base's configuration."""

    @property
    def folder(self) -> Path:
        """Where the base's other files are."""

    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""

    def info(self, name: str) -> TensorInfo:
        """Shape and stored type."""

    def values(self, name: str) -> Floats:
        """The values. Raises Refused for a tensor that holds no floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base that passed the gate. `shape` is its linear layers as (inputs, outputs), see `CheckedBase`."""

    folder: Path
    digest: str
    config: Config
    shape: Mapping[str, tuple[int, int]] = field(repr=False)
    held: Mapping[str, tuple[PlainFile, TensorInfo]] = field(repr=False)

    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self.held)

    def info(self, name: str) -> TensorInfo:
        """Shape and stored type."""
        return self.held[name][1]

    def values(self, name: str) -> Floats:
        """The values of one tensor."""
        return load(*self.held[name], kind="base")


def open_base(folder: Path) -> BaseModel:
    """The base in a folder, passed through the gate. Raises what `check_base` does, and Invalid as `read_config`."""
    checked = check_base(folder)
    files = list_files(folder, "base")
    held = {
        name: (file, info)
        for file in files.values()
        if file.name.endswith(".safetensors")
        for name, info in tensors.read_header(file, "base").items()
    }
    config = read_config(folder)
    # A model that ties its ends may still hold the head: a copy that nothing reads.
    dead = {"lm_head.weight"} if config.tie_word_embeddings else set()
    held = {n: entry for n, entry in held.items() if n not in dead and not n.endswith("rotary_emb.inv_freq")}
    shape = {name: size for name, size in checked.shape.items() if f"{name}.weight" in held}
    return BaseModel(folder=folder, digest=checked.digest, config=config, shape=shape, held=held)


def read_config(folder: Path) -> Config:
    """The configuration of a Llama, Mistral, Qwen2 or Qwen3 base.

    Raises Invalid (`unsupported_architecture`) for another family, Refused (`base_bad_config`) when it cannot be read.
    """
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise refused("base", "bad_config", f"{CONFIG} of {folder.name}: {error}; save the base again") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise unsupported(f"{folder.name} is a {config.model_type!r} model; {known} can be converted")
    if config.hidden_act != "silu":
        raise unsupported(f"{folder.name} uses {config.hidden_act!r}; only silu can be converted")
    return config


def unsupported(message: str) -> Invalid:
    """What no conversion here can express, so that none gets it wrong."""
    return Invalid(message, code="unsupported_architecture")
