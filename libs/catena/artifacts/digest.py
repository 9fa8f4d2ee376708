"""The name of an adapter or a base by its content: caches, the registry and the store all use it.

What counts: every file but the signature and documents (`*.md`, LICENSE, NOTICE), which change no answer; the
signature covers documents too. `catena.json` counts with its own `digest` field blank, since a digest cannot hold
itself. The digest is BLAKE3 over a tag and the JSON list of [name, size, BLAKE3 of the bytes], in order of name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import blake3
import msgspec

from catena.artifacts.files import MANIFEST, SIGNATURE, PlainFile, list_files, open_plain, read_small
from catena.artifacts.refusal import Kind
from catena.artifacts.strict_json import read_object

TAG = b"catena folder 1\n"
CHUNK = 1 << 20
MAX_MANIFEST_BYTES = 1 << 18
FileRow = tuple[str, int, str]
"""A file's name, its size in bytes, and BLAKE3 of its bytes, 64 hex digits."""
DOCUMENTS = frozenset({"LICENSE", "LICENCE", "NOTICE"})


def folder_digest(folder: Path, kind: Kind = "adapter", links_within: Path | None = None) -> str:
    """The content digest of a folder, 64 hex digits. Raises Refused when the folder holds more than plain files."""
    return files_digest(list_files(folder, kind, links_within), kind)


def files_digest(files: Mapping[str, PlainFile], kind: Kind = "adapter") -> str:
    """The content digest of files already listed, 64 hex digits."""
    return digest_of(file_rows(files, kind))


def file_rows(files: Mapping[str, PlainFile], kind: Kind = "adapter") -> list[FileRow]:
    """What a folder's digest is made of, each file that counts read once."""
    return [_row(file, kind) for name, file in sorted(files.items()) if counts(name)]


def digest_of(rows: Sequence[FileRow]) -> str:
    """The content digest of a folder whose files these are, 64 hex digits."""
    return blake3.blake3(TAG + msgspec.json.encode(rows)).hexdigest()


def counts(name: str) -> bool:
    """Whether the file's bytes are part of the digest."""
    return name != SIGNATURE and not name.endswith(".md") and name.partition(".")[0] not in DOCUMENTS


def file_digest(path: Path, kind: Kind = "adapter") -> str:
    """BLAKE3 of one file's bytes, read as a stream, 64 hex digits."""
    hasher = blake3.blake3()
    buffer = memoryview(bytearray(CHUNK))
    with open_plain(path, kind) as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]
            hasher.update(buffer[:count])
    return hasher.hexdigest()


def _row(file: PlainFile, kind: Kind) -> FileRow:
    if file.name == MANIFEST:
        tree = read_object(read_small(file, MAX_MANIFEST_BYTES, kind), MANIFEST, kind, "bad_manifest")
        raw = msgspec.json.encode(tree | {"digest": ""}, order="sorted")
        return file.name, len(raw), blake3.blake3(raw).hexdigest()
    return file.name, file.size, file_digest(file.path, kind)
