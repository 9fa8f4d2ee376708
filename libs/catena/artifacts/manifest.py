"""What an adapter says of itself: `catena.json` for programs and the model card for people.

The trainer seals a folder with both after training; the registry reads the manifest at import.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from catena.artifacts.digest import MAX_MANIFEST_BYTES, folder_digest
from catena.artifacts.files import CARD, MANIFEST, WEIGHTS, PlainFile, read_small
from catena.artifacts.placing import put
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}\Z")]
Version = Annotated[
    str, msgspec.Meta(pattern=r"^(\d{1,9}|\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,40})?)\Z", max_length=80)
]
Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Text = Annotated[str, msgspec.Meta(max_length=8000)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights come from. `data_digest` names the training set; empty: unknown."""

    method: Label = "lora"
    examples: Count = 0
    steps: Count = 0
    epochs: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    seed: int = 0
    data_digest: Annotated[str, msgspec.Meta(max_length=200)] = ""
    job: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of one adapter.

    `digest` is the folder's content digest, empty until sealed; `base_digest` the digest of the only base that it fits;
    `bytes` the size of the weights file; `metrics` are measured on held-out data, by name; `parent_digest` is the
    adapter that this one was trained on from, empty if none. Time in seconds since the Unix epoch.
    """

    format: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    name: Name
    version: Version
    digest: Digest = ""
    base_name: Label
    base_digest: Digest
    tasks: tuple[Label, ...] = ()
    rank: Annotated[int, msgspec.Meta(ge=1)]
    alpha: Annotated[float, msgspec.Meta(gt=0)]
    target_modules: tuple[Label, ...]
    bytes: Count = 0
    training: Training = Training()
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    created_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    licence: Annotated[str, msgspec.Meta(max_length=200)] = ""
    description: Text = ""
    parent_digest: Digest = ""


def decode(raw: bytes) -> Manifest:
    """The manifest in `raw`. Raises Refused (`adapter_bad_manifest`) naming the offending field."""
    tree = read_object(raw, MANIFEST, "adapter", "bad_manifest")
    try:
        return msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as error:
        raise refused("adapter", "bad_manifest", f"{MANIFEST}: {error}; write it with catena.artifacts") from error


def read(folder: Path) -> Manifest:
    """The manifest of an adapter folder. Raises Refused when it is absent or wrong."""
    path = folder / MANIFEST
    if not path.exists():
        cure = "`catena adapters import` seals and signs such a folder"
        raise refused("adapter", "missing_file", f"no {MANIFEST} in {folder}; {cure}")
    return decode(read_small(PlainFile(name=MANIFEST, path=path, size=0), MAX_MANIFEST_BYTES, "adapter"))


def write(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into the folder, atomically. Raises Refused when a field breaks its rule."""
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode(raw)
    put(folder / MANIFEST, raw)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest and model card with the folder's true size and digest filled in, and return that manifest.

    Sign afterwards: a signature covers both files.
    """
    sized = msgspec.structs.replace(manifest, digest="", bytes=(folder / WEIGHTS).stat().st_size)
    write(folder, sized)
    sealed = msgspec.structs.replace(sized, digest=folder_digest(folder))
    write(folder, sealed)
    put(folder / CARD, card(sealed).encode())
    return sealed


def card(manifest: Manifest) -> str:
    """The model card: front matter as model hubs read it, then tables for people."""
    front = {
        "base_model": manifest.base_name,
        "library_name": "peft",
        "license": manifest.licence or "unknown",
        "tags": ["lora", *manifest.tasks],
    }
    made = manifest.training
    rows = {
        "version": manifest.version,
        "content digest": f"`{manifest.digest}`",
        "base": f"{_cell(manifest.base_name)} `{manifest.base_digest}`",
        "tasks": _cell(", ".join(manifest.tasks)) or "any",
        "rank, alpha": f"{manifest.rank}, {manifest.alpha:g}",
        "modules": _cell(", ".join(manifest.target_modules)),
        "weights": f"{manifest.bytes:,} bytes",
        "training": f"{_cell(made.method)}: {made.examples} examples, {made.steps} steps, seed {made.seed}",
        "training data": f"`{_cell(made.data_digest) or 'unknown'}`",
    }
    if manifest.parent_digest:
        rows["continues"] = f"`{manifest.parent_digest}`"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {manifest.name} {manifest.version}",
        *([manifest.description.strip()] if manifest.description.strip() else []),
        _table("", "", rows),
        "## Evaluation",
        _table("metric", "value", {_cell(name): f"{value:.4g}" for name, value in sorted(manifest.metrics.items())})
        if manifest.metrics
        else "Not evaluated.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(left: str, right: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|-|-|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
