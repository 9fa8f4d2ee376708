"""`adapter_config.json` read strictly: what plain LoRA needs is validated, all else must stand at PEFT's default.

PEFT acts on many keys (it imports a module that one of them names, and treats others as regular expressions), so a key
is let through only if its value is known to do nothing. Defaults are those of PEFT 0.21.2.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

from catena.artifacts.files import CONFIG
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object

MAX_TARGETS = 4096
MAX_INVOCATION = 512
Value = TypeVar("Value", int, float)
# Names only: no character that a regular expression would act upon, but for dots, which PEFT lets match themselves.
MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z", re.ASCII)
TEXT = (str, type(None))
# What PEFT writes where no task was named: the class of the base, and where AutoPeftModel would import it from.
MAPPING = {
    "base_model_class": re.compile(r"[A-Za-z0-9]+ForCausalLM\Z", re.ASCII),
    "parent_library": re.compile(r"transformers\.models\.[a-z0-9_]+\.modeling_[a-z0-9_]+\Z", re.ASCII),
}
# Values with which each key does nothing; from PEFT's own saved configurations.
INERT: dict[str, tuple[object, ...]] = {
    "arrow_config": (None,),
    "bias": ("none",),
    "corda_config": (None,),
    "ensure_weight_tying": (False,),
    "eva_config": (None,),
    "exclude_modules": (None, []),
    "fan_in_fan_out": (False,),
    "inference_mode": (True, False),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "kasa_config": (None,),
    "layer_replication": (None,),
    "layers_pattern": (None, []),
    "layers_to_transform": (None, []),
    "loftq_config": ({}, None),
    "lora_bias": (False,),
    "lora_ga_config": (None,),
    "megatron_config": (None,),
    "megatron_core": ("megatron.core", None),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "peft_type": ("LORA",),
    "qalora_group_size": (16,),
    "target_parameters": (None, []),
    "task_type": ("CAUSAL_LM", None),
    "trainable_token_indices": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (False,),
    "velora_config": (None,),
}
# Never read by us: where a hub would look, which PEFT wrote the file. The base is known by digest alone.
IGNORED_TEXT = frozenset({"base_model_name_or_path", "peft_version", "revision"})
USED = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_dora",
        "use_rslora",
        "alora_invocation_tokens",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """What of an adapter's configuration matters when it answers.

    `invocation`: of an activated LoRA, the tokens from whose last occurrence on it acts (arXiv 2504.12397).
    """

    rank: int
    alpha: float
    targets: frozenset[str]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    dora: bool
    rslora: bool
    invocation: tuple[int, ...] = ()

    def targets_module(self, module: str) -> bool:
        """Whether PEFT would adapt the base's module of this path."""
        return not self.targets.isdisjoint(names_of(module))

    def rank_of(self, module: str) -> int:
        """The module's rank: the first pattern that names it, else the general one."""
        return _first(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The module's alpha, found as its rank is."""
        return _first(self.alpha_pattern, module, self.alpha)

    def scale_of(self, module: str) -> float:
        """What B A x is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732, equation 6)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)


def read_config(raw: bytes, *, max_rank: int, max_alpha: float) -> LoraConfig:
    """The configuration in `raw`. Raises Refused: `adapter_bad_rank` for rank and alpha, else `adapter_bad_config`."""
    tree = read_object(raw, CONFIG, "adapter", "bad_config")
    if tree.get("peft_type") != "LORA":
        cure = "only LORA is served; `catena adapters import` folds ADALORA to it"
        raise _bad(f"peft_type {_said(tree.get('peft_type'))}; {cure}")
    for key, value in tree.items():
        _check_inert(key, value)
    dropout = tree.get("lora_dropout", 0.0)
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise _bad(f"lora_dropout {_said(dropout)}; a share from 0 to 1 is meant")
    return LoraConfig(
        rank=_rank("r", tree.get("r"), max_rank),
        alpha=_alpha("lora_alpha", tree.get("lora_alpha"), max_alpha),
        targets=_targets(tree.get("target_modules")),
        rank_pattern={k: _rank(k, v, max_rank) for k, v in _pattern("rank_pattern", tree.get("rank_pattern"))},
        alpha_pattern={k: _alpha(k, v, max_alpha) for k, v in _pattern("alpha_pattern", tree.get("alpha_pattern"))},
        dora=_flag("use_dora", tree.get("use_dora", False)),
        rslora=_flag("use_rslora", tree.get("use_rslora", False)),
        invocation=_invocation(tree),
    )


def _invocation(tree: Mapping[str, object]) -> tuple[int, ...]:
    given = tree.get("alora_invocation_tokens")
    if given is None:
        return ()
    if not isinstance(given, list) or not 0 < len(given) <= MAX_INVOCATION:
        raise _bad(f"alora_invocation_tokens {_said(given)}; 1 to {MAX_INVOCATION} token numbers are meant")
    if any(type(token) is not int or not 0 <= token < 1 << 31 for token in given):
        raise _bad(f"alora_invocation_tokens {_said(given)}; token numbers are meant")
    if tree.get("use_dora"):
        raise _bad("an activated LoRA with use_dora; PEFT has no such adapter, train it as one of them")
    return tuple(given)


def _check_inert(key: str, value: object) -> None:
    if key in USED:
        return
    if key == "auto_mapping":
        _check_mapping(value)
        return
    if key in IGNORED_TEXT:
        if not isinstance(value, TEXT) or len(value or "") > 1000:
            raise _bad(f"{key} {_said(value)}; a short text or null is meant")
        return
    if key not in INERT:
        raise _bad(f"unknown key {key[:80]!r}; this gate knows the keys of PEFT 0.21.2, remove it")
    if not any(type(value) is type(inert) and value == inert for inert in INERT[key]):
        wanted = " or ".join(_said(inert) for inert in INERT[key])
        raise _bad(f"{key} is {_said(value)}; only {wanted} is served, export the adapter without it")


def _check_mapping(value: object) -> None:
    """A causal language model of transformers is what is served anyway; any other is another task, or a trap."""
    if value is None:
        return
    if (
        not isinstance(value, dict)
        or value.keys() != MAPPING.keys()
        or not all(isinstance(value[key], str) and form.match(value[key]) for key, form in MAPPING.items())
    ):
        raise _bad(f"auto_mapping is {_said(value)}; only a causal language model of transformers is served")


def _targets(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TARGETS:
        raise _bad(f"target_modules {_said(value)}; a list of module names is meant, never a pattern")
    for target in value:
        if not isinstance(target, str) or not MODULE.match(target):
            raise _bad(f"target_modules has {_said(target)}; plain module names are meant, never a pattern")
    return frozenset(value)


def _pattern(key: str, value: object) -> list[tuple[str, object]]:
    if value is None:
        return []
    if not isinstance(value, dict) or len(value) > MAX_TARGETS:
        raise _bad(f"{key} {_said(value)}; a mapping of module names is meant")
    for name in value:
        if not MODULE.match(name.removeprefix("^")):
            raise _bad(f"{key} has {_said(name)}; plain module names are meant, never a regular expression")
    return list(value.items())


def _rank(where: str, value: object, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        message = f"{CONFIG}: rank of {where[:200]!r} is {_said(value)}; 1 to {limit} is served, see adapters.max_rank"
        raise refused("adapter", "bad_rank", message)
    return value


def _alpha(where: str, value: object, limit: float) -> float:
    if not _is_number(value) or not 0 < value <= limit:
        message = f"{CONFIG}: alpha of {where[:200]!r} is {_said(value)}; above 0 and up to {limit:g} is served"
        raise refused("adapter", "bad_rank", message)
    return float(value)


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"{key} {_said(value)}; true or false is meant")
    return value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def names_of(module: str) -> list[str]:
    """Every name by which a target means this module: its whole path and each end of it that starts at a dot."""
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _first(pattern: Mapping[str, Value], module: str, otherwise: Value) -> Value:
    found = [key for key in (*names_of(module), f"^{module}") if key in pattern]
    if len(found) > 1:
        found.sort(key=list(pattern).index)
    return pattern[found[0]] if found else otherwise


def _said(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _bad(message: str) -> Exception:
    return refused("adapter", "bad_config", f"{CONFIG}: {message}")
