"""A small adapter folder as PEFT saves one, made with numpy alone."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from catena.artifacts.manifest import Manifest, Training

BASE_DIGEST = "ba5e" * 16
RANK = 4
SHAPE = {
    f"model.layers.{layer}.{module}": size
    for layer in range(2)
    for module, size in {
        "self_attn.q_proj": (32, 32),
        "self_attn.v_proj": (32, 16),
        "mlp.down_proj": (48, 32),
    }.items()
}
TARGETS = ["q_proj", "v_proj"]


def peft_config(**changes: object) -> dict[str, object]:
    config: dict[str, object] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "demo-small",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.1,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": TARGETS,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    return config | changes


def lora_tensors(rank: int = RANK, dtype: type[np.generic] = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    made = {}
    for module, (inputs, outputs) in SHAPE.items():
        if module.rpartition(".")[2] in TARGETS:
            made[f"base_model.model.{module}.lora_A.weight"] = rng.normal(size=(rank, inputs)).astype(dtype)
            made[f"base_model.model.{module}.lora_B.weight"] = rng.normal(size=(outputs, rank)).astype(dtype)
    return made


def write_config(folder: Path, **changes: object) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(**changes), indent=2, sort_keys=True))


def write_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def demo_manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "swapcase",
        "version": "1.0.0",
        "base_name": "demo-small",
        "base_digest": BASE_DIGEST,
        "tasks": ("swapcase",),
        "rank": RANK,
        "alpha": 8.0,
        "target_modules": tuple(TARGETS),
        "training": Training(examples=200, steps=150, seed=1, data_digest="d" * 64),
        "metrics": {"accuracy": 0.96},
        "created_s": 1_800_000_000.0,
        "licence": "mit",
    }
    return Manifest(**(fields | changes))  # type: ignore[arg-type]
