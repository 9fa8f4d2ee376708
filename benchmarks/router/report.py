"""Tables as they are found, printed and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table as Grid

from benchmarks.router.metrics import Spread

Cell = str | float | Spread


@dataclass
class Report:
    """Every table so far; each row names what it is about."""

    console: Console
    tables: list[Mapping[str, object]] = field(default_factory=list)

    def add(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> None:
        """Print a table and keep it."""
        grid = Grid(title=title, title_justify="left", caption=note or None, caption_justify="left")
        for n, name in enumerate(columns):
            grid.add_column(name, justify="left" if n == 0 else "right")
        for row in rows:
            grid.add_row(*map(_shown, row))
        self.console.print(grid)
        self.tables.append(
            {
                "title": title,
                "note": note,
                "rows": [dict(zip(columns, map(_plain, row), strict=True)) for row in rows],
            }
        )

    def write(self, path: Path, about: Mapping[str, object]) -> None:
        """Everything as JSON, `about` in front."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode({**about, "tables": self.tables})) + b"\n")


def _shown(cell: Cell) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> object:
    return {"mean": cell.mean, "half_width_95": cell.half} if isinstance(cell, Spread) else cell
