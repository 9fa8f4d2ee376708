"""Key pairs on disk: the private half for its owner alone, the public half for whoever verifies."""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from catena.artifacts.placing import put
from catena.kit.errors import Conflict


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """Where a key's two halves lie, both as PEM."""

    private: Path
    public: Path


def write_pair(folder: Path, name: str, key: EllipticCurvePrivateKey | RSAPrivateKey) -> KeyPair:
    """Write `name.pem` (mode 0600) and `name.pub`. Raises Conflict when that private key exists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = KeyPair(private=folder / f"{name}.pem", public=folder / f"{name}.pub")
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        handle = os.open(pair.private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Conflict(f"a key is at {pair.private} already; take another name", code="key_exists") from None
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    put(pair.public, public)
    return pair
