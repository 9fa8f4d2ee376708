"""MLX answers with a converted adapter as PEFT does, and the other way round.

MLX is 350 MB, so it lives in an environment of its own: `CATENA_MLX_PYTHON` names its Python (`pip install "mlx[cpu]"
mlx-lm`). Without it only the files' own round trip is tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from catena.artifacts.formats.factors import LoraWeights, read_peft, write_peft
from catena.artifacts.formats.mlx_adapter import read_mlx, write_mlx
from catena.artifacts.formats.models import open_base
from tests.contract.formats.making import TOKENS, logprobs, make_adapter, make_base

PYTHON = os.environ.get("CATENA_MLX_PYTHON", "")
EXACT = 1e-4
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16}, "alpha_pattern": {"k_proj": 5}},
    "dora": {"use_dora": True},
}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp(request.param) / "base", request.param)


def mlx_logprobs(base: Path, adapter: Path | str, *more: str) -> list[np.ndarray]:
    if not PYTHON:
        pytest.skip("CATENA_MLX_PYTHON names no Python with mlx_lm")
    asked = [PYTHON, str(Path(__file__).with_name("mlx_side.py")), str(base), str(adapter), *more]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(asked, input=json.dumps(TOKENS), capture_output=True, text=True, timeout=120, env=alone)
    assert said.returncode == 0, said.stderr
    return [np.array(row) for row in json.loads(said.stdout)]


def largest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


def written(adapter: LoraWeights, folder: Path) -> Path:
    folder.mkdir()
    write_mlx(adapter, folder)
    return folder


@pytest.mark.peer
@pytest.mark.parametrize("kind", KINDS)
def test_mlx_answers_with_a_converted_adapter_as_peft_does(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    converted = written(read_peft(adapter, open_base(base).shape), tmp_path / "mlx")
    wanted = logprobs(base, TOKENS, adapter)
    found = largest(mlx_logprobs(base, converted), wanted)
    sys.stdout.write(f"peft -> mlx {kind}: {found:.1e}\n")
    assert found < EXACT
    assert largest(wanted, logprobs(base, TOKENS)) > 100 * EXACT


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_answers_with_what_mlx_trained_as_mlx_does(base: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "mlx").mkdir()
    wanted = mlx_logprobs(base, tmp_path / "mlx", kind)
    shape = open_base(base).shape
    adapter = read_mlx(tmp_path / "mlx", shape)
    assert adapter.dora == (kind == "dora")
    assert all(path.startswith("model.layers.1.") for path in adapter.modules)
    (tmp_path / "peft").mkdir()
    write_peft(adapter, tmp_path / "peft", shape, base_name="m")
    found = largest(logprobs(base, TOKENS, tmp_path / "peft"), wanted)
    sys.stdout.write(f"mlx -> peft {kind}: {found:.1e}\n")
    assert found < EXACT


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_goes_to_mlx_and_back_without_losing_a_bit(base: Path, tmp_path: Path, kind: str) -> None:
    shape = open_base(base).shape
    told = read_peft(make_adapter(base, tmp_path / "adapter", **KINDS[kind]), shape)
    back = read_mlx(written(told, tmp_path / "mlx"), shape)
    assert back.modules.keys() == told.modules.keys()
    for path, before in told.modules.items():
        after = back.modules[path]
        assert after.scale == before.scale
        assert np.array_equal(after.A_RI, before.A_RI)
        assert np.array_equal(after.B_OR, before.B_OR)
        assert (after.magnitude_O is None) == (before.magnitude_O is None)
        assert after.magnitude_O is None or np.array_equal(after.magnitude_O, before.magnitude_O)
