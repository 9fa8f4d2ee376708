"""The base with a fresh adapter on it, and the adapter's way out: an ordinary PEFT folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from catena.kit.errors import Invalid
from catena.trainer.core.order import Order
from catena.trainer.core.spec import Peft

CONFIG = "adapter_config.json"
CARD = "README.md"


def choose_device(asked: str) -> torch.device:
    """`auto`: a GPU where there is one. Raises Invalid when `cuda` is insisted upon and absent."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise Invalid("trainer.device is cuda, but there is no GPU here; set it to auto or cpu", code="no_gpu")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def load(order: Order, device: torch.device) -> tuple[Any, Any]:
    """The base under a new adapter, and its tokenizer; from the folder alone, never from a hub.

    Weights are float32 on a CPU and bfloat16 on a GPU; the adapter's own are float32.
    """
    folder = order.base_folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise Invalid(f"base {order.base} has no chat template; add chat_template.jinja to it", code="no_template")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
    torch.manual_seed(order.training.seed)
    return get_peft_model(base, lora_config(order.peft)).to(device), tokenizer


def lora_config(peft: Peft) -> LoraConfig:
    """PEFT's configuration of what was asked; every target is a plain name."""
    return LoraConfig(
        r=peft.rank,
        lora_alpha=peft.alpha,  # type: ignore[arg-type]  # annotated int, any number works
        lora_dropout=peft.dropout,
        target_modules=list(peft.targets),
        use_rslora=peft.method == "rslora",
        use_dora=peft.method == "dora",
        task_type="CAUSAL_LM",
    )


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def most_tokens(model: Any, asked: int) -> int:
    """The longest row that both the order and the base's context allow."""
    return min(asked, getattr(model.config, "max_position_embeddings", asked) or asked)


def export(model: Any, order: Order, folder: Path) -> None:
    """Write the adapter to `folder`, whole or not at all; equal weights give equal bytes."""
    made = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made, save_embedding_layers=False)
    (made / CARD).unlink(missing_ok=True)
    config = json.loads((made / CONFIG).read_text())
    config |= {"base_model_name_or_path": order.base, "target_modules": sorted(config["target_modules"])}
    (made / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(made, folder)
