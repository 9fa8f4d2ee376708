"""What was measured: rows with what they are held to, printed as they are found, as a table and as JSON at the end."""

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Measure = Callable[[], float]
AsyncMeasure = Callable[[], Awaitable[float]]
COLUMNS = ("", "what", "of", "ours", "other", "figure", "aim", "note")
LEFT = ("", "what", "of", "note")


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure is held to."""

    sign: Literal[">=", "<="]
    bound: float

    def held(self, figure: float) -> bool:
        """Whether the figure is as it should be."""
        return figure >= self.bound if self.sign == ">=" else figure <= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"


def at_least(bound: float) -> Aim:
    """Held to be as large."""
    return Aim(">=", bound)


def at_most(bound: float) -> Aim:
    """Held to be as small."""
    return Aim("<=", bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure, mostly a ratio of `ours` and `other`, both in `unit`; `aim` None: it is told, not held to anything."""

    part: str
    what: str
    unit: str
    ours: float
    figure: float
    other: float | None = None
    aim: Aim | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A part that gave no figures, and why: its peer is not installed, or it failed."""

    part: str
    why: str
    failed: bool = False


class Report:
    """Gathers rows. `setting` says of which model, in which type of numbers, what is found now is."""

    def __init__(self, console: Console, *, rounds: int) -> None:
        """Every median is of `rounds` rounds."""
        self.setting = ""
        self.rounds = rounds
        self.found: list[tuple[str, Row | Missing]] = []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=1,  # what is measured may run in this very process
        )

    @property
    def failed(self) -> bool:
        """Whether a part broke off; one that falls short, or whose peer is not there, did not."""
        return any(isinstance(found, Missing) and found.failed for _, found in self.found)

    def add(self, found: Row | Missing) -> None:
        """Keep and show it."""
        self.found.append((self.setting, found))
        self.progress.console.print(" ".join(filter(None, _cells(self.setting, found))), highlight=False)

    def medians(self, what: str, *measures: Measure, least: int = 0) -> list[float]:
        """Each measure's median over rounds, `least` at least, in which all take their turn."""
        rounds = max(self.rounds, least)
        task = self.progress.add_task(what, total=rounds * len(measures))
        told: list[list[float]] = [[] for _ in measures]
        for _ in range(rounds):
            for measure, values in zip(measures, told, strict=True):
                values.append(measure())
                self.progress.advance(task)
        self.progress.remove_task(task)
        return [statistics.median(values) for values in told]

    async def medians_of(self, what: str, *measures: AsyncMeasure) -> list[float]:
        """The same for what other processes do."""
        task = self.progress.add_task(what, total=self.rounds * len(measures))
        told: list[list[float]] = [[] for _ in measures]
        for _ in range(self.rounds):
            for measure, values in zip(measures, told, strict=True):
                values.append(await measure())
                self.progress.advance(task)
        self.progress.remove_task(task)
        return [statistics.median(values) for values in told]

    def table(self, title: str) -> Table:
        """Everything."""
        made = Table(title=title, title_justify="left")
        for name in COLUMNS:
            made.add_column(name, justify="left" if name in LEFT else "right", no_wrap=name in ("", "aim"))
        for setting, found in self.found:
            made.add_row(*_cells(setting, found))
        return made

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """The same as JSON, `about` in front."""
        rows = [{"of": setting} | _plain(found) for setting, found in self.found]
        path.write_bytes(
            msgspec.json.format(msgspec.json.encode(about | {"rounds": self.rounds, "rows": rows})) + b"\n"
        )


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of the others do not exceed."""
    return sorted(values)[int(share * (len(values) - 1))]


def _cells(setting: str, found: Row | Missing) -> tuple[str, ...]:
    if isinstance(found, Missing):
        style, word = ("red", "failed") if found.failed else ("yellow", "skipped")
        return (f"({found.part})", f"[{style}]{word}[/{style}]: {found.why}", setting, "", "", "", "", "")
    style = "" if found.aim is None else "green" if found.aim.held(found.figure) else "yellow"
    figure = f"{found.figure:.2f}"
    return (
        f"({found.part})",
        found.what,
        setting,
        f"{found.ours:.4g} {found.unit}",
        "" if found.other is None else f"{found.other:.4g} {found.unit}",
        f"[{style}]{figure}[/{style}]" if style else figure,
        str(found.aim or ""),
        found.note,
    )


def _plain(found: Row | Missing) -> dict[str, Any]:
    told = asdict(found)
    if isinstance(found, Row):
        told |= {"aim": str(found.aim or ""), "held": None if found.aim is None else found.aim.held(found.figure)}
    return told
