"""What the gate asks again at a load, and what the engine finds out where it does not."""

from pathlib import Path

import pytest

from catena.adapters.core.naming import record_of
from catena.adapters.core.records import AdapterRecord
from catena.adapters.drivers.bases import LocalBases
from catena.adapters.drivers.engine.adapter_weights import read_parts
from catena.adapters.drivers.engine.arena import HOST
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.gate import ArtifactGate
from catena.adapters.drivers.refusals import Refusals
from catena.artifacts.base import BaseRules
from catena.artifacts.files import WEIGHTS
from catena.artifacts.gate import Rules
from catena.artifacts.signature import make_key, sign
from catena.artifacts.store import ArtifactStore
from catena.kit.clock import ManualClock
from catena.kit.config import ModelConfig
from catena.kit.errors import Denied
from tests.contract.adapters.making import make_adapter, make_base, seal


class Seen:
    async def settle(self, name: str, digest: str) -> str:
        return digest

    async def accept(self, name: str, digest: str) -> None:
        return None


class Bench:
    """A base, an adapter that was admitted to the store, and the key that vouches for it."""

    def __init__(self, folder: Path) -> None:
        self.base = make_base(folder / "base")
        adapter = make_adapter(self.base, folder / "adapter")
        seal(adapter, self.base, name="a", version="1", base_name="base")
        pair = make_key(folder / "keys", "trainer")
        sign(adapter, pair.private)
        self.adapter, self.key = adapter, pair.public
        self.store = ArtifactStore(folder / "store")

    async def gate(self, *, hashed: bool) -> tuple[ArtifactGate, AdapterRecord]:
        def keys() -> dict[str, Path]:
            return {"trainer": self.key}

        refusals = Refusals(ManualClock(), 5.0)
        bases = LocalBases(
            [ModelConfig(name="base", path=str(self.base))],
            keys=keys,
            rules=BaseRules(),
            hub=False,
            known=Seen(),
            accepted={},
            refusals=refusals,
        )
        gate = ArtifactGate(self.store, bases, keys=keys, rules=Rules(), refusals=refusals, hashed=hashed)
        return gate, record_of("shared", await gate.admit_folder(self.adapter))

    def alter(self, record: AdapterRecord) -> None:
        weights = self.store.path(record.digest) / WEIGHTS
        raw = bytearray(weights.read_bytes())
        raw[-1] ^= 1
        weights.write_bytes(raw)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_what_passed_is_read_by_the_engine_alone_which_finds_out_what_was_altered(bench: Bench) -> None:
    gate, record = await bench.gate(hashed=True)
    decoder = read_base(bench.base, dtype="float32", device=HOST, kv_bytes=1 << 20)
    assert read_parts("a", [await gate.check(record)], decoder).bytes == record.bytes
    bench.alter(record)

    part = await gate.check(record)

    with pytest.raises(Denied) as caught:
        read_parts("a", [part], decoder)
    assert caught.value.code == "adapter_tampered"
    gate.doubt(record)
    with pytest.raises(Denied) as caught:
        await gate.check(record)
    assert caught.value.code == "adapter_tampered"


async def test_a_file_that_was_cut_or_grew_since_is_refused(bench: Bench) -> None:
    gate, record = await bench.gate(hashed=True)
    part = await gate.check(record)
    weights = bench.store.path(record.digest) / WEIGHTS
    whole = weights.read_bytes()
    decoder = read_base(bench.base, dtype="float32", device=HOST, kv_bytes=1 << 20)
    for other in (whole[:-4], whole + b"\0", b""):
        weights.write_bytes(other)
        with pytest.raises(Denied):
            read_parts("a", [part], decoder)


async def test_where_the_engine_does_not_hash_every_byte_is_read_at_every_load(bench: Bench) -> None:
    gate, record = await bench.gate(hashed=False)
    await gate.check(record)
    bench.alter(record)

    with pytest.raises(Denied) as caught:
        await gate.check(record)
    assert caught.value.code == "adapter_tampered"


async def test_who_is_trusted_is_asked_at_every_load(bench: Bench) -> None:
    gate, record = await bench.gate(hashed=True)
    await gate.check(record)
    bench.key.write_bytes(make_key(bench.key.parent, "other").public.read_bytes())

    with pytest.raises(Denied) as caught:
        await gate.check(record)
    assert caught.value.code == "adapter_wrong_key"
