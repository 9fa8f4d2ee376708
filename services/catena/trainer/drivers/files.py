"""Files that a job's sources name. A tenant reads the data folder only, not whatever this process can read."""

import asyncio
from pathlib import Path

from catena.kit.errors import Denied, Invalid, Missing


class DataFiles:
    """`core.ports.Files` over one folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Relative paths are taken from `folder`; a file may have `max_bytes`."""
        self._folder = folder
        self._max_bytes = max_bytes

    async def read(self, path: str, *, anywhere: bool) -> bytes:
        """The file's bytes, whole."""
        return await asyncio.to_thread(self._read, path, anywhere)

    def _read(self, path: str, anywhere: bool) -> bytes:
        folder = self._folder.resolve()
        found = (folder / path).resolve()
        if not anywhere and not found.is_relative_to(folder):
            raise Denied(
                f"{path} lies outside {folder}; put it there, or send the rows themselves", code="outside_data"
            )
        if not found.is_file():
            raise Missing(f"no file at {found}; name a JSON lines file", code="no_file")
        if found.stat().st_size > self._max_bytes:
            raise Invalid(f"{path} has over {self._max_bytes} bytes; split it or raise trainer.max_data_bytes")
        return found.read_bytes()
