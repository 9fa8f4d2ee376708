"""An adapter as plain numbers, the form between all formats: y += scale B (A x), and DoRA's magnitudes.

PEFT folders are read and written here; `mlx_adapter` and `gguf_adapter` do it for the other two.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from catena.artifacts import gate, lora, tensors
from catena.artifacts.files import CONFIG, WEIGHTS, list_files, read_small
from catena.artifacts.formats.arrays import Floats, Planned, load, write_safetensors
from catena.artifacts.gate import MAX_CONFIG_BYTES, PREFIX, BaseShape, Rules
from catena.artifacts.refusal import refused
from catena.kit.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One adapted layer: A is (rank, inputs), B (outputs, rank), the magnitude (outputs,) or None without DoRA."""

    A_RI: Floats
    B_OR: Floats
    scale: float
    magnitude_O: Floats | None = None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.A_RI)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """An adapter's layers by module path of the base; `dtype` is the type in which they were stored.

    `invocation`: of an activated LoRA, the tokens from whose last occurrence on it acts; empty for any other.
    """

    modules: Mapping[str, Factors] = field(repr=False)
    dtype: str = "F32"
    invocation: tuple[int, ...] = ()

    @property
    def dora(self) -> bool:
        """Whether magnitudes are among them."""
        return any(factors.magnitude_O is not None for factors in self.modules.values())

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(factors.rank for factors in self.modules.values())


def read_peft(folder: Path, shape: BaseShape) -> LoraWeights:
    """A PEFT folder whose every tensor fits the base. Raises Refused as the gate does; signatures are left to it."""
    rules = Rules()
    files = list_files(folder, "adapter")
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise refused("adapter", "missing_file", f"{folder} has no {name}; save the adapter with PEFT")
    raw = read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter")
    config = lora.read_config(raw, max_rank=rules.max_rank, max_alpha=rules.max_alpha)
    header = tensors.read_header(files[WEIGHTS])
    matched = gate.match(header, config, shape)
    tensors.check_finite(files[WEIGHTS], header)
    modules = {
        path: Factors(
            A_RI=load(files[WEIGHTS], module.A),
            B_OR=load(files[WEIGHTS], module.B),
            scale=module.scale,
            magnitude_O=None if module.magnitude is None else load(files[WEIGHTS], module.magnitude),
        )
        for path, module in matched.items()
    }
    return LoraWeights(modules=modules, dtype=next(iter(header.values())).dtype, invocation=config.invocation)


def write_peft(adapter: LoraWeights, folder: Path, shape: BaseShape, *, base_name: str) -> None:
    """Write `adapter_config.json` and the weights into an empty folder; rsLoRA comes out as plain alphas."""
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(peft_config(adapter, shape, base_name))))
    plan = []
    for path, factors in adapter.modules.items():
        named = {"lora_A.weight": factors.A_RI, "lora_B.weight": factors.B_OR}
        if factors.magnitude_O is not None:
            named["lora_magnitude_vector"] = factors.magnitude_O
        plan += [_planned(f"{PREFIX}{path}.{part}", values, adapter.dtype) for part, values in named.items()]
    write_safetensors(folder / WEIGHTS, plan)


def peft_config(adapter: LoraWeights, shape: BaseShape, base_name: str) -> dict[str, Any]:
    """PEFT's configuration of an adapter; modules that differ from the most common rank or alpha have patterns."""
    ranks = {path: factors.rank for path, factors in adapter.modules.items()}
    alphas = {path: factors.scale * factors.rank for path, factors in adapter.modules.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": adapter.dora,
        "use_rslora": False,
        "target_modules": targets(adapter, shape),
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alora_invocation_tokens": list(adapter.invocation) or None,
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }


def targets(adapter: LoraWeights, shape: BaseShape) -> list[str]:
    """Names that mean exactly the adapted modules: last parts where all modules so named are, else whole paths."""
    named: set[str] = set()
    for path in adapter.modules:
        last = path.rpartition(".")[2]
        alike = {module for module in shape if module.rpartition(".")[2] == last}
        named.add(last if alike <= adapter.modules.keys() else path)
    return sorted(named)


def check_fit(adapter: LoraWeights, shape: BaseShape, where: str) -> LoraWeights:
    """The adapter, if every layer is one of the base's and has its sizes. Raises Refused, naming the layer."""
    if not adapter.modules:
        raise refused("adapter", "incomplete", f"{where} holds no LoRA factors; export it again")
    for path, factors in adapter.modules.items():
        if path not in shape:
            raise refused("adapter", "bad_tensor", f"{where}: the base has no linear layer {path!r}; name its own base")
        inputs, outputs = shape[path]
        wanted = ((factors.rank, inputs), (outputs, factors.rank), (outputs,))
        told = (factors.A_RI, factors.B_OR, factors.magnitude_O)
        for values, size in zip(told, wanted, strict=True):
            if values is not None and values.shape != size:
                message = f"{where}: {path!r} has a factor of {list(values.shape)}, this base needs {list(size)}"
                raise refused("adapter", "bad_tensor", f"{message}; name the base that it was trained on")
            if values is not None and not np.isfinite(values).all():
                raise refused("adapter", "not_finite", f"{where}: {path!r} holds NaN or infinity; train it again")
    return adapter


def must_act_always(adapter: LoraWeights, where: str) -> None:
    """Raises Invalid (`unsupported_adapter`) for an activated LoRA, which acts on a part of a prompt only."""
    if adapter.invocation:
        message = f"this is an activated LoRA, which {where} cannot keep from acting before its invocation"
        raise Invalid(f"{message}; serve it as it is, or export it to gguf", code="unsupported_adapter")


def even_scales(adapter: LoraWeights, *, by_rank: bool = False) -> tuple[float, dict[str, Floats]]:
    """One scale for formats that know but one, and each module's B with what is left of its own multiplied in.

    With `by_rank`, the number is an alpha: the format divides it by each module's rank. Where all modules agree, no B
    changes.
    """
    told = {path: f.scale * f.rank if by_rank else f.scale for path, f in adapter.modules.items()}
    common = Counter(told.values()).most_common(1)[0][0]
    return common, {
        path: factors.B_OR if told[path] == common else (factors.B_OR * (told[path] / common)).astype(np.float32)
        for path, factors in adapter.modules.items()
    }


def _planned(name: str, values: Floats, dtype: str) -> Planned:
    return Planned(name=name, shape=values.shape, dtype=dtype, make=lambda: values)
