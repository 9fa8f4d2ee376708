from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from catena.artifacts import manifest
from catena.artifacts.digest import folder_digest
from catena.artifacts.manifest import Manifest
from catena.kit.errors import Invalid
from tests.unit.artifacts.folders import demo_manifest, write_config


def test_a_sealed_folder_says_its_own_size_and_digest(bare: Path) -> None:
    sealed = manifest.seal(bare, demo_manifest())
    assert manifest.read(bare) == sealed
    assert sealed.digest == folder_digest(bare)
    assert sealed.bytes == (bare / "adapter_model.safetensors").stat().st_size
    assert manifest.seal(bare, sealed) == sealed


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../evil"},
        {"name": "Swap Case"},
        {"name": "a\n"},
        {"version": "latest"},
        {"version": "1.2"},
        {"digest": "xyz"},
        {"base_digest": "A" * 64},
        {"rank": 0},
        {"alpha": 0.0},
        {"bytes": -1},
        {"metrics": {"accuracy": float("nan")}},
        {"base_name": ""},
        {"format": 2},
    ],
)
def test_a_manifest_that_breaks_a_rule_is_not_written(bare: Path, changes: dict[str, object]) -> None:
    with pytest.raises(Invalid) as caught:
        manifest.write(bare, demo_manifest(**changes))
    assert caught.value.code == "adapter_bad_manifest"
    assert not (bare / "catena.json").exists()


def test_an_unknown_or_missing_field_is_named(bare: Path) -> None:
    tree = msgspec.to_builtins(demo_manifest())
    with pytest.raises(Invalid, match="colour"):
        manifest.decode(msgspec.json.encode(tree | {"colour": "red"}))
    with pytest.raises(Invalid, match="base_digest"):
        manifest.decode(msgspec.json.encode({k: v for k, v in tree.items() if k != "base_digest"}))
    with pytest.raises(Invalid) as caught:
        manifest.read(bare)
    assert caught.value.code == "adapter_missing_file"


def test_the_card_has_front_matter_figures_and_no_broken_tables() -> None:
    card = manifest.card(demo_manifest(digest="e" * 64, tasks=("a|b", "<b>"), description="Swaps the case."))
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "demo-small"
    assert front["license"] == "mit"
    for said in (
        "e" * 64,
        "200 examples, 150 steps, seed 1",
        "| accuracy | 0.96 |",
        "Swaps the case.",
        "a\\|b, &lt;b>",
    ):
        assert said in card


def test_documents_and_signature_do_not_count_for_the_digest_all_else_does(
    sealed: Path, reseal: Callable[..., Manifest]
) -> None:
    before = folder_digest(sealed)
    (sealed / "README.md").write_text("other words")
    (sealed / "LICENSE").write_text("MIT")
    (sealed / "model.sig").unlink()
    assert folder_digest(sealed) == before
    manifest.write(sealed, msgspec.structs.replace(manifest.read(sealed), digest=""))
    assert folder_digest(sealed) == before
    manifest.write(sealed, demo_manifest(version="1.0.1"))
    other = folder_digest(sealed)
    write_config(sealed, lora_alpha=9)
    assert len({before, other, folder_digest(sealed)}) == 3


def test_a_renamed_file_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert folder_digest(tmp_path) != before
