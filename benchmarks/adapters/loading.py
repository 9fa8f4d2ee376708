"""(e) What it costs to read an adapter, beside reading and hashing its bytes once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.adapters.engine import Engine
from benchmarks.adapters.report import Measure, Report, Row, at_most
from benchmarks.adapters.subject import Subject
from catena.adapters.core.work import Module, Part
from catena.adapters.drivers.engine.probe import probe
from catena.artifacts.digest import file_digest
from catena.artifacts.files import SIGNATURE, WEIGHTS
from catena.artifacts.gate import Rules, check_adapter
from catena.artifacts.signature import verify

SHORT = 25
"""Rounds of what takes milliseconds."""
UNSIGNED = Rules(require_signature=False)


def cold_load(report: Report, engine: Engine, subject: Subject, scratch: Path) -> None:
    """(e) From the folder into memory, the folder's digest and every value checked; files in the page cache.

    Signature and probe are timed apart, so the copy that is loaded is unsigned. The other side reads the same file
    with the same hash in the same thread.
    """
    name, folder = next(iter(subject.adapters.items()))
    bare = shutil.copytree(folder, scratch / "unsigned", ignore=shutil.ignore_patterns(SIGNATURE))
    adapter = engine.adapters[name]

    def gate() -> Part:
        checked = check_adapter(
            bare, base_digest=subject.checked.digest, shape=subject.checked.shape, keys={}, rules=UNSIGNED
        )
        return Part(folder=str(bare), modules=tuple(Module(p, m.rank, m.scale) for p, m in checked.modules.items()))

    part = gate()
    measures: list[Measure] = [
        _timed(lambda: engine.read(name, gate())),
        _timed(lambda: file_digest(folder / WEIGHTS)),
        _timed(lambda: engine.read(name, part)),
        _timed(lambda: verify(folder, {"bench": subject.trusted})),
        _timed(lambda: probe(engine.decoder, adapter)),
    ]
    load, raw, reading, signature, proof = report.medians("(e)", *measures, least=SHORT)
    aim, note = at_most(1.3), f"of it {reading:.3g} ms reading into the engine, the rest gate"
    what = "cold load / one read with one hash"
    report.add(Row(part="e", what=what, unit="ms", ours=load, other=raw, figure=load / raw, aim=aim, note=note))
    for what, took in (("signature", signature), ("probe", proof)):
        told = f"{what}, apart / one read with one hash"
        report.add(Row(part="e", what=told, unit="ms", ours=took, other=raw, figure=took / raw))


def _timed(work: Callable[[], object]) -> Measure:
    def measure() -> float:
        began = perf_counter()
        work()
        return 1000 * (perf_counter() - began)

    return measure
