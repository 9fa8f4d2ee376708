"""(e) What it costs to bring an adapter from disk into memory, beside reading and hashing its bytes once."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.adapters.engine import Engine
from benchmarks.adapters.report import Measure, Report, Row, at_most
from benchmarks.adapters.subject import NAME, Subject
from catena.adapters.core.naming import record_of
from catena.adapters.core.records import AdapterRecord
from catena.adapters.drivers.bases import LocalBases
from catena.adapters.drivers.engine.probe import probe
from catena.adapters.drivers.gate import ArtifactGate
from catena.adapters.drivers.refusals import Refusals
from catena.artifacts.base import BaseRules
from catena.artifacts.digest import file_digest
from catena.artifacts.files import WEIGHTS
from catena.artifacts.gate import Rules
from catena.artifacts.signature import verify
from catena.artifacts.store import ArtifactStore
from catena.kit.clock import SystemClock
from catena.kit.config import ModelConfig

SHORT = 25
"""Rounds of what takes milliseconds."""


class Strangers:
    """No base was ever seen before."""

    async def settle(self, name: str, digest: str) -> str:
        """As it is now."""
        return digest

    async def accept(self, name: str, digest: str) -> None:
        """As it is now."""


def cold_load(report: Report, engine: Engine, subject: Subject, scratch: Path) -> None:
    """(e) From the store into memory, through the room's gate and the engine's reader; files in the page cache.

    The other side reads the same file with the same hash in the same thread. What registering pays for is timed apart:
    the whole gate, and of it the signature, and the proof that the adapter changes what the base says.
    """
    name, folder = next(iter(subject.adapters.items()))
    adapter = engine.adapters[name]
    with asyncio.Runner() as runner:
        gate = _gate(subject, scratch / "store")
        record = record_of("shared", runner.run(gate.admit_folder(folder)))

        def load(record: AdapterRecord) -> None:
            engine.read(name, runner.run(gate.check(record)))

        def first_load() -> None:
            gate.doubt(record)
            load(record)

        measures: list[Measure] = [
            _timed(lambda: load(record)),
            _timed(lambda: file_digest(folder / WEIGHTS)),
            _timed(first_load),
            _timed(lambda: verify(folder, {"bench": subject.trusted})),
            _timed(lambda: probe(engine.decoder, adapter)),
        ]
        cold, raw, *apart = report.medians("(e)", *measures, least=SHORT)
    told = "cold load / one read with one hash"
    report.add(Row(part="e", what=told, unit="ms", ours=cold, other=raw, figure=cold / raw, aim=at_most(1.3)))
    whats = ("the first load of a process, whole gate", "signature, apart", "probe, apart")
    for what, took in zip(whats, apart, strict=True):
        told = f"{what} / one read with one hash"
        report.add(Row(part="e", what=told, unit="ms", ours=took, other=raw, figure=took / raw))


def _gate(subject: Subject, store: Path) -> ArtifactGate:
    def keys() -> dict[str, Path]:
        return {"bench": subject.trusted}

    refusals = Refusals(SystemClock(), ttl_s=1.0)
    bases = LocalBases(
        [ModelConfig(name=NAME, path=str(subject.base))],
        keys=keys,
        rules=BaseRules(),
        hub=False,
        known=Strangers(),
        accepted={},
        refusals=refusals,
    )
    return ArtifactGate(ArtifactStore(store), bases, keys=keys, rules=Rules(), refusals=refusals, hashed=True)


def _timed(work: Callable[[], object]) -> Measure:
    def measure() -> float:
        began = perf_counter()
        work()
        return 1000 * (perf_counter() - began)

    return measure
