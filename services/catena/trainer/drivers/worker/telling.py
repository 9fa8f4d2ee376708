"""How the worker tells its room: one JSON object a line, appended and flushed."""

from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from catena.trainer.core.order import Report


class Telling:
    """Appends reports to a file."""

    def __init__(self, path: Path) -> None:
        """Begin the file anew."""
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, report: Report) -> None:
        """Write one line; whole or, if the process dies meanwhile, recognisably not."""
        self._file.write(msgspec.json.encode(report) + b"\n")
