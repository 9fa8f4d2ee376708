"""An adapter that is one `.safetensors` file: with its configuration it becomes a folder like any other.

Its configuration lies beside it, as `NAME.json` for `NAME.safetensors` or as `adapter_config.json`. A signed record
beside it (`sidecar`) is verified, but vouches for that file alone: what is served is the sealed folder, which is signed
as a whole or, where no signature is needed, not at all.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catena.artifacts import lora, sidecar
from catena.artifacts.files import CONFIG, WEIGHTS, PlainFile, read_small
from catena.artifacts.gate import MAX_CONFIG_BYTES, Rules
from catena.artifacts.manifest import Manifest, Training, seal
from catena.artifacts.refusal import refused, untrusted
from catena.kit.errors import CatenaError, Invalid

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What an adapter without a manifest is called and which base it is for, since nothing in it says so."""

    name: str
    version: str
    base: str
    base_digest: str
    tasks: tuple[str, ...] = ()


def called(told: str) -> tuple[str, str]:
    """Name and version as `name:version` says them. Raises Invalid."""
    name, colon, version = told.partition(":")
    if not (name and colon and version):
        raise Invalid(f"{told[:200]!r} should read name:version, for example mine:1", code="bad_name")
    return name, version


@contextmanager
def as_folder(source: Path) -> Iterator[Path]:
    """A folder with an adapter's weights and configuration under their usual names; a folder is itself."""
    if source.suffix != SUFFIX or not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="catena-single-") as scratch:
        folder = Path(scratch) / source.stem
        folder.mkdir()
        shutil.copyfile(source, folder / WEIGHTS)
        shutil.copyfile(config_of(source), folder / CONFIG)
        yield folder


def config_of(source: Path) -> Path:
    """Where the configuration of a file lies. Raises Refused."""
    for place in (source.with_suffix(".json"), source.with_name(CONFIG)):
        if place.is_file():
            return place
    names = f"{source.stem}.json or {CONFIG}"
    raise refused("adapter", "missing_file", f"no configuration beside {source.name}; put it there as {names}")


@contextmanager
def sealed(source: Path, card: Called, keys: Mapping[str, Path]) -> Iterator[Path]:
    """The file as a sealed folder, not signed. Raises Refused, and Untrusted where a record beside it tells otherwise.

    `keys` are the public keys trusted here; any RSA key of them may have signed the record.
    """
    if sidecar.sidecar_path(source).is_file():
        check_record(source, keys)
    with as_folder(source) as folder:
        rules = Rules()
        raw = read_small(PlainFile(name=CONFIG, path=folder / CONFIG, size=0), MAX_CONFIG_BYTES, "adapter")
        config = lora.read_config(raw, max_rank=rules.max_rank, max_alpha=rules.max_alpha)
        seal(
            folder,
            Manifest(
                name=card.name,
                version=card.version,
                base_name=card.base,
                base_digest=card.base_digest,
                tasks=card.tasks,
                rank=max([config.rank, *config.rank_pattern.values()]),
                alpha=config.alpha,
                target_modules=tuple(sorted(config.targets)),
                # No time of day: the same file has the same digest whenever it comes.
                training=Training(method="one file"),
            ),
        )
        yield folder


def check_record(model: Path, keys: Mapping[str, Path]) -> str:
    """The name of the key that signed the record beside a model. Raises Untrusted, Refused."""
    wrong: CatenaError | None = None
    for who, public in keys.items():
        try:
            sidecar.verify(model, public)
        except CatenaError as error:
            if error.code not in ("bad_key", "model_wrong_key"):
                raise
            wrong = error
        else:
            return who
    told = f"nobody trusted here signed {sidecar.sidecar_path(model).name}: {', '.join(keys) or 'no key is trusted'}"
    raise untrusted("model", "wrong_key", f"{told}; add its signer's RSA key, or remove the record") from wrong
