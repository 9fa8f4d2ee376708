"""One run, sides interleaved, medians; each figure beside what it is held to.

`python -m benchmarks.adapters --size tiny` is the smoke run of about three minutes; without `--size`, a 220M base for
all parts and a 0.5B one for (a), it takes most of an hour. `--parts a,d` runs some. Ctrl-C prints what was found.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from benchmarks.adapters import decoding, loading, peers_http, process, room
from benchmarks.adapters.engine import Engine
from benchmarks.adapters.report import Missing, Report
from benchmarks.adapters.subject import Compute, Subject, make
from catena.kit.errors import CatenaError

PARTS = "abcdefghijk"
SIZES = {"full": ("220m", "0.5b"), "tiny": ("tiny",), "220m": ("220m",), "0.5b": ("0.5b",)}
LARGE, LARGE_COUNTS = "0.5b", (1, 8, 32)
PEERS = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parts that were asked for, on one model made in `folder`."""

    report: Report
    compute: Compute
    parts: str
    context: int
    folder: Path
    seconds: dict[str, float]

    def all(self, size: str) -> None:
        """Here, then in other processes, while this one holds no weights any more."""
        self.report.setting = f"{size} {self.compute.dtype}"
        made, peft = make(self.folder, size, max(decoding.COUNTS), self.compute.torch_dtype, self.report.progress)
        if size == LARGE:
            del peft
            self._large(made)
            return
        self._here(made, peft)
        del peft
        gc.collect()
        self._outside(made)

    def _large(self, made: Subject) -> None:
        def decode() -> None:
            engine = Engine(made, self.compute.dtype)
            decoding.throughput(self.report, engine, made, self.compute.dtype, LARGE_COUNTS, zipf=False)

        self._part("a", decode, named=f"a {LARGE}")

    def _here(self, made: Subject, peft: Any) -> None:
        if not set("abcdei") & set(self.parts):
            return
        report, dtype, engine = self.report, self.compute.dtype, Engine(made, self.compute.dtype)
        self._part("a", lambda: decoding.throughput(report, engine, made, dtype, decoding.COUNTS, zipf=True))
        self._part("bc", lambda: decoding.against_peft(report, engine, peft, made, dtype))
        self._part("d", lambda: decoding.against_generate(report, engine, made, self.compute))
        self._part("e", lambda: loading.cold_load(report, engine, made, self.folder))
        self._part("i", lambda: decoding.activated(report, engine, made, self.context))

    def _outside(self, made: Subject) -> None:
        report, compute = self.report, self.compute
        homes = {name: self.folder / name for name in ("process", "room", "http")}
        for home in homes.values():
            home.mkdir()
        gaps = "".join(part for part in "fg" if part in self.parts)
        self._part("fg", lambda: asyncio.run(process.residency(report, made, homes["process"], compute, gaps)))
        self._part("h", lambda: asyncio.run(room.working_sets(report, made, homes["room"], compute)))
        peers = peers_http.ready(report, "".join(part for part in "jk" if part in self.parts), compute)
        self._part(peers, lambda: asyncio.run(peers_http.over_http(report, made, homes["http"], compute, peers)))

    def _part(self, part: str, measure: Callable[[], None], *, named: str = "") -> None:
        if not set(part) & set(self.parts):
            return
        began = perf_counter()
        try:
            measure()
        except Exception as error:  # noqa: BLE001 - an hour's figures outlive a part that breaks off
            causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            if not all(isinstance(cause, CatenaError) for cause in causes):
                self.report.progress.console.print_exception()
            self.report.add(Missing(part=part, why="; ".join(map(str, causes)), failed=True))
        self.seconds[named or part] = round(perf_counter() - began, 1)


def main() -> int:
    """Measure and print; 1 when a part broke off."""
    asked = arguments()
    # `kill` ends it as Ctrl-C does: every process that it started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    torch.set_num_threads(asked.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 160)
    report = Report(console, rounds=asked.rounds or (3 if asked.size == "tiny" else 5))
    compute, began = Compute(dtype=asked.dtype, threads=asked.threads), perf_counter()
    seconds: dict[str, float] = {}
    about: dict[str, Any] = {"size": asked.size, "threads": asked.threads, "seconds": seconds}
    about |= {"cores": os.cpu_count(), "cpu": torch.backends.cpu.get_cpu_capability()}
    about |= {"versions": {name: version(name) for name in PEERS}}
    try:
        with report.progress:
            for size in SIZES[asked.size]:
                with tempfile.TemporaryDirectory(prefix="catena-bench-") as folder:
                    Run(
                        report=report,
                        compute=compute,
                        parts=asked.parts,
                        context=asked.context,
                        folder=Path(folder),
                        seconds=seconds,
                    ).all(size)
    except KeyboardInterrupt:
        report.add(Missing(part="-", why="interrupted; the rest was not measured", failed=True))
    took = ", ".join(f"{name} {took:.0f} s" for name, took in seconds.items())
    console.print(report.table(f"{asked.threads} thread(s) a side, medians of {report.rounds}"))
    # Three load averages, of one, five and fifteen minutes: with much more than this run's own, figures mean little.
    about["load"] = [round(load, 1) for load in os.getloadavg()]
    console.print(f"{perf_counter() - began:.0f} s in all: {took}; load averages {about['load']}")
    if asked.out:
        report.write(asked.out, about)
    return 1 if report.failed else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench-adapters", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--dtype", choices=list(decoding.AIMS), default="float32")
    parser.add_argument("--parts", type=_parts, default=PARTS, help="letters, such as a,d; all without it")
    parser.add_argument("--rounds", type=int, default=0, help="medians of so many; 0: 5, of tiny 3")
    parser.add_argument("--threads", type=int, default=1, help="with which each side computes")
    parser.add_argument("--context", type=int, default=4096, help="shared tokens of (i)")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    return parser.parse_args()


def _parts(text: str) -> str:
    wanted = text.replace(",", "").replace(" ", "")
    if unknown := set(wanted) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
