"""Folders really saved by PEFT pass the gate, and what the gate computes is what PEFT computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catena.artifacts import manifest
from catena.artifacts.base import check_base
from catena.artifacts.gate import Checked
from catena.artifacts.manifest import Manifest
from catena.kit.errors import Invalid

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": "all-linear"},
        {"task_type": None},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"up_proj": 5}},
    ],
    ids=["lora", "rslora", "dora", "all-linear", "no task", "patterns"],
)
def test_a_folder_saved_by_peft_passes_with_pefts_own_scales(
    kind: dict[str, object], tmp_path: Path, reseal: Callable[..., Manifest], check: Callable[..., Checked]
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    base = check_base(tmp_path / "base")
    options = {"target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"], "task_type": "CAUSAL_LM"} | kind
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options))
    adapted.save_pretrained(tmp_path / "adapter")
    reseal(tmp_path / "adapter", base_digest=base.digest)

    checked = check(tmp_path / "adapter", base_digest=base.digest, shape=base.shape)

    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in adapted.named_modules()
        if isinstance(layer, peft.tuners.lora.Linear)
    }
    assert set(checked.modules) == set(layers)
    for name, layer in layers.items():
        module = checked.modules[name]
        assert module.rank == layer.r["default"]
        assert module.scale == pytest.approx(layer.scaling["default"])
        assert (module.inputs, module.outputs) == (layer.in_features, layer.out_features)
    assert checked.bytes == sum(p.numel() * p.element_size() for n, p in adapted.named_parameters() if "lora_" in n)
    assert checked.dora == bool(kind.get("use_dora"))
    assert manifest.read(tmp_path / "adapter").digest == checked.digest


def test_a_folder_saved_by_peft_for_another_task_is_refused_even_where_it_names_none(
    tmp_path: Path, reseal: Callable[..., Manifest], check: Callable[..., Checked]
) -> None:
    config = tiny_model().config
    classifier = transformers.LlamaForSequenceClassification(config)
    adapted = peft.get_peft_model(classifier, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    reseal(tmp_path / "adapter")
    with pytest.raises(Invalid, match="LlamaForSequenceClassification"):
        check(tmp_path / "adapter")
