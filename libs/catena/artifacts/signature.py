"""Who vouches for a folder: OpenSSF model signing with a local elliptic-curve key.

The trainer (or an import by an administrator) signs; the serving side verifies and holds public keys only. A signature
covers every file of the folder except itself.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from catena.artifacts.files import CLUTTER, SIGNATURE, PlainFile, list_files, read_small
from catena.artifacts.keys import KeyPair, write_pair
from catena.artifacts.placing import put
from catena.artifacts.refusal import Kind, refused, untrusted
from catena.artifacts.strict_json import read_object
from catena.kit.errors import Missing

MAX_SIGNATURE_BYTES = 1 << 20


class _PublicKey(msgspec.Struct):
    hint: str


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey


class _Envelope(msgspec.Struct):
    payload: str


class _Bundle(msgspec.Struct, rename="camel"):
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct):
    name: str


class _Predicate(msgspec.Struct):
    resources: list[_Resource]


class _Statement(msgspec.Struct):
    predicate: _Predicate


def make_key(folder: Path, name: str = "signing") -> KeyPair:
    """Make an EC key (P-256) as `name.pem`, mode 0600, and `name.pub`. Raises Conflict rather than overwrite one."""
    return write_pair(folder, name, ec.generate_private_key(ec.SECP256R1()))


def sign(folder: Path, private: Path, kind: Kind = "adapter") -> None:
    """Sign every file of the folder and put `model.sig` into it, in place of an earlier one.

    Raises Missing without the key, Refused when the folder holds more than plain files.
    """
    if not private.is_file():
        raise Missing(f"no private key at {private}; make one with make_key", code="no_key")
    list_files(folder, kind)
    hashed = hashing.Config()  # type: ignore[no-untyped-call]
    hashed.use_file_serialization(hashing_algorithm="blake3")
    hashed.set_ignored_paths(paths=[SIGNATURE, *sorted(CLUTTER)], ignore_git_paths=False)
    signer = signing.Config()  # type: ignore[no-untyped-call]
    signer.use_elliptic_key_signer(private_key=private).set_hashing_config(hashed)
    with tempfile.TemporaryDirectory(prefix="catena-sign-") as scratch:
        made = Path(scratch) / SIGNATURE
        signer.sign(folder, made)
        raw = made.read_bytes()
    put(folder / SIGNATURE, raw)


def verify(folder: Path, keys: Mapping[str, Path], kind: Kind = "adapter") -> str:
    """The name of the key that signed the folder as it is now; `keys` maps names to public PEM files.

    Raises Untrusted: `_unsigned` without a signature, `_wrong_key` when no key here made it, `_tampered` when any file
    was changed, added or removed since; Refused `_bad_signature` when it cannot be read.
    """
    path = folder / SIGNATURE
    if not os.path.lexists(path):
        raise untrusted(kind, "unsigned", f"{folder.name} has no {SIGNATURE}; sign it with a key that is trusted here")
    bundle = _read_bundle(read_small(PlainFile(name=SIGNATURE, path=path, size=0), MAX_SIGNATURE_BYTES, kind), kind)
    who = _signer(bundle.verification_material.public_key.hint, keys, kind, folder.name)
    verifier = verifying.Config()  # type: ignore[no-untyped-call]
    try:
        verifier.use_elliptic_key_verifier(public_key=keys[who]).verify(folder, path)
        signed = _signed_names(bundle.dsse_envelope.payload)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, InvalidSignature) as error:
        # The library tells of an altered file by the bytes of both digests; its name is what helps.
        altered = [name for name in list_files(folder, kind) if name in str(error)]
        why = ", ".join(altered) or str(error)[:300] or "the signature does not fit its own content"
        raise untrusted(
            kind, "tampered", f"{folder.name} is not what {who} signed: {why}; restore or import it again"
        ) from error
    # The signer may list paths to be ignored; here nothing is.
    odd = signed ^ (set(list_files(folder, kind)) - {SIGNATURE})
    if odd:
        raise untrusted(kind, "tampered", f"the signature does not cover {sorted(odd)[0]!r}; sign the folder again")
    return who


def public_keys(folder: Path) -> dict[str, Path]:
    """Every `*.pub` of a folder by its stem: the form in which `verify` takes keys."""
    return {path.stem: path for path in sorted(folder.glob("*.pub"))}


def _read_bundle(raw: bytes, kind: Kind) -> _Bundle:
    tree = read_object(raw, SIGNATURE, kind, "bad_signature")
    try:
        return msgspec.convert(tree, _Bundle)
    except msgspec.ValidationError as error:
        raise refused(kind, "bad_signature", f"{SIGNATURE}: {error}; sign the folder again") from error


def _signer(hint: str, keys: Mapping[str, Path], kind: Kind, name: str) -> str:
    for who, path in keys.items():
        if hint == _hint(path):
            return who
    known = ", ".join(keys) or "none"
    raise untrusted(
        kind,
        "wrong_key",
        f"{name} is signed by key {hint[:16]!r}; trusted here: {known}; add its public key or re-sign",
    )


def _hint(public: Path) -> str:
    key = serialization.load_pem_public_key(public.read_bytes())
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _signed_names(payload: str) -> set[str]:
    statement = msgspec.json.decode(base64.b64decode(payload), type=_Statement)
    return {resource.name for resource in statement.predicate.resources}
