import json
import stat
from pathlib import Path

import pytest
from model_signing import hashing, signing, verifying

from catena.artifacts import sidecar, signature
from catena.artifacts.keys import KeyPair
from catena.kit.errors import CatenaError, Conflict, Denied, Invalid, Missing


@pytest.fixture(scope="module")
def rsa_key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return sidecar.make_key(tmp_path_factory.mktemp("rsa"))


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    pair = signature.make_key(tmp_path / "keys", "trainer")
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in pair.public.read_bytes()
    with pytest.raises(Conflict, match=r"trainer\.pem"):
        signature.make_key(tmp_path / "keys", "trainer")
    assert signature.public_keys(tmp_path / "keys") == {"trainer": pair.public}


def test_names_the_key_that_signed_also_after_the_folder_moved(bare: Path, key: KeyPair, tmp_path: Path) -> None:
    other = signature.make_key(tmp_path / "other")
    signature.sign(bare, key.private)
    moved = bare.rename(tmp_path / "moved")
    assert signature.verify(moved, {"other": other.public, "trainer": key.public}) == "trainer"


def test_signing_again_covers_what_changed(bare: Path, key: KeyPair) -> None:
    signature.sign(bare, key.private)
    (bare / "README.md").write_text("# words")
    with pytest.raises(Denied, match=r"README\.md"):
        signature.verify(bare, {"trainer": key.public})
    signature.sign(bare, key.private)
    assert signature.verify(bare, {"trainer": key.public}) == "trainer"


def test_the_signature_is_one_that_the_library_itself_verifies(bare: Path, key: KeyPair) -> None:
    signature.sign(bare, key.private)
    verifier = verifying.Config()  # type: ignore[no-untyped-call]
    verifier.use_elliptic_key_verifier(public_key=key.public).verify(bare, bare / "model.sig")


def sign_as_outsiders_do(folder: Path, key: KeyPair, ignored: list[str]) -> None:
    hashed = hashing.Config()  # type: ignore[no-untyped-call]
    signer = signing.Config()  # type: ignore[no-untyped-call]
    signer.use_elliptic_key_signer(private_key=key.private)
    signer.set_hashing_config(hashed.set_ignored_paths(paths=ignored)).sign(folder, folder / "model.sig")


def test_a_signature_by_the_library_with_its_defaults_passes(bare: Path, key: KeyPair) -> None:
    sign_as_outsiders_do(bare, key, ["model.sig"])
    assert signature.verify(bare, {"trainer": key.public}) == "trainer"


def test_a_file_that_the_signer_chose_to_ignore_is_refused(bare: Path, key: KeyPair) -> None:
    sign_as_outsiders_do(bare, key, ["model.sig", "adapter_config.json"])
    with pytest.raises(Denied, match=r"does not cover 'adapter_config\.json'") as caught:
        signature.verify(bare, {"trainer": key.public})
    assert caught.value.code == "adapter_tampered"


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"\xff\xfe", b'{"verificationMaterial": {"publicKey": {"hint": 3}}}']
)
def test_a_signature_file_that_is_none_is_refused(bare: Path, key: KeyPair, raw: bytes) -> None:
    (bare / "model.sig").write_bytes(raw)
    with pytest.raises(Invalid) as caught:
        signature.verify(bare, {"trainer": key.public})
    assert caught.value.code == "adapter_bad_signature"


def test_a_bundle_gutted_in_any_part_is_refused(bare: Path, key: KeyPair) -> None:
    signature.sign(bare, key.private)
    whole = (bare / "model.sig").read_text()

    def paths(node: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        return [p for k, v in inner for p in [(*at, k), *paths(v, (*at, k))]]

    damage: tuple[object, ...] = (None, [], {}, "x", 7)
    for path in paths(json.loads(whole)):
        for value in damage:
            tree = json.loads(whole)
            node = tree
            for step in path[:-1]:
                node = node[step]
            node[path[-1]] = value
            (bare / "model.sig").write_text(json.dumps(tree))
            try:
                signature.verify(bare, {"trainer": key.public})
            except CatenaError as error:
                assert error.code in {"adapter_tampered", "adapter_wrong_key", "adapter_bad_signature"}
            else:
                assert path[0] == "verificationMaterial" or path[-1] == "keyid"


def test_signing_without_a_key_says_what_to_do(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="make_key"):
        signature.sign(bare, tmp_path / "none.pem")


def test_a_sidecar_round_trips_for_a_file_and_for_a_folder(bare: Path, rsa_key: KeyPair) -> None:
    for model in (bare, bare / "adapter_model.safetensors"):
        path = sidecar.write(model, rsa_key.private, now_s=1_800_000_000, metadata={"domain": "code", "rank": 4})
        assert path.name == f"{model.name}.manifest.json"
        tree = json.loads(path.read_text())
        assert set(tree) == {"model_path", "model_hash", "metadata", "timestamp", "version", "signature"}
        assert (tree["version"], tree["timestamp"]) == ("1.0", "2027-01-15T08:00:00+00:00")
        assert sidecar.verify(model, rsa_key.public).metadata == {"domain": "code", "rank": 4}
        path.unlink()


def test_a_sidecar_refuses_changed_bytes_edited_records_and_other_keys(
    bare: Path, rsa_key: KeyPair, key: KeyPair, tmp_path: Path
) -> None:
    model = bare / "adapter_model.safetensors"
    with pytest.raises(Denied) as caught:
        sidecar.verify(model, rsa_key.public)
    assert caught.value.code == "model_unsigned"
    path = sidecar.write(model, rsa_key.private, now_s=0)
    other = sidecar.make_key(tmp_path / "other")
    with pytest.raises(Denied) as caught:
        sidecar.verify(model, other.public)
    assert caught.value.code == "model_wrong_key"
    with pytest.raises(Invalid) as invalid:
        sidecar.write(model, key.private, now_s=0)
    assert invalid.value.code == "bad_key"
    written = path.read_text()
    path.write_text(written.replace('"metadata": {}', '"metadata": {"a": 1}'))
    with pytest.raises(Denied) as caught:
        sidecar.verify(model, rsa_key.public)
    assert caught.value.code == "model_wrong_key"
    path.write_text(written)
    with model.open("ab") as file:
        file.write(b"x")
    with pytest.raises(Denied) as caught:
        sidecar.verify(model, rsa_key.public)
    assert caught.value.code == "model_tampered"
