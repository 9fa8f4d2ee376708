"""Where accepted adapters go: sealed with manifest and card, signed with our key, sent to `adapters`."""

import asyncio
import contextlib
import json
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization

from catena.api.adapters.v1 import adapters_pb2 as pb
from catena.api.adapters.v1 import adapters_pb2_grpc
from catena.artifacts import manifest, signature, tar
from catena.artifacts.files import CONFIG
from catena.artifacts.manifest import Manifest
from catena.artifacts.manifest import Training as Origin
from catena.artifacts.placing import put
from catena.kit.caller import Caller, as_caller
from catena.kit.errors import Conflict, Missing
from catena.trainer.core.estimate import BaseFacts
from catena.trainer.core.job import Job, VersionTaken
from catena.trainer.drivers.workers import ADAPTER, ProcessWorkers

KEY = "signing"
TAKEN = "version_taken"
PAGE = 1000
TIMEOUT_S = 120.0


def signing_key(folder: Path, trusted: Path) -> Path:
    """The private key in `folder`, made on the first start; its public half is put among those that adapters trust."""
    with contextlib.suppress(Conflict):
        signature.make_key(folder, KEY)
    private = folder / f"{KEY}.pem"
    key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    put(trusted / f"{KEY}.pub", public)
    return private


class AdaptersRegistry:
    """`core.ports.Registry`: the adapters room."""

    def __init__(self, channel: grpc.aio.Channel, workers: ProcessWorkers, key: Path) -> None:
        """Sign with `key` what the workers left in their folders."""
        self._stub = adapters_pb2_grpc.AdaptersServiceStub(channel)
        self._workers = workers
        self._key = key

    async def next_version(self, job: Job) -> str:
        """One above the highest integer, or the highest major number, that the registry holds."""
        spec, highest, token = job.spec, 0, ""
        while True:
            with as_caller(Caller(job.tenant, "admin")):
                page = await self._stub.ListAdapters(
                    pb.ListAdaptersRequest(base=spec.base, page_size=PAGE, page_token=token)
                )
            for found in page.adapters:
                if found.name == spec.adapter:
                    highest = max(highest, int(found.version.partition(".")[0]))
            token = page.next_page_token
            if not token:
                return str(highest + 1)

    async def seal(self, job: Job, base: BaseFacts) -> str:
        """Manifest, card, signature; sealing again gives the same digest."""
        folder = self._workers.folder(job.id) / ADAPTER
        return await asyncio.to_thread(_seal, folder, _manifest(folder, job, base), self._key)

    async def register(self, job: Job) -> str:
        """Send the folder as a tar; a repeat finds it registered."""
        archive = await asyncio.to_thread(tar.pack, self._workers.folder(job.id) / ADAPTER)
        request = pb.RegisterAdapterRequest(archive=archive, request_id=job.id + job.digest[:16])
        with as_caller(Caller(job.tenant, "admin")):
            try:
                answer = await self._stub.RegisterAdapter(request, timeout=TIMEOUT_S)
            except Conflict as error:
                if error.code != TAKEN:
                    raise
                raise VersionTaken(error.message, code=error.code) from error
        made = answer.adapter
        return f"{made.base}@{made.name}:{made.version}"


def _seal(folder: Path, made: Manifest, key: Path) -> str:
    sealed = manifest.seal(folder, made)
    signature.sign(folder, key)
    return sealed.digest


def _manifest(folder: Path, job: Job, base: BaseFacts) -> Manifest:
    spec = job.spec
    config = folder / CONFIG
    if not config.exists():
        raise Missing(f"the trained adapter of job {job.id} is gone from {folder}; start the job again")
    targets = json.loads(config.read_text())["target_modules"]
    return Manifest(
        name=spec.adapter,
        version=job.version,
        base_name=spec.base,
        base_digest=base.digest,
        tasks=spec.tasks,
        rank=spec.peft.rank,
        alpha=spec.peft.alpha,
        target_modules=tuple(targets),
        training=Origin(
            method=spec.peft.method,
            examples=int(job.metrics.get("rows", 0)),
            steps=int(job.metrics.get("steps", 0)),
            epochs=spec.training.epochs,
            seed=spec.training.seed,
            data_digest=job.data_digest,
            job=job.id,
        ),
        metrics=job.metrics,
        created_s=job.created_s,
        description=f"Trained by Catena on {', '.join(source.name for source in spec.sources)}.",
    )
