"""Artifacts on disk by content: `ROOT/<digest[:2]>/<digest>/`, each folder complete or absent.

The trainer imports what it made; the adapters' server imports uploads and loads from here. Calls block on the disk;
asynchronous callers use a thread. What a folder may hold is the gate's business; here only plain files pass.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from catena.artifacts.digest import CHUNK, counts, folder_digest
from catena.artifacts.files import MANIFEST, SIGNATURE, PlainFile, list_files, open_plain
from catena.artifacts.placing import sync_folder
from catena.artifacts.refusal import Kind, refused
from catena.artifacts.tar import unpack
from catena.kit.errors import Invalid, Missing

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
STAGING = ".staging-"
LEAVING = ".leaving-"


class ArtifactStore:
    """Folders named by their digest under one root, on one file system."""

    def __init__(self, root: Path, *, max_bytes: int = 2 << 30, kind: Kind = "adapter") -> None:
        """Use `root`, made if absent, and clear what a crash left half done; `max_bytes` caps one artifact."""
        self.root = root
        self.max_bytes = max_bytes
        self.kind: Kind = kind
        root.mkdir(parents=True, exist_ok=True)
        for left in (*root.glob(f"{STAGING}*"), *root.glob(f"{LEAVING}*")):
            shutil.rmtree(left)

    def put_folder(self, source: Path) -> str:
        """Copy a folder of plain files in and return its digest. Raises Refused for links, sub-folders, too many bytes.

        If the digest is here already, the copy is dropped, except that an unsigned one gains the newcomer's signature.
        """
        files = list_files(source, self.kind)
        total = sum(file.size for file in files.values())
        if total > self.max_bytes:
            raise refused(self.kind, "too_large", f"{source.name} has {total} bytes, at most {self.max_bytes} are kept")

        def fill(staging: Path) -> None:
            for name, file in files.items():
                _copy(file, staging / name, self.kind)

        return self._take(fill)

    def put_tar(self, data: bytes) -> str:
        """Unpack a plain tar and keep it as `put_folder` does. Raises Refused for anything but plain files."""
        return self._take(lambda staging: unpack(data, staging, self.kind, max_bytes=self.max_bytes))

    def path(self, digest: str) -> Path:
        """The artifact's folder. Raises Missing when it is not here."""
        path = self._place(digest)
        if not path.is_dir():
            raise Missing(f"no {self.kind} with digest {digest} in the store; import it first", code="unknown_artifact")
        return path

    def has(self, digest: str) -> bool:
        """Whether the artifact is here."""
        return self._place(digest).is_dir()

    def bytes(self, digest: str) -> int:
        """Bytes of all its files, as they lie here; 0 when it is gone."""
        files = list_files(self._place(digest), self.kind) if self.has(digest) else {}
        return sum(file.size for file in files.values())

    def list(self) -> list[str]:
        """Every digest here, in order."""
        return sorted(path.name for path in self.root.glob("[0-9a-f][0-9a-f]/*") if DIGEST.match(path.name))

    def delete(self, digest: str) -> None:
        """Remove an artifact, at once for readers of the store. Raises Missing when it is not here."""
        leaving = self.root / f"{LEAVING}{digest}"
        os.rename(self.path(digest), leaving)
        sync_folder(self._place(digest).parent)
        shutil.rmtree(leaving)

    def _take(self, fill: Callable[[Path], None]) -> str:
        staging = Path(tempfile.mkdtemp(dir=self.root, prefix=STAGING))
        try:
            fill(staging)
            for path in staging.iterdir():
                _sync_file(path)
            sync_folder(staging)
            digest = folder_digest(staging, self.kind)
            self._place(digest).parent.mkdir(exist_ok=True)
            self._settle(staging, self._place(digest))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return digest

    def _settle(self, staging: Path, place: Path) -> None:
        staging.chmod(0o755)
        try:
            os.rename(staging, place)
        except OSError:
            if not place.is_dir():
                raise
            _vouch(staging, place)
        sync_folder(place.parent)
        sync_folder(self.root)

    def _place(self, digest: str) -> Path:
        return place_of(self.root, digest)


def place_of(root: Path, digest: str) -> Path:
    """Where a store at `root` keeps an artifact, for readers beside its owner. Raises Invalid when it is no digest."""
    if not DIGEST.match(digest):
        raise Invalid(f"{digest[:80]!r} is no digest; 64 hex digits are meant", code="bad_digest")
    return root / digest[:2] / digest


def _vouch(staging: Path, place: Path) -> None:
    """Give an unsigned artifact the signature of an equal one, and the files that it covers beyond the digest."""
    if (place / SIGNATURE).exists() or not (staging / SIGNATURE).exists():
        return
    for path in staging.iterdir():
        if path.name == MANIFEST or not counts(path.name):
            os.replace(path, place / path.name)
    sync_folder(place)


def _copy(file: PlainFile, target: Path, kind: Kind) -> None:
    with open_plain(file.path, kind) as source, target.open("xb") as copy:
        left = file.size
        while left > 0 and (part := source.read(min(CHUNK, left))):
            copy.write(part)
            left -= len(part)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
