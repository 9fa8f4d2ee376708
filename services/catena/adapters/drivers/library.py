"""The adapters that come with an installation: a folder of adapter folders, registered for everybody.

In development the folder is watched: what changes there is registered under a new version, so that whoever trains or
edits an adapter can ask it at once.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TypeAlias

import structlog

from catena.adapters.core.adapters import SHARED, Adapters
from catena.adapters.core.naming import point_first
from catena.adapters.core.ports import Registry
from catena.adapters.core.records import AdapterRecord
from catena.adapters.core.refs import STABLE
from catena.adapters.core.versions import order
from catena.artifacts import manifest
from catena.artifacts.digest import folder_digest
from catena.artifacts.files import CARD, SIGNATURE
from catena.kit.errors import CatenaError

Look: TypeAlias = tuple[tuple[str, int, int], ...]
"""A folder at a glance: each file's name, size and time of change."""
log = structlog.get_logger()


class Library:
    """The folder, and what of it is registered. What the gate refuses is logged and left out until it changes."""

    def __init__(self, folder: Path, adapters: Adapters, registry: Registry, *, watched: bool, reseal: bool) -> None:
        """`watched` numbers a changed adapter anew; `reseal` takes one in whose files no longer match its manifest.

        To seal anew is for those who need no signature: only the trainer's key could sign what was changed.
        """
        self._folder = folder
        self._adapters = adapters
        self._registry = registry
        self._watched = watched
        self._reseal = watched and reseal
        self._taken: dict[Path, Look] = {}
        self._seen: dict[Path, Look] = {}

    async def register_all(self) -> list[AdapterRecord]:
        """Register every adapter folder. One whose name has no stable version yet becomes it."""
        looks = await asyncio.to_thread(_looks, self._folder)
        return [record for path, look in looks.items() if (record := await self._take(path, look)) is not None]

    async def turn(self) -> list[AdapterRecord]:
        """Register what changed since it was taken and has not changed since the last turn: nobody writes it now."""
        looks = await asyncio.to_thread(_looks, self._folder)
        settled = [
            path for path, look in looks.items() if look != self._taken.get(path) and look == self._seen.get(path)
        ]
        self._seen = looks
        return [record for path in settled if (record := await self._take(path, looks[path])) is not None]

    async def _take(self, path: Path, look: Look) -> AdapterRecord | None:
        self._taken[path] = look
        try:
            record = await self._register(path)
            await self._point(record)
        except CatenaError as error:
            log.error("library adapter refused", folder=path.name, code=error.code, error=error.message)
            return None
        except OSError as error:
            # Somebody still works on the folder; once it has settled it is new to us again.
            log.warning("library adapter not read", folder=path.name, error=str(error))
            del self._taken[path]
            return None
        log.info("library adapter registered", adapter=record.model)
        return record

    async def _register(self, path: Path) -> AdapterRecord:
        if not self._reseal:
            return await self._adapters.register(SHARED, path, renumber=self._watched)
        with tempfile.TemporaryDirectory() as scratch:
            sealed = await asyncio.to_thread(_resealed, path, Path(scratch) / path.name)
            return await self._adapters.register(SHARED, sealed, renumber=True)

    async def _point(self, record: AdapterRecord) -> None:
        """Let `stable` mean this version where it meant none, or the newest until now of a watched folder."""
        stable = await point_first(self._registry, record)
        if stable is None:
            return
        versions = await self._registry.versions(SHARED, record.base, record.name)
        before = max((one.version for one in versions if one.version != record.version), key=order, default="")
        if self._watched and stable.version == before and order(record.version) > order(before):
            await self._registry.set_alias(
                SHARED, record.base, record.name, STABLE, version=record.version, expected=stable.digest
            )


def _looks(folder: Path) -> dict[Path, Look]:
    """Every adapter folder below `folder`, at a glance; what vanishes while it is looked at is left out."""
    found = {}
    for path in sorted(folder.glob("**/adapter_config.json")):
        try:
            stats = [(file.name, file.stat()) for file in sorted(path.parent.iterdir())]
        except FileNotFoundError:
            continue
        found[path.parent] = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    return found


def _resealed(source: Path, copy: Path) -> Path:
    """The folder itself where its manifest still tells the truth, else an unsigned copy with one that does.

    Raises the manifest's refusals.
    """
    card = manifest.read(source)
    if card.digest == folder_digest(source):
        return source
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(SIGNATURE, CARD))
    manifest.seal(copy, card)
    return copy
