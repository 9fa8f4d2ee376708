"""What a base that was made from others says of itself: its `catena.json`, sealed like an adapter's.

The file counts in the base's content digest, so the digests that it names cannot be changed unseen.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from catena.artifacts.digest import MAX_MANIFEST_BYTES, folder_digest
from catena.artifacts.files import MANIFEST, PlainFile, read_small
from catena.artifacts.manifest import Digest, Label
from catena.artifacts.placing import put
from catena.artifacts.refusal import refused, untrusted
from catena.artifacts.strict_json import read_object


class Derived(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a base comes from.

    `digest` is the folder's own, empty until sealed. `merge`: `base_digest` and `adapter_digest` are the content
    digests of what was merged. `gguf`: `source_sha256` is the imported file's, `source_types` the types of its tensors.
    Time in seconds since the Unix epoch.
    """

    format: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    kind: Literal["merge", "gguf"]
    name: Label
    digest: Digest = ""
    base_name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    base_digest: Digest = ""
    adapter_name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    adapter_digest: Digest = ""
    source_sha256: Digest = ""
    source_types: dict[str, int] = {}
    created_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


def seal(folder: Path, card: Derived) -> Derived:
    """Write the manifest with the folder's digest filled in and return it. Sign afterwards, if at all."""
    _write(folder, msgspec.structs.replace(card, digest=""))
    sealed = msgspec.structs.replace(card, digest=folder_digest(folder, "base"))
    _write(folder, sealed)
    return sealed


def read(folder: Path) -> Derived:
    """The manifest of a derived base that is as it was sealed.

    Raises Refused when there is none or it cannot be read, Untrusted (`base_tampered`) when the folder has changed.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise refused("base", "missing_file", f"no {MANIFEST} in {folder}; it was not made by a merge or an import")
    raw = read_small(PlainFile(name=MANIFEST, path=path, size=0), MAX_MANIFEST_BYTES, "base")
    try:
        card = msgspec.convert(read_object(raw, MANIFEST, "base", "bad_manifest"), Derived)
    except msgspec.ValidationError as error:
        raise refused("base", "bad_manifest", f"{MANIFEST}: {error}; make the base again") from error
    actual = folder_digest(folder, "base")
    if card.digest != actual:
        message = f"{MANIFEST} says digest {card.digest or 'none'}, the files have {actual}; make the base again"
        raise untrusted("base", "tampered", message)
    return card


def _write(folder: Path, card: Derived) -> None:
    put(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
