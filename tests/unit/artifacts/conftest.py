"""Adapter folders to check and tamper with, and keys to sign them with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from catena.artifacts import manifest, signature
from catena.artifacts.gate import Checked, Rules, check_adapter
from catena.artifacts.keys import KeyPair
from catena.artifacts.manifest import Manifest
from tests.unit.artifacts.folders import BASE_DIGEST, SHAPE, demo_manifest, lora_tensors, write_config, write_tensors


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return signature.make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with configuration and weights only, as PEFT leaves it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_config(folder)
    write_tensors(folder, lora_tensors())
    return folder


@pytest.fixture
def reseal(key: KeyPair) -> Callable[..., Manifest]:
    """Seal and sign a folder again, so that only what a test changed is wrong with it."""

    def run(folder: Path, **changes: object) -> Manifest:
        sealed = manifest.seal(folder, demo_manifest(**changes))
        signature.sign(folder, key.private)
        return sealed

    return run


@pytest.fixture
def sealed(bare: Path, reseal: Callable[..., Manifest]) -> Path:
    """A whole adapter: configuration, weights, manifest, card, signature."""
    reseal(bare)
    return bare


@pytest.fixture
def check(key: KeyPair) -> Callable[..., Checked]:
    """The gate with the test's base and key."""

    def run(folder: Path, **changes: object) -> Checked:
        arguments: dict[str, object] = {"base_digest": BASE_DIGEST, "shape": SHAPE, "keys": {"trainer": key.public}}
        return check_adapter(folder, **(arguments | changes))  # type: ignore[arg-type]

    return run


@pytest.fixture
def unsigned() -> Rules:
    return Rules(require_signature=False, require_manifest=False)
