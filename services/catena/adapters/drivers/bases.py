"""The bases that the configuration names: found on disk, passed through the gate once, described without torch."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from catena.adapters.core.encoding import WrongKind
from catena.adapters.core.errors import BaseMisplaced, UnknownModel
from catena.adapters.core.records import BaseRecord
from catena.adapters.drivers.refusals import Refusals
from catena.artifacts import tensors
from catena.artifacts.base import READ, BaseRules, check_base
from catena.artifacts.files import list_files
from catena.artifacts.refusal import untrusted
from catena.kit.config import ModelConfig, ModelType
from catena.kit.errors import CatenaError, Conflict

log = structlog.get_logger()

STAGES = "modules.json"
"""Where sentence-transformers tells what makes a vector of a text."""
FEATURES = "features"
"""The `model_type` of models of feature vectors, whose architecture names a plug-in."""
HEADS: Mapping[str, ModelType] = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token-classification",
    "Model": "embedding",
}


class _Config(msgspec.Struct):
    model_type: str = ""
    max_position_embeddings: int | None = None


class KnownBases(Protocol):
    """What bases were, when they were first seen or an operator last accepted them."""

    async def settle(self, name: str, digest: str) -> str:
        """The digest that counts for a base: the one known, else this one from now on."""
        ...

    async def accept(self, name: str, digest: str) -> None:
        """Let this one count from now on."""
        ...


class LocalBases:
    """Implements the port `Bases`. A refusal is told until the base passes, which requests try, but not all the time.

    A base is known by the digest that it had first: altered, also under a good signature, it is refused until an
    operator accepts it, since the adapters that were made for it fit it no longer.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        *,
        keys: Callable[[], Mapping[str, Path]],
        rules: BaseRules,
        hub: bool,
        known: KnownBases,
        accepted: Mapping[str, str],
        refusals: Refusals,
    ) -> None:
        """Serve those of `models` that are local; `hub` allows a path that is no folder to be fetched from a hub.

        `keys` gives the trusted public keys anew at each check. `accepted` names digests by base, before all that is
        `known`.
        """
        self._models = {model.name: model for model in models if model.provider == "local"}
        self._keys = keys
        self._rules = rules
        self._hub = hub
        self._known = known
        self._accepted = accepted
        self._refusals = refusals
        self._found: dict[str, BaseRecord] = {}
        self._refused: dict[str, str] = {}
        self._shapes: dict[str, Mapping[str, tuple[int, int]]] = {}
        self._fresh: set[str] = set()
        self._turns: dict[str, asyncio.Lock] = {name: asyncio.Lock() for name in self._models}

    def names(self) -> Sequence[str]:
        """Every local base."""
        return list(self._models)

    def kind(self, name: str) -> ModelType:
        """As the configuration has it."""
        return self._models[name].type

    def known(self, name: str) -> BaseRecord | None:
        """A base that passed before."""
        return self._found.get(name)

    def problem(self, name: str) -> str:
        """Why it cannot pass; that a folder is absent is true only as long as it is."""
        return self._misplaced(self._models[name]) or self._refused.get(name, "")

    async def get(self, name: str) -> BaseRecord:
        """A base that passed."""
        self._model(name)
        if name not in self._found:
            async with self._turns[name]:
                if name not in self._found:
                    await self._pass(name)
        return self._found[name]

    async def check(self, name: str) -> BaseRecord:
        """A base about to be loaded."""
        await self.get(name)
        if name not in self._fresh:
            await self._pass(name)
        self._fresh.discard(name)
        return self._found[name]

    async def accept(self, name: str, digest: str) -> BaseRecord:
        """Take a base as it is now. Raises Conflict where it has another digest than the caller says."""
        model = self._model(name)
        async with self._turns[name]:
            record, shape = await asyncio.to_thread(self._check, model)
            if digest and record.digest != digest:
                raise Conflict(
                    f"base {name} has digest {record.digest} now, not {digest}; look again", code="base_moved"
                )
            if self._accepted.get(name, record.digest) != record.digest:
                told = f"adapters.accepted_bases has {self._accepted[name]} for {name}, which now has {record.digest}"
                raise Conflict(f"{told}; change it there", code="base_moved")
            await self._known.accept(name, record.digest)
            self._passed(record, shape)
        log.warning("base accepted", base=name, digest=record.digest)
        return record

    def shape(self, name: str) -> Mapping[str, tuple[int, int]]:
        """The linear layers of a base that was got before, as (inputs, outputs)."""
        return self._shapes[name]

    def _model(self, name: str) -> ModelConfig:
        if name not in self._models:
            known = ", ".join(self._models) or "none; name one under `models`"
            raise UnknownModel(f"no base {name[:200]!r}; there are: {known}")
        return self._models[name]

    async def _pass(self, name: str) -> None:
        self._refusals.check(name)
        try:
            record, shape = await asyncio.to_thread(self._check, self._models[name])
            await self._compare(record)
        except BaseMisplaced:
            raise
        except CatenaError as error:
            self._refused[name] = error.message
            self._refusals.remember(name, error)
            raise
        self._passed(record, shape)

    def _passed(self, record: BaseRecord, shape: Mapping[str, tuple[int, int]]) -> None:
        self._found[record.name], self._shapes[record.name] = record, shape
        self._refused.pop(record.name, None)
        self._refusals.forget(record.name)
        self._fresh.add(record.name)

    async def _compare(self, record: BaseRecord) -> None:
        """Raises Untrusted where the base is not what it was."""
        name, pinned = record.name, self._accepted.get(record.name, "")
        if pinned == record.digest:
            await self._known.accept(name, record.digest)
        expected = pinned or await self._known.settle(name, record.digest)
        if record.digest != expected:
            where = "adapters.accepted_bases names" if pinned else "it was first seen with"
            cure = f"restore its files, or accept them as they are: `catena models accept {name}`"
            if pinned:
                cure = "restore its files, or change the digest there"
            raise untrusted("base", "tampered", f"base {name} has digest {record.digest}, {where} {expected}; {cure}")

    def _check(self, model: ModelConfig) -> tuple[BaseRecord, Mapping[str, tuple[int, int]]]:
        folder, links_within = self._folder(model)
        checked = check_base(folder, keys=self._keys(), rules=self._rules, links_within=links_within)
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
        files = list_files(folder, "base", links_within)
        kind = kind_of(checked.architecture, config.model_type, staged=STAGES in files)
        if kind != model.type:
            raise WrongKind(
                f"base {model.name} is a {checked.architecture}, of type {kind}, not {model.type}; "
                f"set models.type to {kind}"
            )
        headers = [tensors.read_header(file, "base") for name, file in files.items() if name.endswith(".safetensors")]
        record = BaseRecord(
            name=model.name,
            folder=str(folder),
            digest=checked.digest,
            architecture=checked.architecture,
            parameters=sum(math.prod(info.shape) for header in headers for info in header.values()),
            bytes=checked.bytes,
            context_tokens=model.context_tokens or max(config.max_position_embeddings or 0, 0),
            dtype=", ".join(sorted(checked.dtypes)),
            kind=kind,
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

        # Only what a base may hold: hubs keep other runtimes' files and scripts beside it.
        wanted = [*READ, "*.safetensors", "[0-9]_*/config.json", "*.md", "LICENSE*", "NOTICE*"]
        return Path(snapshot_download(model.path, allow_patterns=wanted)), Path(HF_HUB_CACHE)


def kind_of(architecture: str, model_type: str, *, staged: bool) -> ModelType:
    """What a model does, by how its architecture's name ends; `staged`: sentence-transformers made it."""
    if model_type == FEATURES:
        return "prediction"
    if staged:
        return "embedding"
    return next((kind for head, kind in HEADS.items() if architecture.endswith(head)), "chat")
