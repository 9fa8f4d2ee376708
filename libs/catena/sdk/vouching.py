"""The keys with which this installation vouches for what it takes in and gives out; each is made at its first use."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catena.artifacts import index, sidecar, signature, single
from catena.artifacts.base import check_base
from catena.artifacts.placing import put
from catena.artifacts.single import Called
from catena.artifacts.store import place_of
from catena.kit.config import House
from catena.kit.errors import Conflict, Missing

IMPORTER, SIDECAR = "import", "sidecar"


def importing_key(house: House) -> Path:
    """The key that signs what is imported here, which is trusted here, too."""
    folder, trusted = house.folder("keys"), house.folder("keys", "trusted")
    with contextlib.suppress(Conflict):
        pair = signature.make_key(folder, IMPORTER)
        put(trusted / f"{IMPORTER}.pub", pair.public.read_bytes())
    return folder / f"{IMPORTER}.pem"


def record(house: House, out: Path, metadata: dict[str, Any], *, now_s: float) -> Path:
    """Write the signed sidecar of a file or folder with this installation's RSA key."""
    keys = house.folder("keys")
    with contextlib.suppress(Conflict):
        sidecar.make_key(keys, SIDECAR)
    return sidecar.write(out, keys / f"{SIDECAR}.pem", now_s=now_s, metadata=metadata)


def kept(house: House, digest: str) -> Path:
    """The folder of a registered adapter in this home's store. Raises Missing when the platform keeps it elsewhere."""
    path = place_of(house.folder("artifacts"), digest)
    if not path.is_dir():
        raise Missing(f"digest {digest} is not in {house.home}; run this at the platform's home", code="no_source")
    return path


@contextlib.contextmanager
def signed_file(house: House, source: Path, *, told: str, base: str) -> Iterator[Path]:
    """A single `.safetensors` file as a sealed folder for a base of the configuration, signed by this installation."""
    name, version = single.called(told)
    folder = next((Path(model.path) for model in house.models if model.name == base and model.path), None)
    if folder is None or not folder.is_dir():
        known = ", ".join(model.name for model in house.models if model.provider == "local") or "none"
        raise Missing(f"no base {base!r} with a folder is configured; there are: {known}", code="unknown_model")
    card = Called(name=name, version=version, base=base, base_digest=check_base(folder).digest)
    private = importing_key(house)
    with single.sealed(source, card, signature.public_keys(house.folder("keys", "trusted"))) as made:
        signature.sign(made, private)
        yield made


def publish(house: House, digests: Sequence[str], into: Path, *, now_s: float) -> index.Index:
    """Write adapters of this home and their index into a folder, with a signed record of the index beside it."""
    told = index.publish([kept(house, digest) for digest in digests], into)
    record(house, into / index.INDEX, {"kind": "registry", "adapters": len(told.adapters)}, now_s=now_s)
    return told
