"""AdaLoRA comes in folded to plain LoRA, and answers as PEFT's own AdaLoRA does."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from catena.artifacts.base import check_base
from catena.artifacts.formats.imports import Naming, import_adapter
from catena.artifacts.formats.models import open_base
from catena.artifacts.gate import Rules, check_adapter
from catena.artifacts.refusal import Refused
from catena.artifacts.signature import make_key
from catena.kit.errors import CatenaError
from tests.contract.formats.making import ALL, make_base

RANK = 6
UNSEALED = Rules(require_manifest=False, require_signature=False)


def make_adalora(base: Path, folder: Path, *, pruned: bool) -> Path:
    """As PEFT saves it after training; pruned, with the ranks that its allocator left each layer."""
    torch.manual_seed(1)
    config = AdaLoraConfig(
        init_r=RANK, target_r=3, lora_alpha=16, target_modules=ALL, task_type="CAUSAL_LM", total_step=10
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    pattern: dict[str, list[bool]] = {}
    chance = random.Random(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "lora_E" in name:
            kept = [number == 0 or chance.random() < 0.5 for number in range(RANK)]
            parameter.data[~torch.tensor(kept)] = 0
            pattern[name.removeprefix("base_model.model.").removesuffix(".default")] = kept
    if pruned:
        model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(folder)
    return folder


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        told: torch.Tensor = model(torch.tensor([list(b"upper: hello, world")]), use_cache=False).logits
    return told


def taken_in(base: Path, source: Path, out: Path) -> Path:
    pair = make_key(out.parent / "keys")
    naming = Naming(name="mine", version="1", base_name="base")
    import_adapter(
        source, out, open_base(base), naming, private=pair.private, keys={"us": pair.public}, now_s=1_800_000_000.0
    )
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("pruned", [False, True], ids=["masked", "pruned"])
def test_a_folded_adapter_answers_as_pefts_adalora(base: Path, tmp_path: Path, pruned: bool) -> None:
    source = make_adalora(base, tmp_path / "source", pruned=pruned)

    folded = taken_in(base, source, tmp_path / "folded")

    config = json.loads((folded / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    before, after = logits(base, source), logits(base, folded)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        without = plain(torch.tensor([list(b"upper: hello, world")]), use_cache=False).logits
    assert (before - without).abs().max() > 0.1
    assert (before - after).abs().max() <= 1e-4 * before.abs().max()


def test_rows_that_say_nothing_are_left_out(base: Path, tmp_path: Path) -> None:
    folded = taken_in(base, make_adalora(base, tmp_path / "source", pruned=False), tmp_path / "folded")

    ranks = {
        len(values) for name, values in load_file(folded / "adapter_model.safetensors").items() if "lora_A" in name
    }
    assert max(ranks) <= RANK and min(ranks) < RANK
    assert min(ranks) > 0


def test_the_gate_names_the_cure_for_one_that_is_not_folded(base: Path, tmp_path: Path) -> None:
    source = make_adalora(base, tmp_path / "source", pruned=True)
    (source / "README.md").unlink()
    checked = check_base(base)

    with pytest.raises(CatenaError) as caught:
        check_adapter(source, base_digest=checked.digest, shape=checked.shape, keys={}, rules=UNSEALED)

    assert "`catena adapters import` folds ADALORA" in caught.value.message


def lose_a_part(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(next(name for name in weights if name.endswith("lora_E")))


def lose_a_layer(weights: dict[str, torch.Tensor]) -> None:
    path = next(iter(weights)).rpartition(".")[0]
    for name in [name for name in weights if name.startswith(f"{path}.")]:
        weights.pop(name)


def mix_ranks(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("lora_E"))
    weights[name] = weights[name][:1].clone()


def add_another(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.lm_head.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lose_a_part, "adapter_incomplete"),
        (lose_a_layer, "adapter_incomplete"),
        (mix_ranks, "adapter_bad_tensor"),
        (add_another, "adapter_bad_tensor"),
    ],
)
def test_a_spoilt_one_is_refused_and_leaves_nothing(base: Path, tmp_path: Path, spoil: Any, code: str) -> None:
    source = make_adalora(base, tmp_path / "source", pruned=False)
    weights = load_file(source / "adapter_model.safetensors")
    spoil(weights)
    save_file(weights, source / "adapter_model.safetensors")

    with pytest.raises(Refused) as caught:
        taken_in(base, source, tmp_path / "folded")

    assert caught.value.code == code
    assert not (tmp_path / "folded").exists()
