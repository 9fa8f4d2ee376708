"""Fakes of the room's ports."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

from catena.adapters.core.encoding import Encoded, Encoding, Found, Label
from catena.adapters.core.errors import UnknownAdapter, UnknownModel
from catena.adapters.core.records import AdapterRecord, Admitted, BaseRecord, Stored, Use
from catena.adapters.core.work import (
    AdapterSource,
    BaseFacts,
    BaseSource,
    Counters,
    Done,
    Loaded,
    Part,
    Piece,
    Weights,
    Work,
)
from catena.kit.config import ModelType
from catena.kit.errors import CatenaError


class FakeEngine:
    """Answers with the key of the weights; `gate` holds loads back, `answering` ends, `failure` is the next load's.

    An adapter takes what `sizes` says of it, else 100 bytes a part. `on_load` is called at the end of each load.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.held: dict[Weights, int] = {}
        self.stowed: dict[Weights, int] = {}
        self.on_load: Callable[[Weights], None] = lambda weights: None
        self.loaded: list[Weights] = []
        self.bases: list[str] = []
        self.log: list[str] = []
        self.works: list[Work] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.failure: CatenaError | None = None

    async def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        assert work.weights.base in self.bases
        assert not work.weights.adapter or work.weights in self.loaded
        self.works.append(work)
        yield Piece(0, work.weights.adapter or work.weights.base)
        await self.answering.wait()
        yield Done(input_tokens=3, output_tokens=1, min_probability=1.0, mean_logprob=0.0, first_token_ms=1.0)

    async def encode(self, asked: Encoding) -> Encoded:
        assert asked.base in self.bases
        return Encoded(found=tuple(Found(labels=(Label(asked.base, 1.0),)) for _ in asked.texts), tokens=7)

    async def load_base(self, base: BaseSource) -> BaseFacts:
        self.bases.append(base.name)
        return BaseFacts(bytes=1000, context_tokens=64, dtype="float32")

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        self.log.append(f"load {adapter.weights.adapter}")
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        assert adapter.weights not in self.loaded
        self.loaded.append(adapter.weights)
        self.held[adapter.weights] = self.sizes.get(adapter.weights.adapter, 100 * len(adapter.parts))
        self.on_load(adapter.weights)
        return Loaded(bytes=self.held[adapter.weights], read_s=0.25, copy_s=0.5, probe_s=0.125)

    async def stow(self, weights: Weights) -> int:
        self.log.append(f"stow {weights.adapter}")
        await self.gate.wait()
        self.loaded.remove(weights)
        self.stowed[weights] = self.held.pop(weights)
        return self.stowed[weights]

    async def restore(self, weights: Weights) -> Loaded:
        self.log.append(f"restore {weights.adapter}")
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.loaded.append(weights)
        self.held[weights] = self.stowed.pop(weights)
        return Loaded(bytes=self.held[weights], copy_s=0.5)

    async def unload(self, weights: Weights) -> int:
        self.log.append(f"unload {weights.adapter}")
        await self.gate.wait()
        if weights in self.stowed:
            return self.stowed.pop(weights)
        if not weights.adapter:
            return 1000
        self.loaded.remove(weights)
        return self.held.pop(weights)

    @property
    def used(self) -> int:
        return sum(self.held.values())

    async def counters(self) -> Counters:
        return Counters()


class FakeBases:
    """One base, which is there unless `refusal` says why not."""

    def __init__(self) -> None:
        self.refusal: CatenaError | None = None

    def names(self) -> Sequence[str]:
        return ["base"]

    def kind(self, name: str) -> ModelType:
        return "classification" if name == "encoder" else "chat"

    def known(self, name: str) -> BaseRecord | None:
        return None

    def problem(self, name: str) -> str:
        return ""

    async def get(self, name: str) -> BaseRecord:
        if self.refusal is not None:
            raise self.refusal
        if name not in ("base", "encoder"):
            raise UnknownModel(f"no base {name}")
        return BaseRecord(
            name=name,
            folder="/b",
            digest="b" * 64,
            architecture="LlamaForCausalLM",
            parameters=1,
            bytes=4,
            context_tokens=64,
            dtype="F32",
            kind=self.kind(name),
        )

    async def check(self, name: str) -> BaseRecord:
        return await self.get(name)

    async def accept(self, name: str, digest: str) -> BaseRecord:
        return await self.get(name)


class FakeGate:
    """Admits everything; counts how often an adapter was checked. Nobody vouches for the `disowned`."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.doubted: list[str] = []
        self.disowned: set[str] = set()

    async def admit_folder(self, folder: Path) -> Admitted:
        return Admitted(
            name=folder.name,
            version="1",
            digest=f"digest-{folder.name}",
            base="base",
            base_digest="b" * 64,
            bytes=100,
            rank=8,
            tasks=(),
            metrics={},
            training_rows=0,
            signer="trainer",
        )

    async def admit_file(self, file: Path, *, base: str, called: str) -> Admitted:
        return await self.admit_folder(file)

    async def admit_archive(self, archive: bytes) -> Admitted:
        return await self.admit_folder(Path(archive.decode()))

    async def check(self, record: AdapterRecord) -> Part:
        self.checked.append(record.name)
        return Part(folder=f"/{record.digest}", modules=(), digest="", dtype="F32")

    async def vouched(self, record: AdapterRecord) -> bool:
        return record.name not in self.disowned

    def doubt(self, record: AdapterRecord) -> None:
        self.doubted.append(record.name)

    async def stored(self) -> Stored:
        return Stored(count=1, bytes=100)


class FakeRegistry:
    """Holds records by name; every tag means the only version."""

    def __init__(self, *names: str) -> None:
        self.records = {name: record(name) for name in names}
        self.uses: dict[Use, int] = {}
        self.told: list[tuple[str, str]] = []
        self.declared: dict[str, Sequence[str]] = {}

    async def find(self, tenant: str, base: str, name: str, tag: str) -> AdapterRecord:
        if name not in self.records:
            raise UnknownAdapter(f"no adapter {name}")
        return self.records[name]

    async def add(self, tenant: str, admitted: Admitted) -> AdapterRecord:
        return self.records.setdefault(admitted.name, record(admitted.name))

    async def page(
        self, tenant: str, *, base: str, task: str, after: str, size: int
    ) -> tuple[Sequence[AdapterRecord], str]:
        return list(self.records.values()), ""

    async def withdraw(self, tenant: str, base: str, name: str, version: str, reason: str) -> AdapterRecord:
        self.records[name] = record(name, status="withdrawn")
        return self.records[name]

    async def set_alias(
        self, tenant: str, base: str, name: str, alias: str, *, version: str, expected: str
    ) -> AdapterRecord | None:
        return self.records.get(name)

    async def versions(self, tenant: str, base: str, name: str) -> Sequence[AdapterRecord]:
        return [record for record in self.records.values() if record.name == name]

    async def stable(self, tenant: str, base: str) -> Sequence[AdapterRecord]:
        return [record for record in self.records.values() if record.status == "active"]

    async def set_fallbacks(self, tenant: str, base: str, name: str, models: Sequence[str]) -> None:
        self.declared[name] = models

    async def fallbacks(self, tenant: str, base: str, name: str) -> Sequence[str]:
        return self.declared.get(name, ())

    async def set_pinned(self, record: AdapterRecord, pinned: bool) -> None:
        return None

    async def pinned(self) -> Sequence[AdapterRecord]:
        return [record for record in self.records.values() if record.pinned]

    async def count_uses(self, uses: Mapping[Use, int]) -> None:
        self.uses |= uses

    async def tell_residency(self, tenant: str, model: str, tier: str, bytes: int) -> None:
        self.told.append((model, tier))


def record(name: str, **changes: object) -> AdapterRecord:
    fields: dict[str, object] = {
        "tenant": "acme",
        "base": "base",
        "name": name,
        "version": "1",
        "digest": f"digest-{name}",
        "base_digest": "b" * 64,
        "bytes": 100,
        "rank": 8,
    }
    return AdapterRecord(**fields | changes)  # type: ignore[arg-type]
