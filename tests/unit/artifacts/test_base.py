import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from catena.artifacts import signature
from catena.artifacts.base import BaseRules, check_base
from catena.artifacts.keys import KeyPair
from catena.kit.errors import Denied, Invalid


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# base")
    weights = {
        "model.embed_tokens.weight": np.ones((64, 32), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.ones((48, 32), np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(32, np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def code_of(folder: Path, **arguments: object) -> str:
    with pytest.raises((Invalid, Denied)) as caught:
        check_base(folder, **arguments)  # type: ignore[arg-type]
    return caught.value.code


def test_a_plain_base_passes_with_the_sizes_of_its_layers(base: Path) -> None:
    checked = check_base(base)
    assert checked.shape["model.layers.0.self_attn.q_proj"] == (32, 48)
    assert "model.layers.0.input_layernorm" not in checked.shape
    assert (checked.architecture, checked.bytes) == ("LlamaForCausalLM", 4 * (64 * 32 + 48 * 32 + 32))
    assert check_base(base, digest=checked.digest).digest == checked.digest
    (base / "README.md").write_text("# other words")
    assert check_base(base, digest=checked.digest)


@pytest.mark.parametrize("name", ["modeling_llama.py", "pytorch_model.bin", "model.pt", "model.gguf", "a.so", "x.pkl"])
def test_code_and_pickles_are_refused(base: Path, name: str) -> None:
    (base / name).write_bytes(b"x")
    assert code_of(base) == "base_unsafe_file"


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil--modeling.Evil"}}),
        ("config.json", {"text_config": {"layers": [{"auto_map": {"a": "b"}}]}}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"_attn_implementation": "someone/kernel"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}),
        ("config.json", {"architectures": []}),
    ],
)
def test_a_configuration_that_names_code_is_refused(base: Path, name: str, tree: dict[str, object]) -> None:
    (base / name).write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | tree))
    assert code_of(base) == "base_bad_config"


def test_a_changed_or_not_finite_or_linked_base_is_refused(base: Path, tmp_path: Path) -> None:
    before = check_base(base).digest
    save_file({"a.weight": np.full((2, 2), np.nan, np.float32)}, base / "model.safetensors")
    assert code_of(base, digest=before) == "base_tampered"
    assert code_of(base) == "base_not_finite"
    assert check_base(base, rules=BaseRules(check_values=False))
    (base / "config.json").rename(tmp_path / "config.json")
    (base / "config.json").symlink_to(tmp_path / "config.json")
    assert code_of(base) == "base_unsafe_file"


def test_links_into_a_cache_are_followed_only_where_allowed(base: Path, tmp_path: Path) -> None:
    digest = check_base(base).digest
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (base / "model.safetensors").rename(blobs / "1")
    (base / "model.safetensors").symlink_to(blobs / "1")
    assert check_base(base, links_within=blobs).digest == digest
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.json").symlink_to("/etc/hostname")
    assert code_of(base, links_within=blobs) == "base_unsafe_file"


def test_shards_must_agree_with_their_index(base: Path) -> None:
    save_file({"lm_head.weight": np.ones((2, 2), np.float32)}, base / "model-00002-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert code_of(base) == "base_incomplete"
    save_file({"lm_head.weight": np.ones((2, 2), np.float32)}, base / "other.safetensors")
    assert code_of(base) == "base_bad_tensor"


def test_a_signed_base_names_its_signer_and_refuses_a_change(base: Path, key: KeyPair) -> None:
    assert code_of(base, rules=BaseRules(require_signature=True)) == "base_unsigned"
    (base / ".gitattributes").write_text("x")
    (base / ".cache").mkdir()
    signature.sign(base, key.private, "base")
    assert check_base(base, keys={"us": key.public}).signer == "us"
    (base / "tokenizer.json").write_text("{ }")
    assert code_of(base, keys={"us": key.public}) == "base_tampered"


def test_what_follows_an_encoder_belongs_to_it(base: Path, key: KeyPair) -> None:
    pooling = base / "1_Pooling" / "config.json"
    for folder in ("1_Pooling", "2_Normalize"):
        (base / folder).mkdir()
    (base / "modules.json").write_text("[]")
    pooling.write_text('{"pooling_mode": "mean"}')
    signature.sign(base, key.private, "base")
    checked = check_base(base, keys={"me": key.public})
    assert checked.signer == "me"

    pooling.write_text('{"pooling_mode": "max"}')
    assert code_of(base, keys={"me": key.public}) == "base_tampered"
    (base / signature.SIGNATURE).unlink()
    assert code_of(base, digest=checked.digest) == "base_tampered"


@pytest.mark.parametrize(
    "place", ["1_Pooling/run.py", "2_Dense/model.safetensors", "1_Pooling/a/config.json", "src/a.json"]
)
def test_nothing_else_does(base: Path, place: str) -> None:
    (base / place).parent.mkdir(parents=True)
    (base / place).write_text("{}")
    assert code_of(base) == "base_unsafe_file"
