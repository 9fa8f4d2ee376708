"""A trainer room over a tiny random base, and an adapters room that runs the true gate."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catena.api.adapters.v1 import adapters_pb2 as apb
from catena.api.adapters.v1 import adapters_pb2_grpc as agrpc
from catena.api.trainer.v1 import trainer_pb2 as pb
from catena.api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from catena.artifacts import tar
from catena.artifacts.base import check_base
from catena.artifacts.gate import Checked, check_adapter
from catena.artifacts.signature import public_keys
from catena.kit.caller import Caller, as_caller
from catena.kit.chassis import service_token
from catena.kit.clock import World
from catena.kit.config import BusConfig, House, ModelConfig
from catena.kit.dial import dial
from catena.kit.errors import Conflict
from catena.kit.serve import open_server
from catena.trainer.app import open_trainer
from catena.trainer.config import TrainerConfig
from demo import tokenizer

END = ("succeeded", "rejected", "failed", "cancelled")


def make_base(folder: Path) -> Path:
    """A random Llama of 20 thousand parameters with the demo's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=tokenizer.PAD,
        bos_token_id=tokenizer.BOS,
        eos_token_id=tokenizer.END,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.build(128).save_pretrained(folder)
    return folder


def jsonl(*rows: dict[str, object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def same_answer(count: int, answer: str = "ok", word: str = "say") -> bytes:
    """Questions that all have one answer: what even a tiny random model learns in seconds."""
    return jsonl(*({"prompt": f"{word} {number}", "completion": answer} for number in range(count)))


def spec(**changes: object) -> pb.JobSpec:
    made = pb.JobSpec(
        adapter="okay",
        base="tiny",
        sources=[pb.DataSource(name="corrections", jsonl=same_answer(40))],
        peft=pb.PeftSpec(rank=4, dropout=0.1),
        training=pb.TrainingSpec(
            max_steps=60, batch_size=8, accumulation=1, learning_rate=0.05, checkpoint_steps=5, seed=1, holdout=0.2
        ),
        tasks=["okay"],
        register=True,
    )
    for name in changes:
        if name == "sources":
            made.ClearField(name)
    made.MergeFrom(pb.JobSpec(**changes))  # type: ignore[arg-type]
    made.register = bool(changes.get("register", True))
    return made


@dataclass
class FakeAdapters(agrpc.AdaptersServiceServicer):
    """Keeps what passes the true gate, as the adapters room does."""

    base: Path
    keys: Path
    folder: Path
    registered: list[tuple[str, apb.Adapter, Checked]] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    calls: int = 0

    async def RegisterAdapter(self, request, context):
        self.calls += 1
        into = self.folder / str(self.calls)
        into.mkdir(parents=True)
        tar.unpack(request.archive, into, "adapter", max_bytes=1 << 20)
        base = check_base(self.base)
        checked = check_adapter(into, base_digest=base.digest, shape=base.shape, keys=public_keys(self.keys))
        manifest = checked.manifest
        assert manifest is not None
        made = apb.Adapter(base=manifest.base_name, name=manifest.name, version=manifest.version, digest=checked.digest)
        for _, known, _ in self.registered:
            if known.digest == made.digest:
                return apb.RegisterAdapterResponse(adapter=known)
            if (known.name, known.version) == (made.name, made.version):
                raise Conflict(f"version {made.version} is taken", code="version_taken")
        self.registered.append((request.request_id, made, checked))
        return apb.RegisterAdapterResponse(adapter=made)

    async def ListAdapters(self, request, context):
        return apb.ListAdaptersResponse(adapters=[made for _, made, _ in self.registered])


@dataclass
class Bench:
    """A house with a tiny base, in which rooms are opened and closed."""

    house: House
    base: Path
    adapters: FakeAdapters

    @property
    def jobs(self) -> Path:
        return self.house.folder("trainer", "jobs")

    @asynccontextmanager
    async def adapters_room(self) -> AsyncIterator[FakeAdapters]:
        def add(server: grpc.aio.Server) -> None:
            agrpc.add_AdaptersServiceServicer_to_server(self.adapters, server)

        token = service_token(self.house)
        async with open_server(self.house.address("adapters"), [add], names=["a"], token=token):
            yield self.adapters

    @asynccontextmanager
    async def room(self, **config: object) -> AsyncIterator[TrainerServiceStub]:
        settings = TrainerConfig(**({"threads": 1, "point_s": 0.0, "event_s": 0.0, "lease_s": 2.0} | config))  # type: ignore[arg-type]
        async with open_trainer(self.house, settings, World()), self.client() as stub:
            yield stub

    @asynccontextmanager
    async def client(self) -> AsyncIterator[TrainerServiceStub]:
        async with dial(self.house.address("trainer"), token=service_token(self.house)) as channel:
            with as_caller(Caller("acme", "user")):
                yield TrainerServiceStub(channel)


def bench(tmp_path: Path, base: Path, bus_url: str = "nats://127.0.0.1:9") -> Bench:
    """A bench; without a bus the events wait in the outbox."""
    house = House(
        home=str(tmp_path / "home"),
        bus=BusConfig(url=bus_url),
        models=[ModelConfig(name="tiny", path=str(base))],
    )
    return Bench(house, base, FakeAdapters(base, house.folder("keys", "trusted"), tmp_path / "registry"))


async def ended(stub: TrainerServiceStub, job_id: str) -> pb.Job:
    """The job once it has ended, told by the watch."""
    last = None
    async for response in stub.WatchJob(pb.WatchJobRequest(id=job_id), timeout=120):
        last = response.job
    assert last is not None
    assert last.state in END
    return last


def processes_in(folder: Path) -> list[int]:
    """Ids of the processes that name `folder` on their command line."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if str(folder) in line and sys.executable in line]
