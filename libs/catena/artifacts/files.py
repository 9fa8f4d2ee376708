"""A folder of plain files, listed and opened without ever following a link that was not allowed.

Used by the digest, the gate and the store, so that all three see the same files.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from catena.artifacts.refusal import Kind, refused

MANIFEST = "catena.json"
SIGNATURE = "model.sig"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
MAX_FILES = 4096
# Left by version control and download tools; never read by any loader.
CLUTTER = frozenset({".git", ".gitattributes", ".gitignore", ".cache"})
# Where sentence-transformers keeps what follows an encoder, for example `1_Pooling`.
STAGE = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFile:
    """One file of a folder: `path` is where its bytes are, links resolved; `size` is in bytes."""

    name: str
    path: Path
    size: int


def list_files(folder: Path, kind: Kind, links_within: Path | None = None) -> dict[str, PlainFile]:
    """Every file of `folder` by name, in order of name.

    A base's CLUTTER is left out, and what its STAGE folders hold is named `1_Pooling/config.json`. A link is followed
    only if it ends at a regular file under `links_within` (a hub's cache keeps its snapshots as links). Raises Refused
    for links, other sub-folders, special files, odd names.
    """
    if folder.is_symlink() and links_within is None:
        raise refused(kind, "unsafe_file", f"{folder} is a link; name the folder itself")
    if not folder.is_dir():
        raise refused(kind, "missing_file", f"no folder at {folder}; name the folder that holds the {kind}")
    found: dict[str, PlainFile] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if kind == "base" and entry.name in CLUTTER:
                continue
            if kind == "base" and STAGE.match(entry.name) and entry.is_dir(follow_symlinks=False):
                found |= _stage(entry, links_within)
                continue
            if len(found) >= MAX_FILES:
                raise refused(kind, "too_large", f"{folder} holds over {MAX_FILES} files; keep only the {kind}'s own")
            found[entry.name] = _plain(entry, kind, links_within)
    return dict(sorted(found.items()))


def _stage(entry: os.DirEntry[str], links_within: Path | None) -> dict[str, PlainFile]:
    with os.scandir(entry.path) as entries:
        files = [_plain(inner, "base", links_within) for inner in entries]
    return {name: replace(file, name=name) for file in files for name in [f"{entry.name}/{file.name}"]}


def _plain(entry: os.DirEntry[str], kind: Kind, links_within: Path | None) -> PlainFile:
    path, name = Path(entry.path), entry.name
    if not name.isprintable() or "\\" in name:
        raise refused(kind, "unsafe_file", f"file name {name!r} has unprintable characters or backslashes; rename it")
    if entry.is_symlink():
        target = path.resolve()
        if links_within is None or not target.is_relative_to(links_within.resolve()):
            raise refused(kind, "unsafe_file", f"{name} is a link to {target}; put the file itself in the folder")
        path = target
    status = path.lstat() if path.exists() else entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        raise refused(kind, "unsafe_file", f"{name} is a folder; keep all files of the {kind} in one folder")
    if not stat.S_ISREG(status.st_mode):
        raise refused(kind, "unsafe_file", f"{name} is no regular file (mode {status.st_mode:o}); remove it")
    return PlainFile(name=name, path=path, size=status.st_size)


@contextmanager
def open_plain(path: Path, kind: Kind) -> Iterator[BinaryIO]:
    """Open a regular file for reading, unbuffered. Raises Refused if a link or special file has taken its place."""
    try:
        # Non-blocking, so that a pipe put in place of the file cannot hold the reader up.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refused(kind, "unsafe_file", f"{path.name} cannot be opened as a plain file: {error.strerror}") from error
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise refused(kind, "unsafe_file", f"{path.name} is no regular file; remove it")
        yield file


def read_small(file: PlainFile, limit: int, kind: Kind) -> bytes:
    """All bytes of a file of at most `limit` bytes. Raises Refused when it is larger."""
    with open_plain(file.path, kind) as opened:
        parts, room = [], limit + 1
        while room > 0 and (part := opened.read(room)):
            parts.append(part)
            room -= len(part)
    if room <= 0:
        raise refused(kind, "too_large", f"{file.name} has over {limit} bytes; it should be far smaller")
    return b"".join(parts)
