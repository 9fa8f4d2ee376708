"""Tables as they are found, printed and kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from benchmarks.router.metrics import Spread

Cell = str | float | Spread
Item = TypeVar("Item")


@dataclass
class Report:
    """Every table so far; each row names what it is about."""

    console: Console
    tables: list[Mapping[str, object]] = field(default_factory=list)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        shown = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        # Seldom, for what is timed runs in this very process.
        self.progress = Progress(*shown, console=self.console, refresh_per_second=1)

    def along(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items, with a bar that moves along."""
        task = self.progress.add_task(what, total=len(items))
        for item in items:
            yield item
            self.progress.advance(task)
        self.progress.remove_task(task)

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
