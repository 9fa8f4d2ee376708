"""Train the demo's two bases from nothing: `make models`.

Each base trains in a process of its own on one thread, side by side; the same seed gives the same
weights on one kind of processor. Writes ordinary transformers folders.
"""

import argparse
import multiprocessing as mp
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from demo.training import Base

HERE = Path(__file__).parent
SPEC = HERE / "models.yaml"
_REPORT_EVERY = 10

Report = tuple[str, int, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train what it asks for."""
    parser = argparse.ArgumentParser(description="Train the demo's bases from nothing.")
    parser.add_argument("--out", type=Path, default=HERE / "models", help="folder of the models")
    parser.add_argument("--spec", type=Path, default=SPEC, help="what to build")
    parser.add_argument("--only", action="append", metavar="NAME", help="train this base; may be repeated")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="1: all steps; less for a trial")
    args = parser.parse_args(arguments)
    bases = [scaled(base, args.steps_scale) for base in read_spec(args.spec)]
    unknown = set(args.only or ()) - {base.name for base in bases}
    if unknown:
        parser.error(f"{args.spec} describes no {', '.join(sorted(unknown))}")
    train_all([base for base in bases if not args.only or base.name in args.only], args.out)


def read_spec(path: Path = SPEC) -> "list[Base]":
    """Read the bases that a YAML file describes."""
    from demo.training import Base

    spec = yaml.safe_load(path.read_text())
    return [Base(name=name, **{**spec["shared"], **fields}) for name, fields in spec["models"].items()]


def scaled(base: "Base", scale: float) -> "Base":
    """The same base with its steps scaled, 1 at least."""
    return replace(base, steps=max(1, round(base.steps * scale)))


def train_all(bases: "Sequence[Base]", out: Path) -> None:
    """Train the bases side by side into `out`/NAME, with a progress bar each."""
    context = mp.get_context("spawn")
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        context.Manager() as manager,
        Progress(*columns) as bars,
        ProcessPoolExecutor(len(bases), mp_context=context, initializer=_settle) as pool,
    ):
        reports: Queue[Report | None] = manager.Queue()
        tasks = {base.name: bars.add_task(base.name, total=base.steps, loss=0.0) for base in bases}
        futures = [pool.submit(_train_one, base, out / base.name, reports) for base in bases]
        for future in futures:
            future.add_done_callback(lambda _: reports.put(None))
        left = len(futures)
        while left:
            if report := reports.get():
                bars.update(tasks[report[0]], completed=report[1], loss=report[2])
            else:
                left -= 1
        for future in futures:
            future.result()
    Console().print(f"wrote {', '.join(str(out / base.name) for base in bases)}")


def _train_one(base: "Base", folder: Path, reports: "Queue[Report | None]") -> None:
    from transformers.utils import logging

    from demo.training import train

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def report(step: int, loss: float) -> None:
        if step % _REPORT_EVERY == 0 or step == base.steps:
            reports.put((base.name, step, loss))

    train(base, folder, report)


def _settle() -> None:
    """One thread a base: two share badly on small matrices. Nothing is fetched from a hub."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


if __name__ == "__main__":
    main()
