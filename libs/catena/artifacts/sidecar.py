"""The sidecar `<path>.manifest.json`: a small signed record beside a model, for tools that know nothing of Catena.

The signature is RSA-PSS (MGF1 and hash SHA-256, longest salt) in hex, over the JSON of the other fields with sorted
keys and Python's default separators. `model_hash` is SHA-256 of the file, or, for a folder, of the lines that
`sha256sum` would print for its files in order of name.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from catena.artifacts.digest import CHUNK
from catena.artifacts.files import PlainFile, list_files, open_plain, read_small
from catena.artifacts.keys import KeyPair, write_pair
from catena.artifacts.placing import put
from catena.artifacts.refusal import refused, untrusted
from catena.artifacts.strict_json import read_object
from catena.kit.errors import Invalid

MAX_SIDECAR_BYTES = 1 << 20
KEY_BITS = 3072


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record; `timestamp` is UTC in ISO 8601, `signature` hex."""

    model_path: str
    model_hash: str
    metadata: dict[str, object]
    timestamp: str
    version: Literal["1.0"] = "1.0"
    signature: str = ""


def make_key(folder: Path, name: str = "sidecar") -> KeyPair:
    """Make an RSA key as `name.pem`, mode 0600, and `name.pub`."""
    return write_pair(folder, name, rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS))


def write(model: Path, private: Path, *, now_s: float, metadata: Mapping[str, object] | None = None) -> Path:
    """Write the signed sidecar of a model file or folder and return its path."""
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise Invalid(f"{private.name} is no RSA key; records are signed with RSA", code="bad_key")
    record = Sidecar(
        model_path=str(model),
        model_hash=model_hash(model),
        metadata=dict(metadata or {}),
        timestamp=datetime.fromtimestamp(now_s, UTC).isoformat(),
    )
    signature = key.sign(_signed_bytes(record), _pss(padding.PSS.MAX_LENGTH), hashes.SHA256())
    signed = msgspec.structs.replace(record, signature=signature.hex())
    path = sidecar_path(model)
    put(path, msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n")
    return path


def verify(model: Path, public: Path) -> Sidecar:
    """The record of a model that is as it was when signed with this key.

    Raises Untrusted `model_unsigned` without a sidecar, `model_wrong_key` when the key does not fit its signature
    (or the record was edited), `model_tampered` when the model's bytes differ; Refused when it cannot be read.
    """
    path = sidecar_path(model)
    if not path.is_file():
        cure = "copy it along with the model, or make the model again with `catena models export`, `merge` or `import`"
        raise untrusted("model", "unsigned", f"no {path.name} beside {model.name}; {cure}")
    record = _read(path)
    key = serialization.load_pem_public_key(public.read_bytes())
    if not isinstance(key, rsa.RSAPublicKey):
        raise Invalid(f"{public.name} is no RSA key; name the RSA key of the signer", code="bad_key")
    try:
        signature = bytes.fromhex(record.signature)
        key.verify(signature, _signed_bytes(record), _pss(padding.PSS.AUTO), hashes.SHA256())
    except (ValueError, InvalidSignature) as error:
        raise untrusted(
            "model",
            "wrong_key",
            f"{path.name} was not signed with {public.name}, or was edited since; name its signer's key or restore it",
        ) from error
    actual = model_hash(model)
    if actual != record.model_hash:
        raise untrusted(
            "model",
            "tampered",
            f"{model.name} has SHA-256 {actual}, its sidecar says {record.model_hash}; restore it",
        )
    return record


def sidecar_path(model: Path) -> Path:
    """Where a model's sidecar lies."""
    return model.with_name(f"{model.name}.manifest.json")


def model_hash(model: Path) -> str:
    """SHA-256 of a file or a folder, in hex."""
    if not model.is_dir():
        return _sha256(model)
    lines = (f"{_sha256(file.path)}  {name}\n" for name, file in list_files(model, "model").items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with open_plain(path, "model") as file:
        while part := file.read(CHUNK):
            hasher.update(part)
    return hasher.hexdigest()


def _read(path: Path) -> Sidecar:
    raw = read_small(PlainFile(name=path.name, path=path, size=0), MAX_SIDECAR_BYTES, "model")
    try:
        return msgspec.convert(read_object(raw, path.name, "model", "bad_manifest"), Sidecar)
    except msgspec.ValidationError as error:
        raise refused("model", "bad_manifest", f"{path.name}: {error}; restore the record") from error


def _signed_bytes(record: Sidecar) -> bytes:
    tree = msgspec.to_builtins(record)
    del tree["signature"]
    return json.dumps(tree, sort_keys=True).encode()


def _pss(salt: object) -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt)  # type: ignore[arg-type]
