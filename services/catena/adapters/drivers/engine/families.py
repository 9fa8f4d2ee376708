"""What `config.json` says of a decoder of each family that this engine runs, and how its positions rotate.

Whatever else a configuration asks for is refused by name rather than computed wrongly.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from catena.kit.errors import Invalid

FAMILIES = frozenset({"gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})
ACTIVATIONS = frozenset({"silu", "gelu_pytorch_tanh"})
SLIDING = "sliding_attention"
UNTURNED = "none"
"""The rotation of layers that know no positions."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of `config.json` matters; names as transformers writes them, defaults as its Llama has them."""

    model_type: str = ""
    hidden_act: str = "silu"
    hidden_activation: str = ""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    original_max_position_embeddings: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    no_rope_layers: list[int] | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = None
    rope_theta: float = 10_000.0
    rope_local_base_freq: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    quantization_config: dict[str, Any] | None = None

    @property
    def gemma(self) -> bool:
        """Whether norms add one to their weights, embeddings are scaled, and additions have norms of their own."""
        return self.model_type == "gemma3_text"

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def activation(self) -> str:
        """Name of the feed-forward's activation."""
        return self.hidden_activation or self.hidden_act

    @property
    def scale(self) -> float:
        """What the attention's scores are multiplied by."""
        return float((self.query_pre_attn_scalar or self.head) ** -0.5)

    @property
    def windows(self) -> list[int]:
        """How far back each layer sees; 0: to the start."""
        # Qwen names a window even where it does not use it; for the others there is no such switch.
        if not self.sliding_window or self.use_sliding_window is False:
            return [0] * self.num_hidden_layers
        if self.layer_types is None:
            if self.use_sliding_window:
                raise unsupported("a sliding window without layer_types; save the base again with transformers 5")
            return [self.sliding_window] * self.num_hidden_layers
        return [self.sliding_window if kind == SLIDING else 0 for kind in self.layer_types]

    @property
    def turn_kinds(self) -> list[str]:
        """The name of each layer's rotation."""
        kinds = self.layer_types if self._by_kind and self.layer_types else [""] * self.num_hidden_layers
        turned = self.no_rope_layers or [1] * self.num_hidden_layers
        return [kind if turns else UNTURNED for kind, turns in zip(kinds, turned, strict=True)]

    @property
    def turned(self) -> int:
        """How much of a head rotates."""
        return int(self.head * float(self._rules("").get("partial_rotary_factor", self.partial_rotary_factor)))

    def turn(self, kind: str, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of one rotation by position, (P, R); the first half of the sines is negated."""
        if kind == UNTURNED:
            return torch.ones(tokens, self.turned, dtype=dtype), torch.zeros(tokens, self.turned, dtype=dtype)
        frequencies, factor = _frequencies(self._rules(kind), self.turned, self)
        angles = torch.outer(torch.arange(tokens, dtype=torch.float32), frequencies)
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)

    @property
    def context(self) -> int:
        """The most tokens that positions are known for."""
        rules = self._rules("")
        if _kind(rules) == "longrope":
            original = rules.get("original_max_position_embeddings") or self.original_max_position_embeddings
            # Beyond it the other factors apply, to all positions at once: keys already kept would be wrong.
            return min(self.max_position_embeddings, int(original or self.max_position_embeddings))
        return self.max_position_embeddings

    @property
    def _by_kind(self) -> bool:
        return any(isinstance(rules, dict) for rules in (self.rope_parameters or {}).values()) or (
            self.rope_local_base_freq is not None
        )

    def _rules(self, kind: str) -> dict[str, Any]:
        given = self.rope_parameters or {}
        if self._by_kind and self.rope_parameters:
            given = given.get(kind) or next(iter(given.values()))
        local = self.rope_local_base_freq if kind == SLIDING else None
        scaling = {} if local is not None else self.rope_scaling or {}
        return {"rope_theta": local or self.rope_theta} | scaling | given


def read_config(folder: Path) -> Config:
    """The folder's `config.json`. Raises Invalid (`unsupported_architecture`, `base_bad_config`)."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=Config)
    except msgspec.MsgspecError as error:
        raise Invalid(f"config.json of {folder.name}: {error}; save the base again", code="base_bad_config") from error
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise unsupported(f"{folder.name} is a {config.model_type or 'model of no type'}; this engine runs {known}")
    if config.activation not in ACTIVATIONS:
        raise unsupported(f"{folder.name} uses {config.activation}; this engine runs {', '.join(sorted(ACTIVATIONS))}")
    if config.quantization_config is not None:
        how = config.quantization_config.get("quant_method", "some way")
        raise Invalid(
            f"{folder.name} was saved quantised by {how}; serve the base that it was made from, with "
            "adapters.quantization set to nf4 for it",
            code="base_quantised",
        )
    if config.attn_logit_softcapping or config.final_logit_softcapping or config.use_bidirectional_attention:
        raise unsupported(f"{folder.name} caps its logits or looks ahead")
    return config


def unsupported(message: str) -> Invalid:
    """The refusal of a base that this engine would get wrong."""
    return Invalid(
        f"{message}; serve another base or put a server that knows it behind the executor",
        code="unsupported_architecture",
    )


def _kind(rules: Mapping[str, Any]) -> str:
    return str(rules.get("rope_type", rules.get("type", "default")))


def _frequencies(rules: Mapping[str, Any], part: int, config: Config) -> tuple[Tensor, float]:
    """Radians per position of each pair, and what sines and cosines are multiplied by."""
    kind = _kind(rules)
    plain = 1.0 / (float(rules["rope_theta"]) ** (torch.arange(0, part, 2, dtype=torch.float32) / part))
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / float(rules["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, rules), 1.0
    if kind == "longrope":
        return plain / torch.tensor(rules["short_factor"], dtype=torch.float32), _stretch(rules, config)
    raise unsupported(f"rotary embedding {kind!r}; this engine knows default, linear, llama3 and longrope")


def _llama3(plain: Tensor, rules: Mapping[str, Any]) -> Tensor:
    """Long waves slowed down, short ones kept, a smooth passage between; source: Llama 3.1's reference code."""
    low, high, length = (
        float(rules[key]) for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    waves = 2 * math.pi / plain
    share = ((length / waves - low) / (high - low)).clamp(0.0, 1.0)
    return share * plain + (1 - share) * plain / float(rules["factor"])


def _stretch(rules: Mapping[str, Any], config: Config) -> float:
    """LongRoPE's factor of the attention; source: arXiv 2402.13753, as transformers computes it."""
    given = rules.get("attention_factor")
    if given is not None:
        return float(given)
    original = float(rules.get("original_max_position_embeddings") or config.original_max_position_embeddings or 0)
    factor = float(rules.get("factor") or config.max_position_embeddings / original)
    return 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
