"""The gate before the store and before every load, in threads, since it reads every byte."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from catena.adapters.core.records import AdapterRecord, Admitted, Stored
from catena.adapters.core.work import Module, Part
from catena.adapters.drivers.bases import LocalBases
from catena.adapters.drivers.refusals import Refusals
from catena.artifacts import manifest, single
from catena.artifacts.gate import Checked, Rules, check_adapter
from catena.artifacts.refusal import Untrusted
from catena.artifacts.store import ArtifactStore
from catena.kit.errors import CatenaError, Invalid


class ArtifactGate:
    """Implements the port `Gate`. `keys` gives the trusted public keys anew at each check, so that one can be added."""

    def __init__(
        self,
        store: ArtifactStore,
        bases: LocalBases,
        *,
        keys: Callable[[], Mapping[str, Path]],
        rules: Rules,
        refusals: Refusals,
    ) -> None:
        """Keep adapters in `store`; they must fit one of `bases`."""
        self._refusals = refusals
        self._store = store
        self._bases = bases
        self._keys = keys
        self._rules = rules
        self._vouchers: dict[str, bytes | None] = {}
        self._sizes: dict[str, int] = {}

    async def admit_folder(self, folder: Path) -> Admitted:
        """Check and keep a folder."""
        return await self._admit(lambda: self._store.put_folder(folder))

    async def admit_file(self, file: Path, *, base: str, called: str) -> Admitted:
        """Check and keep a single file, with the configuration beside it."""
        name, version = single.called(called)
        record = await self._bases.get(base)
        card = single.Called(name=name, version=version, base=base, base_digest=record.digest)

        def put() -> str:
            with single.sealed(file, card, self._keys()) as folder:
                return self._store.put_folder(folder)

        try:
            return await self._admit(put)
        except Untrusted as error:
            if error.code != "adapter_unsigned":
                raise
            told = f"{file.name} alone bears no signature that covers its configuration"
            cure = (
                f"`catena adapters register {file.name} --base {base} --as {called}` signs both where the platform runs"
            )
            raise Untrusted(f"{told}; {cure}", code=error.code) from error

    async def admit_archive(self, archive: bytes) -> Admitted:
        """Check and keep a tar."""
        return await self._admit(lambda: self._store.put_tar(archive))

    async def check(self, record: AdapterRecord) -> Part:
        """Check a registered adapter again."""
        self._refusals.check(record.digest)
        try:
            checked = await self._check(record.digest, record.base)
        except CatenaError as error:
            if error.code.startswith("adapter_"):
                self._refusals.remember(record.digest, error)
            raise
        modules = tuple(Module(path, module.rank, module.scale) for path, module in checked.modules.items())
        return Part(folder=str(checked.folder), modules=modules, dora=checked.dora, invocation=checked.invocation)

    async def vouched(self, record: AdapterRecord) -> bool:
        """Whether the key that vouched at the last check is trusted still, byte for byte, and the folder is there."""
        return await asyncio.to_thread(self._vouched, record.digest)

    async def stored(self) -> Stored:
        """What the store holds."""
        return await asyncio.to_thread(self._stored)

    def _vouched(self, digest: str) -> bool:
        key = self._vouchers.get(digest)
        return key is not None and self._store.has(digest) and (not key or key in _contents(self._keys()).values())

    def _stored(self) -> Stored:
        held = self._store.list()
        # What lies under a digest never changes, so that only newcomers are measured.
        self._sizes = {one: self._sizes[one] if one in self._sizes else self._store.bytes(one) for one in held}
        return Stored(count=len(held), bytes=sum(self._sizes.values()))

    async def _admit(self, put: Callable[[], str]) -> Admitted:
        known = set(await asyncio.to_thread(self._store.list))
        digest = await asyncio.to_thread(put)
        try:
            card = await asyncio.to_thread(manifest.read, self._store.path(digest))
            checked = await self._check(digest, card.base_name)
        except CatenaError:
            # What was refused is not kept, unless an earlier registration lives in the same folder.
            if digest not in known:
                await asyncio.to_thread(self._store.delete, digest)
            raise
        self._refusals.forget(digest)
        return Admitted(
            name=card.name,
            version=card.version,
            digest=checked.digest,
            base=card.base_name,
            base_digest=card.base_digest,
            bytes=checked.bytes,
            rank=checked.max_rank,
            tasks=card.tasks,
            metrics=card.metrics,
            training_rows=card.training.examples,
            signer=checked.signer,
        )

    async def _check(self, digest: str, base_name: str) -> Checked:
        base = await self._bases.get(base_name)
        if base.kind != "chat":
            raise Invalid(
                f"{base_name} is of type {base.kind}, and adapters of such bases are not served; merge it into the "
                "base with PEFT and serve the result as a base of its own",
                code="encoder_adapters_unsupported",
            )
        shape = self._bases.shape(base_name)
        folder = self._store.path(digest)
        keys = self._keys()
        # Read before the check: a key that is replaced meanwhile vouches for nothing.
        contents = await asyncio.to_thread(_contents, keys)
        checked = await asyncio.to_thread(
            check_adapter,
            folder,
            base_digest=base.digest,
            shape=shape,
            keys=keys,
            rules=self._rules,
            digest=digest,
        )
        self._vouchers[digest] = contents.get(checked.signer) if checked.signer else b""
        if checked.manifest is None:
            raise Invalid("the adapter has no manifest; seal it first", code="adapter_missing_file")
        return checked


def _contents(keys: Mapping[str, Path]) -> dict[str, bytes]:
    """Every public key as it is now; one that was taken away between listing and reading vouches for nothing."""
    found = {}
    for name, path in keys.items():
        with suppress(FileNotFoundError):
            found[name] = path.read_bytes()
    return found
