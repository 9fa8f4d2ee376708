"""The bases that the configuration names: found on disk, passed through the gate once, described without torch."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from catena.adapters.core.errors import BaseMisplaced, UnknownModel
from catena.adapters.core.records import BaseRecord
from catena.artifacts import tensors
from catena.artifacts.base import BaseRules, check_base
from catena.artifacts.files import list_files
from catena.kit.config import ModelConfig
from catena.kit.errors import CatenaError


class _Config(msgspec.Struct):
    max_position_embeddings: int = 0


class LocalBases:
    """Implements the port `Bases`. A refusal is told until the base passes, which every request for it tries."""

    def __init__(self, models: Sequence[ModelConfig], *, keys: Mapping[str, Path], rules: BaseRules, hub: bool) -> None:
        """Serve those of `models` that are local; `hub` allows a path that is no folder to be fetched from a hub."""
        self._models = {model.name: model for model in models if model.provider == "local"}
        self._keys = keys
        self._rules = rules
        self._hub = hub
        self._found: dict[str, BaseRecord] = {}
        self._refused: dict[str, str] = {}
        self._shapes: dict[str, Mapping[str, tuple[int, int]]] = {}
        self._fresh: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {name: asyncio.Lock() for name in self._models}

    def names(self) -> Sequence[str]:
        """Every local base."""
        return list(self._models)

    def known(self, name: str) -> BaseRecord | None:
        """A base that passed before."""
        return self._found.get(name)

    def problem(self, name: str) -> str:
        """Why it cannot pass; that a folder is absent is true only as long as it is."""
        return self._misplaced(self._models[name]) or self._refused.get(name, "")

    async def get(self, name: str) -> BaseRecord:
        """A base that passed."""
        if name not in self._models:
            known = ", ".join(self._models) or "none; name one under `models`"
            raise UnknownModel(f"no base {name[:200]!r}; there are: {known}")
        if name not in self._found:
            async with self._turns[name]:
                if name not in self._found:
                    await self._pass(name, "")
        return self._found[name]

    async def check(self, name: str) -> BaseRecord:
        """A base about to be loaded."""
        found = await self.get(name)
        if name not in self._fresh:
            await self._pass(name, found.digest)
        self._fresh.discard(name)
        return self._found[name]

    def shape(self, name: str) -> Mapping[str, tuple[int, int]]:
        """The linear layers of a base that was got before, as (inputs, outputs)."""
        return self._shapes[name]

    async def _pass(self, name: str, digest: str) -> None:
        try:
            self._found[name], self._shapes[name] = await asyncio.to_thread(self._check, self._models[name], digest)
        except BaseMisplaced:
            raise
        except CatenaError as error:
            self._refused[name] = error.message
            raise
        self._refused.pop(name, None)
        self._fresh.add(name)

    def _check(self, model: ModelConfig, digest: str) -> tuple[BaseRecord, Mapping[str, tuple[int, int]]]:
        folder, links_within = self._folder(model)
        checked = check_base(folder, keys=self._keys, rules=self._rules, digest=digest, links_within=links_within)
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
        files = list_files(folder, "base", links_within)
        headers = [tensors.read_header(file, "base") for name, file in files.items() if name.endswith(".safetensors")]
        record = BaseRecord(
            name=model.name,
            folder=str(folder),
            digest=checked.digest,
            architecture=checked.architecture,
            parameters=sum(math.prod(info.shape) for header in headers for info in header.values()),
            bytes=checked.bytes,
            context_tokens=model.context_tokens or config.max_position_embeddings,
            dtype=", ".join(sorted(checked.dtypes)),
        )
        return record, checked.shape

    def _misplaced(self, model: ModelConfig) -> str:
        if not model.path:
            return f"base {model.name} has no path; name its folder under `models`"
        if self._hub or Path(model.path).is_dir():
            return ""
        told = f"base {model.name}: no folder at {model.path}; correct its path"
        return f"{told}, or set adapters.hub to fetch that id from a hub"

    def _folder(self, model: ModelConfig) -> tuple[Path, Path | None]:
        """Where the base's files are, and the folder into which its links may point."""
        if wrong := self._misplaced(model):
            raise BaseMisplaced(wrong)
        path = Path(model.path)
        if path.is_dir():
            return path, None
        # Imported when needed: only who asks for a hub should depend on it.
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(snapshot_download(model.path, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"])), Path(
            HF_HUB_CACHE
        )
