"""What every command shares: configuration, channels to rooms, tables, and errors that end with their cure."""

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from catena.kit.caller import Caller, as_caller
from catena.kit.chassis import kept_token
from catena.kit.config import House
from catena.kit.dial import dial
from catena.kit.errors import CatenaError, Missing, Unavailable
from catena.sdk.client import AsyncCatena
from catena.sdk.home import listens

Stub = TypeVar("Stub")
_LEAST, _MOST = 1e-7, 1e7
"""Numbers between which none is told with a power of ten."""
Tenant = Annotated[str, typer.Option(help="Whose; the development key's unless named, `shared` is everybody's.")]


class Bytes(int):
    """A count of bytes: people read it in the nearest unit, programs as a number."""


class Expected(float):
    """An expected amount: people read with it the end that bears on a decision, programs the amount alone."""

    end: str

    def __new__(cls, mean: float, end: str) -> "Expected":
        """`end`: the other number in words, for example `to 0.3`."""
        told = super().__new__(cls, mean)
        told.end = end
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """One invocation: where the platform is, and how to print. `plain` prints JSON for programs."""

    house: House
    config: Path | None
    plain: bool = False
    console: Console = field(default_factory=Console)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a command; an expected error is printed with its code and ends with status 1, Ctrl-C with 130."""
        self.do(lambda: asyncio.run(work))

    def do(self, work: Callable[[], None]) -> None:
        """Run a command that waits for nobody; it ends as `run` does."""
        try:
            work()
        except CatenaError as error:
            told = f"[red]{error.code}[/red] {escape(error.message)}"
            Console(stderr=True).print(told, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    @asynccontextmanager
    async def room(self, name: str, stub: Callable[[grpc.aio.Channel], Stub], tenant: str) -> AsyncIterator[Stub]:
        """A stub of a room of the running platform, with the service token of its home, asking for `tenant`.

        Raises Unavailable (`no_platform`) where none runs.
        """
        await self._check(name)
        async with dial(self.house.address(name), token=kept_token(self.house)) as channel:
            with as_caller(Caller(tenant)):
                yield stub(channel)

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[AsyncCatena]:
        """The gateway with the development key of this home.

        Raises Unavailable (`no_platform`) where none runs, Missing (`no_key`) where it keeps no such key.
        """
        await self._check("gateway")
        path = Path(self.house.home) / "keys" / "development.key"
        if not path.exists():
            raise Missing(f"no development key at {path}; only `profile: development` keeps one", code="no_key")
        async with AsyncCatena(self.house.address("gateway"), key=path.read_text().strip()) as catena:
            yield catena

    async def _check(self, room: str) -> None:
        """Raise Unavailable (`no_platform`) where nobody listens; a command leaves no trace of its own there."""
        address = self.house.address(room)
        if not kept_token(self.house) or not await listens(address):
            raise Unavailable(
                f"no platform runs in {self.house.home}: no {room} at {address}; "
                "start one with `catena up`, or name another's configuration with --config",
                code="no_platform",
            )

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows as a table, or as a JSON list of objects; people are spared columns in which nothing stands."""
        listed = list(rows)
        if self.plain:
            sys.stdout.write(json.dumps([dict(zip(columns, row, strict=True)) for row in listed], default=str) + "\n")
            return
        table = Table(title=Text(title), title_justify="left")
        told = [[cell(value) for value in row] for row in listed]
        shown = [n for n in range(len(columns)) if n == 0 or any(row[n] for row in told)]
        for n in shown:
            numeric = all(isinstance(row[n], int | float | None) for row in listed)
            whole = numeric and not any(isinstance(row[n], Expected) for row in listed)
            justify: JustifyMethod = "right" if numeric else "left"
            table.add_column(columns[n], justify=justify, overflow="fold", no_wrap=whole)
        for row in told:
            table.add_row(*(Text(row[n]) for n in shown))
        self.console.print(table if listed else Text(f"{title}: none"))

    def message(self, message: Message) -> None:
        """A message as indented JSON."""
        told = json_format.MessageToJson(message, preserving_proto_field_name=True)
        if self.plain:
            sys.stdout.write(told + "\n")
        else:
            self.console.print_json(told)

    def say(self, text: str, *, markup: bool = False) -> None:
        """A line for people; nothing in JSON mode. `markup`: rich's, for texts that hold no data."""
        if not self.plain:
            self.console.print(text, soft_wrap=True, highlight=False, markup=markup)


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, Bytes):
        return size(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", "milliseconds")
    if isinstance(value, Expected):
        return f"{number(value)} {value.end}"
    if isinstance(value, float):
        return number(value)
    return str(value)


def number(value: float) -> str:
    """Three or four digits that count; without a power of ten where a price or a time is meant."""
    size = abs(value)
    if 1e3 <= size < _MOST:
        return f"{value:.0f}"
    return f"{value:.{2 - math.floor(math.log10(size))}f}" if _LEAST <= size < 1e-3 else f"{value:.4g}"


def moment(seconds: float) -> datetime | float | None:
    """A time since the epoch; 0 means none, and what no calendar holds stays a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (ValueError, OverflowError, OSError):
        return seconds


def size(count: int) -> str:
    """Bytes as people read them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
