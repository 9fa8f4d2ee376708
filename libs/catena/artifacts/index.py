"""A registry of adapters as a folder of plain files, which any web server or bucket can serve.

`index.json` lists the adapters, each of which lies beside it as a tar. `catena adapters publish` writes such a folder;
the adapters' room looks for updates in one. What an index says is believed of an adapter only once its own, signed
manifest says the same.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from catena.artifacts import manifest
from catena.artifacts.manifest import Label, Name, Version
from catena.artifacts.placing import put
from catena.artifacts.refusal import refused
from catena.artifacts.strict_json import read_object
from catena.artifacts.tar import pack

INDEX = "index.json"
MAX_INDEX_BYTES = 16 << 20
Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one adapter, named, based and measured as in its manifest.

    `url` is where its tar of `bytes` with SHA-256 `sha256` is, seen from the index.
    """

    name: Name
    version: Version
    base: Label
    base_digest: Hash
    digest: Hash
    rank: Annotated[int, msgspec.Meta(ge=1)]
    tasks: tuple[Label, ...] = ()
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    bytes: Annotated[int, msgspec.Meta(ge=1)]
    sha256: Hash


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """What there is; fields that are not known are passed over, so that later ones can be added."""

    format: Literal[1] = 1
    adapters: tuple[Entry, ...] = ()


def decode(raw: bytes) -> Index:
    """The index in `raw`. Raises Refused (`adapter_bad_index`) naming the offending field."""
    tree = read_object(raw, INDEX, "adapter", "bad_index")
    try:
        return msgspec.convert(tree, Index)
    except msgspec.ValidationError as error:
        raise refused("adapter", "bad_index", f"{INDEX}: {error}; publish it again") from error


def publish(adapters: Iterable[Path], into: Path) -> Index:
    """Write the sealed folders `adapters` and their index into `into`; a reader sees the old index or the new one.

    Tars that an earlier index named stay, for those who are fetching them.
    """
    into.mkdir(parents=True, exist_ok=True)
    index = Index(adapters=tuple(_publish(folder, into) for folder in adapters))
    put(into / INDEX, msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n")
    return index


def _publish(folder: Path, into: Path) -> Entry:
    card, raw = manifest.read(folder), pack(folder)
    entry = Entry(
        name=card.name,
        version=card.version,
        base=card.base_name,
        base_digest=card.base_digest,
        digest=card.digest,
        rank=card.rank,
        tasks=card.tasks,
        metrics=card.metrics,
        url=f"{card.digest}.tar",
        bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    put(into / entry.url, raw)
    return entry
