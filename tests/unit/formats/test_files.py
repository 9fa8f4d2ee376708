"""Files from strangers: what is wrong is named, and what is refused leaves nothing behind."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from catena.artifacts.files import PlainFile
from catena.artifacts.formats.arrays import Planned, load, narrow, widen, write_safetensors
from catena.artifacts.formats.factors import Factors, LoraWeights, check_fit, even_scales, peft_config, targets
from catena.artifacts.formats.gguf_file import GgufFile, shortest, write_gguf
from catena.artifacts.formats.gguf_names import halves, pairs
from catena.artifacts.formats.imports import format_of, import_base
from catena.artifacts.formats.mlx_adapter import read_mlx, write_mlx
from catena.artifacts.formats.placing import new_file, new_folder
from catena.artifacts.tensors import read_header
from catena.kit.errors import CatenaError

pytestmark = pytest.mark.unit
SHAPE = {f"model.layers.{layer}.self_attn.{name}": (32, 16) for layer in range(2) for name in ("q_proj", "v_proj")}
FIRST = "model.layers.0.self_attn.q_proj"
rng = np.random.default_rng(0)


def factors(rank: int = 4, scale: float = 2.0, *, dora: bool = False) -> Factors:
    return Factors(
        A_RI=rng.normal(size=(rank, 32)).astype(np.float32),
        B_OR=rng.normal(size=(16, rank)).astype(np.float32),
        scale=scale,
        magnitude_O=np.ones(16, np.float32) if dora else None,
    )


def planned(name: str, values: np.ndarray, dtype: str = "F32") -> Planned:
    return Planned(name=name, shape=values.shape, dtype=dtype, make=lambda: values)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_safetensors_are_written_as_their_own_reader_and_ours_expect(tmp_path, dtype):
    from safetensors import safe_open

    values = widen(narrow(rng.normal(size=(3, 5)).astype(np.float32), dtype), dtype)
    write_safetensors(tmp_path / "a", [planned("x", values, dtype), planned("y", values[0], dtype)])
    file = PlainFile(name="a", path=tmp_path / "a", size=(tmp_path / "a").stat().st_size)
    header = read_header(file)
    assert np.array_equal(load(file, header["x"]), values)
    assert np.array_equal(load(file, header["y"]), values[0])
    with safe_open(tmp_path / "a", framework="pt") as theirs:
        assert np.array_equal(theirs.get_tensor("x").float().numpy(), values)


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -2.5, 3.3895314e38], np.float32)
    torch = pytest.importorskip("torch")
    wanted = torch.tensor(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(widen(narrow(values, "BF16"), "BF16"), wanted)


@pytest.mark.parametrize("heads", [0, 1, 2, 4])
def test_heads_go_to_pairs_and_back(heads):
    rows = rng.normal(size=(16, 3)).astype(np.float32)
    assert np.array_equal(halves(pairs(rows, heads), heads), rows)
    assert heads == 0 or not np.array_equal(pairs(rows, heads), rows)


def test_one_scale_stands_for_all_and_the_rest_is_multiplied_in():
    adapter = LoraWeights(modules={"a": factors(), "b": factors(), "c": factors(rank=2, scale=5.0)})
    for by_rank, common, left in ((False, 2.0, 2.5), (True, 8.0, 1.25)):
        told, b = even_scales(adapter, by_rank=by_rank)
        assert told == common
        assert b["a"] is adapter.modules["a"].B_OR
        assert np.allclose(b["c"], adapter.modules["c"].B_OR * left)


def test_targets_are_short_where_that_says_the_same():
    every = LoraWeights(modules={path: factors() for path in SHAPE})
    assert targets(every, SHAPE) == ["q_proj", "v_proj"]
    some = LoraWeights(modules={path: factors() for path in SHAPE if path != "model.layers.0.self_attn.q_proj"})
    assert targets(some, SHAPE) == ["model.layers.1.self_attn.q_proj", "v_proj"]
    config = peft_config(some, SHAPE, "base")
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["use_dora"]) == (4, 8.0, {}, False)


@pytest.mark.parametrize(
    ("modules", "code"),
    [
        ({}, "adapter_incomplete"),
        ({"model.layers.9.self_attn.q_proj": factors()}, "adapter_bad_tensor"),
        (
            {FIRST: Factors(A_RI=np.ones((2, 31), np.float32), B_OR=np.ones((16, 2), np.float32), scale=1)},
            "adapter_bad_tensor",
        ),
        (
            {FIRST: Factors(A_RI=np.full((2, 32), np.nan, np.float32), B_OR=np.ones((16, 2), np.float32), scale=1)},
            "adapter_not_finite",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused_by_layer(modules, code):
    with pytest.raises(CatenaError) as refused:
        check_fit(LoraWeights(modules=modules), SHAPE, "a.gguf")
    assert refused.value.code == code


@pytest.fixture
def mlx(tmp_path) -> Path:
    (tmp_path / "mlx").mkdir()
    write_mlx(LoraWeights(modules={path: factors(dora=True) for path in SHAPE}), tmp_path / "mlx")
    return tmp_path / "mlx"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"fine_tune_type": "full"}, "adapter_bad_config", "'full'"),
        ({"fine_tune_type": "lora"}, "adapter_incomplete", "m"),
        ({"lora_parameters": {"rank": 4}}, "adapter_bad_config", "scale"),
    ],
)
def test_an_mlx_folder_that_says_something_else_is_refused(mlx, change, code, named):
    config = json.loads((mlx / "adapter_config.json").read_text())
    (mlx / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CatenaError) as refused:
        read_mlx(mlx, SHAPE)
    assert refused.value.code == code
    assert named in refused.value.message


def test_a_safetensors_header_with_null_for_no_metadata_is_taken_as_mlx_writes_it(tmp_path):
    header = json.dumps({"__metadata__": None, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert set(read_header(PlainFile(name="a", path=path, size=path.stat().st_size))) == {"x"}


@pytest.fixture
def gguf(tmp_path) -> Path:
    tensors = [planned("token_embd.weight", rng.normal(size=(4, 32)).astype(np.float32))]
    write_gguf(tmp_path / "a.gguf", "llama", {"general.name": "x", "n": 3, "words": ["a", "b"]}, tensors)
    return tmp_path / "a.gguf"


def test_a_gguf_file_says_what_was_written(gguf):
    file = GgufFile(gguf, "base")
    assert (file.get("general.name"), file.get("n"), file.get("words")) == ("x", 3, ["a", "b"])
    assert (file.names(), file.shape("token_embd.weight")) == (["token_embd.weight"], (4, 32))
    assert file.get("absent") is None
    with pytest.raises(CatenaError, match="absent"):
        file.need("absent")


def test_a_gguf_file_cut_anywhere_is_refused_and_nothing_hangs(gguf, tmp_path):
    raw = gguf.read_bytes()
    for length in range(0, len(raw) - 1, 7):
        (tmp_path / "cut.gguf").write_bytes(raw[:length])
        with pytest.raises(CatenaError) as refused:
            GgufFile(tmp_path / "cut.gguf", "base")
        assert refused.value.code == "base_bad_header"


@pytest.mark.parametrize("at", range(4, 160, 4))
def test_a_gguf_file_with_absurd_numbers_is_refused_or_read_and_nothing_hangs(gguf, tmp_path, at):
    raw = bytearray(gguf.read_bytes())
    raw[at : at + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "odd.gguf").write_bytes(raw)
    try:
        GgufFile(tmp_path / "odd.gguf", "base")
    except CatenaError as refused:
        assert refused.code == "base_bad_header"


def test_an_array_that_claims_more_than_the_file_holds_is_refused(gguf, tmp_path):
    raw = gguf.read_bytes()
    at = raw.index(b"words") + 5 + 4 + 4
    (tmp_path / "odd.gguf").write_bytes(raw[:at] + struct.pack("<Q", 1 << 60) + raw[at + 8 :])
    with pytest.raises(CatenaError) as refused:
        GgufFile(tmp_path / "odd.gguf", "base")
    assert refused.value.code == "base_bad_header"


def test_a_refused_import_leaves_nothing(gguf, tmp_path):
    with pytest.raises(CatenaError):
        import_base(gguf, tmp_path / "out", name="x", now_s=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_a_number_of_32_bits_is_read_as_it_was_meant():
    assert shortest(float(np.float32(1e-6))) == 1e-6
    assert shortest(float(np.float32(500_000.0))) == 500_000.0


def test_nothing_is_overwritten_and_nothing_half_done_stays(tmp_path):
    (tmp_path / "there").write_text("x")
    for place in (new_file, new_folder):
        with pytest.raises(CatenaError) as refused, place(tmp_path / "there"):
            pass
        assert refused.value.code == "output_exists"
        with pytest.raises(ZeroDivisionError), place(tmp_path / "new") as made:
            (made / "x").mkdir(parents=True) if place is new_folder else made.write_text("x")
            1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_formats_are_told_apart_by_what_is_there(mlx, gguf, tmp_path):
    assert (format_of(mlx), format_of(gguf)) == ("mlx", "gguf")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    assert format_of(tmp_path / "peft") == "peft"
    (tmp_path / "text").write_text("x")
    for odd, code in (("text", "bad_format"), ("absent", "no_source")):
        with pytest.raises(CatenaError) as refused:
            format_of(tmp_path / odd)
        assert refused.value.code == code
