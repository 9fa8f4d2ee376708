"""Registries that are model hubs: each repository an adapter's folder with its `catena.json`, read by huggingface_hub.

Nothing here is reached unless the configuration names a repository or a namespace. What the library does on its own
(redirects to a hub's storage, retries, partial files) is left to it; sizes are asked for before anything is fetched.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from catena.adapters.core.offers import Offer
from catena.adapters.core.updates import Transfer
from catena.artifacts import manifest
from catena.artifacts.digest import MAX_MANIFEST_BYTES
from catena.artifacts.files import CARD, CONFIG, MANIFEST, SIGNATURE, WEIGHTS, PlainFile, read_small
from catena.kit.errors import CatenaError, Denied, Missing, Unavailable

MOST_REPOSITORIES = 200
ASK_S = 30.0
FILES = (MANIFEST, CONFIG, SIGNATURE, CARD, "LICENSE", "NOTICE", WEIGHTS)
Found = TypeVar("Found")


class HubRegistry:
    """Implements the port `Remote`."""

    def __init__(self, place: str, *, endpoint: str, key: str, scratch: Path, most: int) -> None:
        """Read the repository `place`, or all of a namespace, at `endpoint` (empty: the public hub)."""
        # Imported when configured: nobody else should depend on it.
        from huggingface_hub import HfApi

        self._place = place
        self._api = HfApi(endpoint=endpoint or None, token=key or False)
        self._scratch = scratch
        self._most = most
        self._known: dict[tuple[str, str], Offer | None] = {}

    async def offers(self) -> Sequence[Offer]:
        """Every repository that holds a manifest; one that did not change is not read again."""
        return await self._ask(self._offers)

    async def fetch(self, offer: Offer) -> AsyncGenerator[Transfer | Path | bytes, None]:
        """The repository's files as a folder."""
        repository, _, revision = offer.source.rpartition("@")
        sizes = await self._ask(partial(self._sizes, repository, revision))
        model, total = f"{offer.base}@{offer.name}:{offer.version}", sum(sizes.values())
        if total > self._most:
            told = f"{offer.source} has {total} bytes, at most {self._most} are fetched"
            raise Denied(f"{told}; raise max_bytes of its registry", code="registry_too_large")
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._scratch, prefix="hub-"))
        try:
            done = 0
            for name, size in sizes.items():
                yield Transfer(model=model, done=done, total=total)
                await self._ask(partial(self._get, repository, revision, name, folder))
                done += size
            # The library's own notes; the gate lets nothing through but the adapter's files.
            await asyncio.to_thread(shutil.rmtree, folder / ".cache", ignore_errors=True)
            yield Transfer(model=model, done=done, total=total)
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _offers(self) -> list[Offer]:
        if "/" in self._place:
            repositories = [self._place]
        else:
            repositories = [m.id for m in self._api.list_models(author=self._place, limit=MOST_REPOSITORIES)]
        found: dict[tuple[str, str], Offer | None] = {}
        for repository in repositories:
            revision = str(self._api.model_info(repository, timeout=ASK_S).sha)
            key = (repository, revision)
            found[key] = self._known[key] if key in self._known else self._offer(repository, revision)
        self._known = found
        return [offer for offer in found.values() if offer is not None]

    def _offer(self, repository: str, revision: str) -> Offer | None:
        sizes = self._sizes(repository, revision)
        if not 0 < sizes.get(MANIFEST, 0) <= MAX_MANIFEST_BYTES:
            return None
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="card-") as folder:
            path = self._get(repository, revision, MANIFEST, Path(folder))
            raw = read_small(PlainFile(name=MANIFEST, path=path, size=0), MAX_MANIFEST_BYTES, "adapter")
        card = manifest.decode(raw)
        return Offer(
            base=card.base_name,
            name=card.name,
            version=card.version,
            digest=card.digest,
            base_digest=card.base_digest,
            rank=card.rank,
            tasks=card.tasks,
            metrics=card.metrics,
            source=f"{repository}@{revision}",
            bytes=sum(sizes.values()),
        )

    def _sizes(self, repository: str, revision: str) -> dict[str, int]:
        """What an adapter may consist of, as far as the repository has it."""
        info = self._api.model_info(repository, revision=revision, files_metadata=True, timeout=ASK_S)
        there = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        return {name: there[name] for name in FILES if name in there}

    def _get(self, repository: str, revision: str, name: str, folder: Path) -> Path:
        return Path(self._api.hf_hub_download(repository, name, revision=revision, local_dir=folder))

    async def _ask(self, work: Callable[[], Found]) -> Found:
        from httpx2 import HTTPError
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

        where = f"{self._place} at {self._api.endpoint}"
        try:
            return await asyncio.to_thread(work)
        except CatenaError:
            raise
        except GatedRepoError as error:
            raise Denied(
                f"{where} is not for this key; check the registry's api_key_env", code="registry_denied"
            ) from error
        except OfflineModeIsEnabled as error:
            told = f"{where} may not be asked, since HF_HUB_OFFLINE is set; set it to 0 for this room"
            raise Unavailable(told, code="registry_offline") from error
        except RepositoryNotFoundError as error:
            told = f"{where} is not there, or not for this key; correct its name or set api_key_env"
            raise Missing(told, code="registry_missing") from error
        except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
            told = f"{where} does not answer as a hub: {str(error)[:200] or type(error).__name__}"
            raise Unavailable(f"{told}; is it reachable from here?", code="registry_down") from error
