import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from catena.artifacts import manifest, signature
from catena.artifacts.files import PlainFile
from catena.artifacts.gate import Checked, Rules
from catena.artifacts.manifest import Manifest
from catena.artifacts.tensors import read_header
from catena.kit.errors import CatenaError, Denied, Invalid
from tests.unit.artifacts.folders import RANK, SHAPE, demo_manifest, lora_tensors, write_config, write_tensors

Check = Callable[..., Checked]
Reseal = Callable[..., Manifest]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS = "adapter_model.safetensors"


def code_of(check: Check, folder: Path, **changes: object) -> str:
    with pytest.raises((Invalid, Denied)) as caught:
        check(folder, **changes)
    return caught.value.code


def test_a_sealed_and_signed_adapter_passes_with_its_exact_figures(sealed: Path, check: Check) -> None:
    checked = check(sealed)
    module = checked.modules["model.layers.1.self_attn.v_proj"]
    assert checked.signer == "trainer"
    assert checked.manifest is not None
    assert checked.digest == checked.manifest.digest
    assert sorted(checked.modules) == sorted(m for m in SHAPE if m.endswith(("q_proj", "v_proj")))
    assert (module.rank, module.alpha, module.scale, module.inputs, module.outputs) == (4, 8.0, 2.0, 32, 16)
    assert checked.bytes == sum(tensor.nbytes for tensor in lora_tensors().values())
    assert (checked.dtype, checked.max_rank, checked.dora) == ("F32", RANK, False)


def test_offsets_of_a_checked_module_point_at_its_values(sealed: Path, check: Check) -> None:
    info = check(sealed).modules["model.layers.0.self_attn.q_proj"].A
    raw = (sealed / WEIGHTS).read_bytes()[info.begin : info.end]
    assert np.array_equal(np.frombuffer(raw, np.float32).reshape(info.shape), lora_tensors()[f"{Q0}.lora_A.weight"])


def test_half_precision_passes(bare: Path, reseal: Reseal, check: Check) -> None:
    write_tensors(bare, lora_tensors(dtype=np.float16))
    reseal(bare)
    assert check(bare).dtype == "F16"


def test_rank_and_alpha_patterns_and_rslora_set_each_modules_scale(bare: Path, reseal: Reseal, check: Check) -> None:
    tensors = lora_tensors()
    rng = np.random.default_rng(0)
    tensors[f"{Q0}.lora_A.weight"] = rng.normal(size=(16, 32)).astype(np.float32)
    tensors[f"{Q0}.lora_B.weight"] = rng.normal(size=(32, 16)).astype(np.float32)
    write_tensors(bare, tensors)
    write_config(bare, rank_pattern={"layers.0.self_attn.q_proj": 16}, alpha_pattern={"v_proj": 2}, use_rslora=True)
    reseal(bare)
    modules = check(bare).modules
    assert (modules["model.layers.0.self_attn.q_proj"].rank, modules["model.layers.1.self_attn.q_proj"].rank) == (16, 4)
    assert modules["model.layers.0.self_attn.q_proj"].scale == 2.0
    assert modules["model.layers.0.self_attn.v_proj"].scale == 1.0


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "adapter_config.json", "catena.json", "README.md"],
)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_is_refused(sealed: Path, check: Check, name: str, where: str) -> None:
    raw = bytearray((sealed / name).read_bytes())
    raw[{"first": 0, "middle": len(raw) // 2, "last": -1}[where]] ^= 1
    (sealed / name).write_bytes(raw)
    assert code_of(check, sealed) == "adapter_tampered"


def test_every_flipped_byte_of_the_signature_is_refused_or_harmless(sealed: Path, check: Check) -> None:
    path = sealed / "model.sig"
    raw = path.read_bytes()
    for at in range(0, len(raw), 97):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            passed = check(sealed).signer
        except CatenaError as error:
            assert error.code in {"adapter_tampered", "adapter_wrong_key", "adapter_bad_signature"}
        else:
            assert passed == "trainer"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pytorch_model.bin", "adapter_unsafe_file"),
        ("adapter_model.bin", "adapter_unsafe_file"),
        ("modeling.py", "adapter_unsafe_file"),
        ("tokenizer_config.json", "adapter_unsafe_file"),
        ("chat_template.jinja", "adapter_unsafe_file"),
        (".hidden", "adapter_unsafe_file"),
        ("evil\nname", "adapter_unsafe_file"),
        ("LICENSE", "adapter_tampered"),
    ],
)
def test_an_extra_file_is_refused(sealed: Path, check: Check, name: str, code: str) -> None:
    (sealed / name).write_bytes(pickle.dumps({"a": 1}))
    assert code_of(check, sealed) == code


def test_a_pickle_under_the_weights_name_is_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    (bare / WEIGHTS).write_bytes(pickle.dumps(list(range(100)), protocol=2))
    reseal(bare)
    assert code_of(check, bare) == "adapter_bad_header"


def test_a_link_is_refused_even_to_the_right_bytes(sealed: Path, check: Check, tmp_path: Path) -> None:
    (sealed / WEIGHTS).rename(tmp_path / "elsewhere")
    (sealed / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert code_of(check, sealed) == "adapter_unsafe_file"


def test_a_linked_folder_a_sub_folder_and_a_pipe_are_refused(sealed: Path, check: Check, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sealed)
    assert code_of(check, tmp_path / "link") == "adapter_unsafe_file"
    (sealed / "LICENSE").mkdir()
    assert code_of(check, sealed) == "adapter_unsafe_file"
    (sealed / "LICENSE").rmdir()
    os.mkfifo(sealed / "LICENSE")
    assert code_of(check, sealed) == "adapter_unsafe_file"


def test_an_unsigned_adapter_is_refused_unless_allowed(sealed: Path, check: Check) -> None:
    (sealed / "model.sig").unlink()
    assert code_of(check, sealed) == "adapter_unsigned"
    assert check(sealed, rules=Rules(require_signature=False)).signer == ""


def test_a_signature_by_an_unknown_key_is_refused(sealed: Path, check: Check, tmp_path: Path) -> None:
    other = signature.make_key(tmp_path / "other")
    assert code_of(check, sealed, keys={"other": other.public}) == "adapter_wrong_key"
    assert code_of(check, sealed, keys={}) == "adapter_wrong_key"
    signature.sign(sealed, other.private)
    assert code_of(check, sealed) == "adapter_wrong_key"


def test_a_signature_of_another_adapter_is_refused(sealed: Path, check: Check, tmp_path: Path, reseal: Reseal) -> None:
    second = tmp_path / "second"
    second.mkdir()
    write_config(second, lora_alpha=16)
    write_tensors(second, lora_tensors())
    reseal(second)
    (sealed / "model.sig").write_bytes((second / "model.sig").read_bytes())
    assert code_of(check, sealed) == "adapter_tampered"


def test_another_base_is_refused(sealed: Path, bare: Path, reseal: Reseal, check: Check) -> None:
    assert code_of(check, sealed, base_digest="0" * 64) == "adapter_base_mismatch"
    assert code_of(check, sealed, base_digest="") == "adapter_base_mismatch"
    reseal(bare, base_digest="")
    assert code_of(check, bare) == "adapter_base_mismatch"


def test_a_base_of_other_width_is_refused(sealed: Path, check: Check) -> None:
    wider = {module: (2 * inputs, outputs) for module, (inputs, outputs) in SHAPE.items()}
    assert code_of(check, sealed, shape=wider) == "adapter_bad_tensor"
    assert code_of(check, sealed, shape={"model.layers.0.self_attn.q_proj": (32, 32)}) == "adapter_bad_tensor"


def test_weights_of_another_rank_than_the_configuration_are_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    write_tensors(bare, lora_tensors(rank=8))
    reseal(bare)
    assert code_of(check, bare) == "adapter_bad_rank"


def test_another_digest_than_the_registered_one_is_refused(sealed: Path, check: Check) -> None:
    assert code_of(check, sealed, digest="0" * 64) == "adapter_tampered"
    assert check(sealed, digest=manifest.read(sealed).digest)


def test_a_manifest_with_a_wrong_digest_is_refused(sealed: Path, check: Check) -> None:
    manifest.write(sealed, demo_manifest(digest="1" * 64))
    (sealed / "model.sig").unlink()
    assert code_of(check, sealed, rules=Rules(require_signature=False)) == "adapter_tampered"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(
    bare: Path, reseal: Reseal, check: Check, dtype: type[np.generic], value: float
) -> None:
    tensors = lora_tensors(dtype=dtype)
    tensors[f"{Q0}.lora_B.weight"][-1, -1] = value
    write_tensors(bare, tensors)
    reseal(bare)
    with pytest.raises(Invalid, match=r"q_proj\.lora_B\.weight' holds NaN or infinity at value 127") as caught:
        check(bare)
    assert caught.value.code == "adapter_not_finite"


def test_bfloat16_nan_is_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    write_tensors(bare, lora_tensors(dtype=np.float16))
    path = bare / WEIGHTS
    path.write_bytes(
        path.read_bytes().replace(b'"F16"', b'"BF16"').replace(b'"__metadata__":{"format":"pt"}', b'"__metadata__":{}')
    )
    raw = path.read_bytes()
    length = raw.index(b"}}") + 2 - 8
    path.write_bytes(
        length.to_bytes(8, "little")
        + raw[8 : 8 + length]
        + bytes(sum(t.nbytes for t in lora_tensors(dtype=np.float16).values()))
    )
    reseal(bare)
    checked = check(bare)
    assert checked.dtype == "BF16"
    with path.open("r+b") as file:
        file.seek(checked.modules["model.layers.0.self_attn.q_proj"].B.begin)
        file.write(b"\xc0\x7f")
    reseal(bare)
    assert code_of(check, bare) == "adapter_not_finite"


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.base_layer.weight",
        f"{Q0}.lora_B.bias",
        f"{Q0}.lora_A.default.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
    ],
)
def test_a_tensor_that_nothing_consumes_is_refused(bare: Path, reseal: Reseal, check: Check, name: str) -> None:
    write_tensors(bare, lora_tensors() | {name: np.zeros((RANK, 32), np.float32)})
    reseal(bare)
    with pytest.raises(Invalid) as caught:
        check(bare)
    assert caught.value.code == "adapter_bad_tensor"
    assert name in caught.value.message


def test_a_lacking_factor_module_or_target_is_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    for pattern in (f"{Q0}.lora_B", Q0, "q_proj"):
        write_tensors(bare, {name: value for name, value in lora_tensors().items() if pattern not in name})
        reseal(bare)
        assert code_of(check, bare) == "adapter_incomplete"


def test_an_empty_file_of_tensors_is_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    write_tensors(bare, {})
    reseal(bare)
    assert code_of(check, bare) == "adapter_bad_tensor"


def test_dora_needs_its_magnitudes_and_plain_lora_refuses_them(bare: Path, reseal: Reseal, check: Check) -> None:
    write_config(bare, use_dora=True)
    reseal(bare)
    assert code_of(check, bare) == "adapter_incomplete"
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): np.ones(value.shape[0], np.float32)
        for name, value in lora_tensors().items()
        if "lora_B" in name
    }
    write_tensors(bare, lora_tensors() | magnitudes)
    reseal(bare)
    assert check(bare).dora
    write_config(bare)
    reseal(bare)
    assert code_of(check, bare) == "adapter_incomplete"


def test_mixed_or_integer_types_are_refused(bare: Path, reseal: Reseal, check: Check) -> None:
    for dtype in (np.float16, np.float64, np.int8):
        tensors = lora_tensors()
        tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"].astype(dtype)
        write_tensors(bare, tensors)
        reseal(bare)
        assert code_of(check, bare) == "adapter_bad_tensor"


def test_sizes_over_the_caps_are_refused(sealed: Path, check: Check) -> None:
    assert code_of(check, sealed, rules=Rules(max_bytes=1000)) == "adapter_too_large"
    assert code_of(check, sealed, rules=Rules(max_rank=2)) == "adapter_bad_rank"
    (sealed / "README.md").write_bytes(b"x" * (2 << 20))
    assert code_of(check, sealed) == "adapter_too_large"


def test_lacking_files_are_refused(bare: Path, sealed: Path, check: Check, unsigned: Rules, tmp_path: Path) -> None:
    (sealed / "catena.json").unlink()
    (sealed / "model.sig").unlink()
    assert code_of(check, sealed, rules=Rules(require_signature=False)) == "adapter_missing_file"
    assert check(sealed, rules=unsigned).manifest is None
    (sealed / WEIGHTS).unlink()
    assert code_of(check, sealed, rules=unsigned) == "adapter_missing_file"
    assert code_of(check, tmp_path / "nowhere") == "adapter_missing_file"


def test_every_prefix_of_the_weights_is_refused(bare: Path, check: Check, unsigned: Rules) -> None:
    raw = (bare / WEIGHTS).read_bytes()
    for length in [*range(0, 40), len(raw) // 2, len(raw) - 1]:
        (bare / WEIGHTS).write_bytes(raw[:length])
        assert code_of(check, bare, rules=unsigned) == "adapter_bad_header"


def test_a_file_that_shrinks_under_the_reader_is_refused(bare: Path) -> None:
    path = bare / WEIGHTS
    listed = PlainFile(name=WEIGHTS, path=path, size=path.stat().st_size)
    os.truncate(path, 100)
    with pytest.raises(Invalid) as caught:
        read_header(listed)
    assert caught.value.code == "adapter_bad_header"
