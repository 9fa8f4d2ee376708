"""AdaLoRA folded to plain LoRA: its singular values go into A, its own way of scaling into the scale.

AdaLoRA (arXiv 2303.10512) learns P diag(E) Q and prunes entries of E; PEFT stores Q as A, P as B, and multiplies by
alpha / (init_r + 1e-5), however many rows were left of init_r. Rows whose E is 0 say nothing and are left out.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from catena.artifacts import lora, tensors
from catena.artifacts.files import CONFIG, WEIGHTS, list_files, read_small
from catena.artifacts.formats.arrays import Floats, load
from catena.artifacts.formats.factors import Factors, LoraWeights, check_fit
from catena.artifacts.gate import MAX_CONFIG_BYTES, PREFIX, BaseShape, Rules
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object

KIND = "ADALORA"
OWN = frozenset(
    {
        *("beta1", "beta2", "deltaT", "init_r", "orth_reg_weight", "rank_pattern", "target_r", "tfinal", "tinit"),
        "total_step",
    }
)
"""Keys that only training acts upon, but for the pattern, which the stored rows say better."""
PARTS = ("lora_A", "lora_B", "lora_E")


def is_adalora(folder: Path) -> bool:
    """Whether a folder's configuration says so. Raises Refused where it cannot be read."""
    files = list_files(folder, "adapter")
    if CONFIG not in files or WEIGHTS not in files:
        return False
    tree = read_object(read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter"), CONFIG, "adapter", "bad_config")
    return tree.get("peft_type") == KIND


def read_adalora(folder: Path, shape: BaseShape) -> LoraWeights:
    """PEFT's folder of an AdaLoRA adapter as plain LoRA. Raises Refused as `read_peft` does."""
    files, rules = list_files(folder, "adapter"), Rules()
    tree = read_object(read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter"), CONFIG, "adapter", "bad_config")
    plain = {key: value for key, value in tree.items() if key not in OWN} | {"peft_type": "LORA"}
    config = lora.read_config(msgspec.json.encode(plain), max_rank=rules.max_rank, max_alpha=rules.max_alpha)
    if config.dora or config.rslora or config.alpha_pattern:
        raise refused("adapter", "bad_config", f"{CONFIG}: AdaLoRA has no DoRA, rsLoRA or alpha_pattern; train it anew")
    header = tensors.read_header(files[WEIGHTS])
    tensors.check_finite(files[WEIGHTS], header)
    grouped: dict[str, dict[str, Floats]] = {}
    for name, info in header.items():
        path, _, part = name.removeprefix(PREFIX).rpartition(".")
        if not name.startswith(PREFIX) or part not in PARTS:
            raise refused("adapter", "bad_tensor", f"tensor {name[:200]!r} is no part of an AdaLoRA; export without it")
        grouped.setdefault(path, {})[part] = load(files[WEIGHTS], info)
    rank = tree.get("init_r")
    if type(rank) is not int or not 1 <= rank <= rules.max_rank:
        raise refused("adapter", "bad_rank", f"{CONFIG}: init_r {rank!r}; 1 to {rules.max_rank} is meant")
    scale = config.alpha / (rank + 1e-5)
    folded = {path: _folded(path, parts, scale) for path, parts in sorted(grouped.items())}
    modules = {path: factors for path, factors in folded.items() if factors.rank}
    missing = [path for path in shape if config.targets_module(path) and path not in grouped]
    if missing:
        raise refused("adapter", "incomplete", f"{WEIGHTS} has no tensors for {missing[0]!r}, which is targeted")
    return check_fit(LoraWeights(modules=modules, dtype=next(iter(header.values())).dtype), shape, folder.name)


def _folded(path: str, parts: Mapping[str, Floats], scale: float) -> Factors:
    if set(parts) != set(PARTS):
        raise refused("adapter", "incomplete", f"{path!r} lacks one of {', '.join(PARTS)}; export it again")
    A_RI, B_OR, E_R1 = (parts[part] for part in PARTS)
    rank = len(A_RI)
    if A_RI.ndim != 2 or B_OR.ndim != 2 or B_OR.shape[1] != rank or E_R1.shape != (rank, 1):
        raise refused("adapter", "bad_tensor", f"{path!r} has factors of differing ranks; export it again")
    kept = np.flatnonzero(E_R1[:, 0])
    return Factors(
        A_RI=np.ascontiguousarray((A_RI * E_R1)[kept]),
        B_OR=np.ascontiguousarray(B_OR[:, kept]),
        scale=scale,
    )
