"""The gate before the store and before every load, in threads, since it reads every byte.

What it finds in an adapter's files holds for ever, since they are named by their content: a load asks again only what
may have changed, who is trusted and which base it is for, and the engine hashes what it reads (decision 19).
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
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

REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last check found: for which base, vouched for by which key (empty: unsigned, which is allowed)."""

    base_digest: str
    key: bytes
    part: Part


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
        hashed: bool,
    ) -> None:
        """Keep adapters in `store`; they must fit one of `bases`. `hashed`: the engine refuses a file that was altered.

        Where it does not, every check reads every byte.
        """
        self._hashed = hashed
        self._refusals = refusals
        self._store = store
        self._bases = bases
        self._keys = keys
        self._rules = rules
        self._known: dict[str, _Known] = {}
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
        """Check a registered adapter again, as far as what was found before may not hold any more."""
        self._refusals.check(record.digest)
        known, base = self._known.get(record.digest), await self._bases.get(record.base)
        if self._hashed and known is not None and known.base_digest == base.digest and await self.vouched(record):
            return known.part
        try:
            return part_of(await self._check(record.digest, record.base))
        except CatenaError as error:
            if error.code.startswith("adapter_"):
                self._refusals.remember(record.digest, error)
            raise

    async def vouched(self, record: AdapterRecord) -> bool:
        """Whether the key that vouched at the last check is trusted still, byte for byte, and the folder is there."""
        return await asyncio.to_thread(self._vouched, record.digest)

    def doubt(self, record: AdapterRecord) -> None:
        """Forget what the last check found, so that the next one reads everything."""
        self._known.pop(record.digest, None)

    async def stored(self) -> Stored:
        """What the store holds."""
        return await asyncio.to_thread(self._stored)

    def _vouched(self, digest: str) -> bool:
        known = self._known.get(digest)
        if known is None or not self._store.has(digest):
            return False
        return not known.key or known.key in _contents(self._keys()).values()

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
        if checked.manifest is None:
            raise Invalid("the adapter has no manifest; seal it first", code="adapter_missing_file")
        key = contents.get(checked.signer) if checked.signer else b""
        if key is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[digest] = _Known(base.digest, key, part_of(checked))
        return checked


def part_of(checked: Checked, weight: float = 1.0) -> Part:
    """An adapter that passed, as the engine is told of it, with its share in a composition."""
    modules = tuple(
        Module(
            path,
            module.rank,
            module.scale,
            module.inputs,
            module.outputs,
            module.A.begin,
            module.B.begin,
            module.magnitude.begin if module.magnitude is not None else -1,
        )
        for path, module in checked.modules.items()
    )
    return Part(
        folder=str(checked.folder),
        digest=checked.weights_digest,
        dtype=checked.dtype,
        modules=modules,
        dora=checked.dora,
        invocation=checked.invocation,
        weight=weight,
    )


def _contents(keys: Mapping[str, Path]) -> dict[str, bytes]:
    """Every public key as it is now; one that was taken away between listing and reading vouches for nothing."""
    found = {}
    for name, path in keys.items():
        with suppress(FileNotFoundError):
            found[name] = path.read_bytes()
    return found
