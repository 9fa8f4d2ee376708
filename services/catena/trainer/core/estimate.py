"""What a job would take, told before it runs: steps, parameters, memory, time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catena.kit.errors import Invalid
from catena.trainer.core.spec import Peft

ADAM_BYTES = 16
"""Per trained parameter: weight, gradient and Adam's two moments, in float32."""
NF4_BITS = 4.127
"""Per weight with double quantisation (arXiv 2305.14314, section 3): 4 + 8/64 + 32/(64 * 256)."""
ACTIVATIONS_PER_LAYER = 34
"""Values kept per token, hidden unit and layer for the backward pass (arXiv 2205.05198, equation 1)."""
RUNTIME_BYTES = 400 * 1024 * 1024
PASSES = 6
"""Floating operations per parameter and token: two forward, four backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """A base as its files describe it. `shape` maps each matrix to (inputs, outputs); `item_bytes` is of one weight."""

    name: str
    folder: str
    digest: str
    architecture: str
    parameters: int
    item_bytes: float
    hidden: int
    layers: int
    vocabulary: int
    shape: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast this machine trains: `flops` a second, and seconds that each micro-batch costs however small."""

    flops: float = 2e10
    micro_batch_s: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The answer. Bytes at the peak, seconds in all."""

    steps: int
    rows: int
    memory_bytes: int
    memory_bytes_4bit: int
    duration_s: float
    trainable_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is trained: optimiser steps, rows, shape of the micro-batches, mean and longest row in tokens."""

    steps: int
    rows: int
    batch_size: int
    accumulation: int
    mean_tokens: float
    most_tokens: int


def block_linears(shape: Mapping[str, tuple[int, int]]) -> list[str]:
    """The names of the linears that repeat in every block, for example `q_proj`: the default targets."""
    names = {path.rpartition(".")[2] for path in shape if any(part.isdigit() for part in path.split("."))}
    return sorted(name for name in names if "embed" not in name and "norm" not in name)


def targets_of(peft: Peft, base: BaseFacts) -> tuple[str, ...]:
    """The module names to adapt. Raises Invalid when one matches nothing in the base."""
    known = block_linears(base.shape)
    for target in peft.targets:
        if not any(_matches(path, target) for path in base.shape):
            raise Invalid(
                f"target module {target!r} is not in base {base.name}; there are: {', '.join(known)}",
                code="unknown_target",
            )
    return peft.targets or tuple(known)


def trainable(peft: Peft, base: BaseFacts) -> int:
    """Parameters that LoRA adds: rank times (inputs + outputs) of each target, and DoRA's magnitudes."""
    targets = targets_of(peft, base)
    adapted = [size for path, size in base.shape.items() if any(_matches(path, target) for target in targets)]
    magnitudes = sum(outputs for _, outputs in adapted) if peft.method == "dora" else 0
    return peft.rank * sum(inputs + outputs for inputs, outputs in adapted) + magnitudes


def estimate(peft: Peft, base: BaseFacts, load: Load, speed: Speed) -> Estimate:
    """What training `load` on `base` takes."""
    added = trainable(peft, base)
    tokens = load.batch_size * load.most_tokens
    activations = tokens * base.hidden * base.layers * ACTIVATIONS_PER_LAYER
    logits = 3 * 4 * tokens * base.vocabulary
    around = added * ADAM_BYTES + activations + logits + RUNTIME_BYTES
    weights = base.parameters * base.item_bytes
    linears = sum(
        inputs * outputs for path, (inputs, outputs) in base.shape.items() if any(p.isdigit() for p in path.split("."))
    )
    small = (base.parameters - linears) * base.item_bytes + linears * NF4_BITS / 8
    all_tokens = load.steps * load.accumulation * load.batch_size * load.mean_tokens
    duration_s = PASSES * (base.parameters + added) * all_tokens / speed.flops
    return Estimate(
        steps=load.steps,
        rows=load.rows,
        memory_bytes=round(weights + around),
        memory_bytes_4bit=round(small + around),
        duration_s=duration_s + load.steps * load.accumulation * speed.micro_batch_s,
        trainable_parameters=added,
    )


def mean(values: Sequence[int]) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def _matches(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
