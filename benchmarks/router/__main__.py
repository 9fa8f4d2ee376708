"""Run it: `make bench-router`, or `python -m benchmarks.router --parts 1,2`."""

import argparse
import asyncio
import os
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.router.domains import domains
from benchmarks.router.live import live
from benchmarks.router.many import many
from benchmarks.router.pairs import pairs
from benchmarks.router.report import Report
from benchmarks.router.speed import speed
from benchmarks.router.strategies import strategies
from benchmarks.router.table import Table, mmlu_pro, read_table, routellm
from catena.embed import Embedder, open_embedder
from catena.kit.errors import Missing

DATA = "CATENA_DATA"
PARTS = "123456"
EMBEDDING = Path(".catena-cache/minilm-int8")


async def run(report: Report, tables: list[Table], parts: str, seeds: int) -> None:
    """Every wanted part on the tables that it can be asked of."""
    for table in tables:
        wide = len(table.models) > 2
        if "1" in parts and (not wide or len(tables) == 1):
            await pairs(report, table, seeds)
        if "2" in parts and (wide or len(tables) == 1):
            await many(report, table, min(seeds, 3))
        if "3" in parts and (wide or len(tables) == 1):
            await live(report, table, min(seeds, 3))
        if "4" in parts and wide:
            await strategies(report, table)
    if "5" in parts:
        await speed(report)


def tables_of(told: Path | None) -> list[Table]:
    """The table that is named, else the public ones below `CATENA_DATA`. Raises SystemExit that says what to set."""
    if told is not None:
        return [read_table(told)]
    return [routellm(data() / "routellm"), mmlu_pro(data() / "mmlu_pro")]


def data() -> Path:
    """The folder of public data. Raises SystemExit that says what to set."""
    folder = os.environ.get(DATA, "")
    if not folder:
        raise SystemExit(f"set {DATA} to a folder with routellm/, mmlu_pro/, or give TABLE=f.csv")
    return Path(folder)


def embedder_of(folder: Path) -> Embedder:
    """The embedding model. Raises SystemExit that says how to make it."""
    try:
        return open_embedder(folder)
    except Missing as problem:
        raise SystemExit(problem.message) from None


def main() -> None:
    """Parse the command line, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of 1 to 6")
    parser.add_argument("--table", type=Path, help="an outcome table of your own, CSV")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of parts 1 and 6; dear parts take three at most")
    parser.add_argument("--embedding", type=Path, default=EMBEDDING, help="the embedding model's folder, for part 6")
    parser.add_argument("--out", type=Path, help="where to keep the tables as JSON")
    asked = parser.parse_args()
    report = Report(Console(width=None if os.isatty(1) else 140))
    tables = tables_of(asked.table) if set(asked.parts) & set("1234") else []
    embedder = embedder_of(asked.embedding) if "6" in asked.parts and asked.table is None else None
    try:
        with report.progress:
            asyncio.run(run(report, tables, asked.parts, asked.seeds))
            if embedder is not None:
                domains(report, data(), embedder, asked.seeds)
    finally:  # what was found stays, also where somebody had enough
        if asked.out:
            report.write(asked.out, {"cores": psutil.cpu_count(), "seeds": asked.seeds, "parts": asked.parts})


if __name__ == "__main__":
    main()
