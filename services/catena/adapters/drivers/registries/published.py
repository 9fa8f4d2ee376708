"""Registries that are published folders (`catena.artifacts.index`): on a web server, or on a disk within reach."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from catena.adapters.core.offers import Offer
from catena.adapters.core.updates import Fetching, Transfer
from catena.adapters.drivers.registries.web import IDENTITY, Web, too_much
from catena.artifacts import sidecar
from catena.artifacts.index import INDEX, MAX_INDEX_BYTES, decode
from catena.kit.errors import Denied, Missing

RECORD = sidecar.sidecar_path(Path(INDEX)).name


class WebRegistry:
    """Implements the port `Remote`. What was read of an archive stays in `scratch` until it is whole and taken."""

    def __init__(self, web: Web, *, scratch: Path, most: int, signed_by: str) -> None:
        """Fetch archives of at most `most` bytes; `signed_by` is the public key of its index, empty: unsigned."""
        self._web = web
        self._scratch = scratch
        self._most = most
        self._signed_by = signed_by
        self._tag = ""
        self._offers: list[Offer] = []

    async def offers(self) -> Sequence[Offer]:
        """What its index says, read again only if it changed."""
        known = {"If-None-Match": self._tag} if self._tag else {}
        raw, tag = await self._web.small(INDEX, MAX_INDEX_BYTES, IDENTITY | known)
        if raw is not None:
            record = b""
            if self._signed_by:
                record = (await self._web.small(RECORD, sidecar.MAX_SIDECAR_BYTES, IDENTITY))[0] or b""
            self._offers = await asyncio.to_thread(read_index, raw, record, self._signed_by)
            self._tag = tag
        return self._offers

    async def fetch(self, offer: Offer) -> AsyncGenerator[Transfer | Path | bytes, None]:
        """The archive."""
        check_size(offer, self._most)
        part = self._scratch / f"{offer.sha256}.part"
        await asyncio.to_thread(_leave_only, self._scratch, part)
        model = f"{offer.base}@{offer.name}:{offer.version}"
        yield Transfer(model=model, done=0, total=offer.bytes)
        async with aclosing(self._web.download(offer.source, part, size=offer.bytes, sha256=offer.sha256)) as counts:
            async for done in counts:
                yield Transfer(model=model, done=done, total=offer.bytes)
        yield await asyncio.to_thread(part.read_bytes)
        await asyncio.to_thread(part.unlink, missing_ok=True)


class FolderRegistry:
    """Implements the port `Remote` over a folder, of a shared disk for example."""

    def __init__(self, folder: Path, *, most: int, signed_by: str) -> None:
        """Read what lies in `folder`; the other settings are as for `WebRegistry`."""
        self._folder = folder
        self._most = most
        self._signed_by = signed_by

    async def offers(self) -> Sequence[Offer]:
        """What its index says."""

        def read() -> list[Offer]:
            record = self._read(RECORD, sidecar.MAX_SIDECAR_BYTES) if self._signed_by else b""
            return read_index(self._read(INDEX, MAX_INDEX_BYTES), record, self._signed_by)

        return await asyncio.to_thread(read)

    async def fetch(self, offer: Offer) -> Fetching:
        """The archive."""
        check_size(offer, self._most)
        raw = await asyncio.to_thread(self._read, offer.source, offer.bytes)
        if len(raw) != offer.bytes or hashlib.sha256(raw).hexdigest() != offer.sha256:
            raise Denied(f"{offer.source} is not what its index says; publish it again", code="offer_untrue")
        yield raw

    def _read(self, name: str, most: int) -> bytes:
        top = self._folder.resolve()
        path = (top / name).resolve()
        if not path.is_relative_to(top):
            raise Denied(f"{name[:200]!r} is not below {self._folder}; publish it again", code="registry_strays")
        if not path.is_file():
            raise Missing(f"no {name[:200]} in {self._folder}; publish to it, or correct it", code="registry_missing")
        with path.open("rb") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            raise too_much(str(path), most)
        return raw


def read_index(raw: bytes, record: bytes, signed_by: str) -> list[Offer]:
    """The offers of an index, whose signed record must fit it where a key is named. Raises Untrusted, Refused."""
    if signed_by:
        with tempfile.TemporaryDirectory(prefix="catena-index-") as scratch:
            path = Path(scratch) / INDEX
            path.write_bytes(raw)
            sidecar.sidecar_path(path).write_bytes(record)
            sidecar.verify(path, Path(signed_by))
    return [
        Offer(
            base=entry.base,
            name=entry.name,
            version=entry.version,
            digest=entry.digest,
            base_digest=entry.base_digest,
            rank=entry.rank,
            tasks=entry.tasks,
            metrics=entry.metrics,
            source=entry.url,
            bytes=entry.bytes,
            sha256=entry.sha256,
        )
        for entry in decode(raw).adapters
    ]


def check_size(offer: Offer, most: int) -> None:
    """Raises Denied for what is larger than this installation fetches."""
    if offer.bytes > most:
        told = f"{offer.source} has {offer.bytes} bytes, at most {most} are fetched"
        raise Denied(f"{told}; raise max_bytes of its registry", code="registry_too_large")


def _leave_only(folder: Path, part: Path) -> None:
    """Forget what was begun of other archives, which are wanted no more."""
    for other in folder.glob("*.part"):
        if other != part:
            other.unlink(missing_ok=True)
