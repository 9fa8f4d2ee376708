import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from catena.artifacts import manifest, signature
from catena.artifacts.base import check_base
from catena.artifacts.keys import KeyPair
from catena.artifacts.manifest import Manifest
from catena.artifacts.migration import Move, Pair, Strategies, Strategy, migrate, read_strategies
from catena.kit.errors import CatenaError, Invalid
from tests.unit.artifacts.folders import SHAPE, demo_manifest, lora_tensors, write_config, write_tensors


def make_base(folder: Path, *, seed: int = 1, **changes: int) -> Path:
    """A base of the test adapter's shape; `changes` give layers values of another seed."""
    folder.mkdir()
    held = {}
    for number, (module, (inputs, outputs)) in enumerate(SHAPE.items()):
        name = module.rpartition(".")[2]
        rng = np.random.default_rng([changes.get(name, seed), number])
        held[f"{module}.weight"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Bench:
    def __init__(self, root: Path, key: KeyPair) -> None:
        self.root = root
        self.key = key
        self.base = make_base(root / "base")

    def adapter(self, name: Callable[[str], str] = str, *, version: str = "1", **config: object) -> Path:
        folder = self.root / "old"
        folder.mkdir()
        write_config(folder, **config)
        write_tensors(folder, {name(key): values for key, values in lora_tensors().items()})
        digest = check_base(self.base).digest
        manifest.seal(folder, demo_manifest(version=version, base_digest=digest))
        signature.sign(folder, self.key.private)
        return folder

    def migrate(self, source: Path, *, to: str = "2", **move: object) -> Manifest:
        folder = self.root / "new"
        folder.mkdir()
        told = Move(version=to, **({"base": self.base} | move))  # type: ignore[arg-type]
        checked = migrate(source, folder, told, private=self.key.private, keys={"trainer": self.key.public})
        assert checked.manifest is not None
        return checked.manifest


@pytest.fixture
def bench(tmp_path: Path, key: KeyPair) -> Bench:
    return Bench(tmp_path, key)


def in_memory(name: str) -> str:
    return name.replace(".weight", ".default.weight")


def without_prefix(name: str) -> str:
    return name.removeprefix("base_model.model.")


def doubly_wrapped(name: str) -> str:
    return f"module.base_model.model.{name}"


@pytest.mark.parametrize("spelling", [str, in_memory, without_prefix, doubly_wrapped])
def test_names_of_other_tools_and_times_become_todays_and_no_value_changes(
    bench: Bench, spelling: Callable[[str], str]
) -> None:
    source = bench.adapter(spelling)

    card = bench.migrate(source)

    moved = load_file(bench.root / "new" / "adapter_model.safetensors")
    expected = lora_tensors()
    assert moved.keys() == expected.keys()
    assert all(np.array_equal(moved[name], expected[name]) for name in expected)
    assert (card.version, card.parent_digest) == ("2", manifest.read(source).digest)


def test_a_strategy_named_for_the_two_versions_is_followed(bench: Bench) -> None:
    def old(name: str) -> str:
        return name.replace("self_attn.q_proj", "attention.wq").replace("self_attn.v_proj", "attention.wv")

    source = bench.adapter(old, target_modules=["wq", "wv"])
    names = Strategy(rename={"attention": "self_attn", "wq": "q_proj", "wv": "v_proj"})
    pair = Pair(adapter="swapcase", before="1", to="2", strategy="llama")
    told = Strategies(strategies={"llama": names}, pairs=[pair])

    card = bench.migrate(source, strategies=told)

    assert card.version == "2"
    assert load_file(bench.root / "new" / "adapter_model.safetensors").keys() == lora_tensors().keys()


def test_without_a_strategy_for_just_these_versions_an_unknown_layer_is_refused(bench: Bench) -> None:
    source = bench.adapter(lambda name: name.replace("q_proj", "wq"))
    other = Pair(adapter="swapcase", before="1", to="3", strategy="llama")
    told = Strategies(strategies={"llama": Strategy(rename={"wq": "q_proj"})}, pairs=[other])

    with pytest.raises(CatenaError, match="name a strategy") as caught:
        bench.migrate(source, strategies=told)

    assert caught.value.code == "adapter_bad_tensor"


def test_what_a_strategy_drops_is_gone_with_its_target(bench: Bench) -> None:
    told = Strategies(
        strategies={"less": Strategy(drop=("v_proj",))},
        pairs=[Pair(adapter="swapcase", before="1", to="2", strategy="less")],
    )

    bench.migrate(bench.adapter(), strategies=told)

    assert all("q_proj" in name for name in load_file(bench.root / "new" / "adapter_model.safetensors"))


def test_a_base_with_another_digest_must_hold_the_same_adapted_layers(bench: Bench) -> None:
    source = bench.adapter()
    beside = make_base(bench.root / "beside", down_proj=9)

    card = bench.migrate(source, base=beside, former=bench.base)

    assert card.base_digest == check_base(beside).digest != check_base(bench.base).digest


@pytest.mark.parametrize(
    ("former", "told"), [(None, "give that base"), ("base", "another one"), ("other", "trained on")]
)
def test_weights_are_never_guessed(bench: Bench, former: str | None, told: str) -> None:
    source = bench.adapter()
    other = make_base(bench.root / "other", q_proj=9)

    with pytest.raises(CatenaError, match=told) as caught:
        bench.migrate(source, base=other, former=bench.root / former if former else None)

    assert caught.value.code == "adapter_base_mismatch"


def test_what_was_tampered_with_is_not_signed_anew(bench: Bench) -> None:
    source = bench.adapter()
    write_tensors(source, {name: 2 * values for name, values in lora_tensors().items()})
    with pytest.raises(CatenaError) as tampered:
        bench.migrate(source)
    (bench.root / "new").rmdir()
    manifest.seal(source, manifest.read(source))
    with pytest.raises(CatenaError) as resealed:
        bench.migrate(source)

    assert tampered.value.code == "adapter_tampered"
    assert resealed.value.code.startswith("adapter_")


def test_strategies_are_read_from_a_file_and_its_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "migrations.yaml"
    path.write_text("""
strategies: {llama: {rename: {wq: q_proj}}}
pairs: [{adapter: code, from: "1", to: "2", strategy: llama}, {adapter: code, from: "2", to: "3", strategy: absent}]
""")
    told = read_strategies(path)

    found = told.find("code", "1", "2")
    assert found is not None and found.module("layers.0.wq") == "layers.0.q_proj"
    assert told.find("code", "1", "3") is None
    with pytest.raises(Invalid, match="absent"):
        told.find("code", "2", "3")
    path.write_text("strategies: {llama: {renam: {}}}")
    with pytest.raises(Invalid, match="renam"):
        read_strategies(path)
