"""One run, sides interleaved, medians; each figure beside what it is held to.

`python -m benchmarks.adapters --size tiny` is the smoke run of about three minutes; `220m` takes most of an hour.
"""

import argparse
import hashlib
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.adapters import peers, subject
from benchmarks.adapters.engine import Engine
from catena.adapters.drivers.engine.lora import Adapter

ROWS, PROMPT, WRITE = 32, 64, 64
COUNTS = (1, 2, 4, 8, 16, 32)
AIMS = {"float32": {8: 0.90, 32: 0.85}, "bfloat16": {8: 0.85, 32: 0.80}}
PEFT_AIMS = {"float32": 1.4, "bfloat16": 2.5}
Measure = Callable[[], float]


class Report:
    """Rows of the table as they are found."""

    def __init__(self, title: str) -> None:
        """An empty table."""
        self.table = Table(title=title, title_justify="left")
        for name in ("what", "ours", "other", "ratio", "aim"):
            self.table.add_column(name, justify="left" if name == "what" else "right")

    def add(self, what: str, ours: float, other: float, ratio: float, aim: str, *, held: bool) -> None:
        """One comparison."""
        style = "green" if held else "yellow"
        self.table.add_row(what, f"{ours:.4g}", f"{other:.4g}", f"[{style}]{ratio:.2f}[/{style}]", aim)


def medians(rounds: int, *measures: Measure) -> list[float]:
    """Each measure's median over rounds in which all take their turn."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def throughput(report: Report, engine: Engine, subject_: subject.Subject, dtype: str, rounds: int) -> None:
    """(a) Decoding with more and more adapters beside the base alone."""
    prompts = subject_.prompts(ROWS, [PROMPT])
    names = list(subject_.adapters)
    zipf = random.Random(3).choices(names, [1 / (rank + 1) for rank in range(len(names))], k=ROWS)
    mixes = {f"{count} adapters": names[:count] for count in COUNTS if count <= len(names)} | {"zipf of 32": zipf}
    base, *found = medians(
        rounds,
        lambda: engine.decoded(prompts, [""], WRITE),
        *(lambda mix=mix: engine.decoded(prompts, mix, WRITE) for mix in mixes.values()),
    )
    for what, rate in zip(mixes, found, strict=True):
        aim = AIMS[dtype].get(int(what.split()[0]) if what[0].isdigit() else 0)
        held = aim is None or rate / base >= aim
        report.add(f"(a) tok/s, {what} / base alone", rate, base, rate / base, f">= {aim}" if aim else "", held=held)


def against_peft(report: Report, engine: Engine, subject_: subject.Subject, dtype: str, rounds: int) -> None:
    """(b), (c) The same batch by PEFT: rows mixed, and one adapter after the other."""
    prompts = subject_.prompts(ROWS, [PROMPT])
    for count in (8, 32):
        names = list(subject_.adapters)[:count]
        measures: list[Measure] = [
            lambda names=names: engine.decoded(prompts, names, WRITE),
            lambda names=names: peers.mixed(subject_, prompts, names, WRITE),
        ]
        if count == 8:
            measures.append(lambda names=names: peers.one_at_a_time(subject_, prompts, names, WRITE))
        ours, mixed, *alone = medians(rounds, *measures)
        aim = PEFT_AIMS[dtype] if count == 8 else 0.0
        report.add(
            f"(b) tok/s, {count} mixed / PEFT adapter_names",
            ours,
            mixed,
            ours / mixed,
            f">= {aim}" if aim else "more than at 8",
            held=ours / mixed >= aim,
        )
        for other in alone:
            report.add("(c) tok/s, 8 mixed / one at a time", ours, other, ours / other, ">= 4", held=ours >= 4 * other)


def against_generate(report: Report, engine: Engine, subject_: subject.Subject, rounds: int) -> None:
    """(d) Requests of varied lengths, the base alone, beside `generate` in static batches of 16."""
    chance = random.Random(5)
    prompts = subject_.prompts(48, [chance.randrange(16, 128) for _ in range(48)])
    writes = [chance.randrange(8, 96) for _ in prompts]
    ours, other = medians(
        rounds,
        lambda: engine.served(prompts, writes, 16, [""]),
        lambda: peers.static(subject_, prompts, writes, 16),
    )
    report.add("(d) tok/s, base / generate, static 16", ours, other, ours / other, ">= 1.5", held=ours >= 1.5 * other)


def loading(report: Report, engine: Engine, subject_: subject.Subject, rounds: int) -> None:
    """(e) An adapter from its folder into memory, over reading and hashing the same bytes."""
    folder = next(iter(subject_.adapters.values()))
    part = subject.part_of(subject.checked(subject_), folder)

    def load() -> float:
        began = perf_counter()
        engine.read_checked("cold", part)
        return 1000 * (perf_counter() - began)

    def raw() -> float:
        began = perf_counter()
        hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).digest()
        return 1000 * (perf_counter() - began)

    ours, other = medians(max(rounds, 5), load, raw)
    report.add("(e) ms, cold load / read and hash", ours, other, ours / other, "<= 1.3", held=ours <= 1.3 * other)


def activated(report: Report, engine: Engine, subject_: subject.Subject, rounds: int, context: int) -> None:
    """(i) Time to the first token on a context that the base has read: activated LoRA beside LoRA."""
    plain = next(iter(engine.adapters.values()))
    suffix = [7, 8, 9]
    acting = Adapter("activated", plain.sites, plain.bytes, tuple(suffix))
    shared = subject_.prompts(1, [context])[0]
    lora, alora = medians(
        rounds,
        lambda: 1000 * engine.first_token(shared, suffix, plain),
        lambda: 1000 * engine.first_token(shared, suffix, acting),
    )
    what = f"(i) ms to first token at {context} shared, LoRA / aLoRA"
    report.add(what, alora, lora, lora / alora, ">= 10", held=lora >= 10 * alora)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench-adapters", description=__doc__)
    parser.add_argument("--size", choices=list(subject.SIZES), default="220m")
    parser.add_argument("--dtype", choices=list(AIMS), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=4096)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    console = Console(width=110)
    with tempfile.TemporaryDirectory(prefix="catena-bench-") as folder, console.status("making models") as status:
        made = subject.make(Path(folder), asked.size, max(COUNTS), getattr(torch, asked.dtype))
        engine = Engine(made, asked.dtype)
        report = Report(f"Llama {asked.size}, {asked.dtype}, {asked.threads} thread(s), medians of {asked.rounds}")
        parts: dict[str, Callable[[], None]] = {
            "(a)": lambda: throughput(report, engine, made, asked.dtype, asked.rounds),
            "(b), (c)": lambda: against_peft(report, engine, made, asked.dtype, asked.rounds),
            "(d)": lambda: against_generate(report, engine, made, asked.rounds),
            "(e)": lambda: loading(report, engine, made, asked.rounds),
            "(i)": lambda: activated(report, engine, made, asked.rounds, asked.context),
        }
        for name, part in parts.items():
            status.update(f"measuring {name}")
            part()
    console.print(report.table)


if __name__ == "__main__":
    main()
