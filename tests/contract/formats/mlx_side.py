"""Run by MLX's own Python: load a model, perhaps with an adapter, or make an adapter; tell log-probabilities as JSON.

Arguments: the model's folder, the adapter's folder or "", and, to make a random one there first, `lora` or `dora`.
Reads lists of tokens from standard input.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

PARAMETERS = {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]}


def make(model: nn.Module, folder: Path, kind: str) -> None:
    """What `mlx_lm.lora` leaves after training the last layer, with random factors."""
    mx.random.seed(3)
    model.freeze()
    linear_to_lora_layers(model, 1, PARAMETERS, use_dora=kind == "dora")
    tensors = {}
    for name, values in tree_flatten(model.trainable_parameters()):
        noise = mx.random.normal(values.shape)
        tensors[name] = values * (1 + 0.2 * noise) if name.endswith(".m") else 0.1 * noise
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": PARAMETERS, "iters": 60}
    (folder / "adapter_config.json").write_text(json.dumps(config))


base, adapter, *kinds = sys.argv[1:]
for kind in kinds:
    make(load(base)[0], Path(adapter), kind)
model = load(base, adapter_path=adapter or None)[0]
told = []
for tokens in json.load(sys.stdin):
    logits = model(mx.array([tokens]))[0, -1].astype(mx.float32)
    told.append((logits - mx.logsumexp(logits)).tolist())
sys.stdout.write(json.dumps(told))
