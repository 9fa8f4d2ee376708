"""What the adapters need from outside: an engine, the registry, the bases, the gate."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from catena.adapters.core.encoding import Encoded, Encoding
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


class Runner(Protocol):
    """Runs bases and adapters in mixed batches. Every method raises Unavailable while it is being restarted."""

    def submit(self, work: Work) -> AsyncGenerator[Piece | Done, None]:
        """Pieces as they come, then Done. Closing the generator early cancels and frees what the work held.

        Raises Invalid (`context_length_exceeded`, `draft_mismatch`, `bad_messages`), Exhausted (`queue_full`).
        """
        ...

    async def load_base(self, base: BaseSource) -> BaseFacts:
        """Hold a base; a second time only tells its facts."""
        ...

    async def load_adapter(self, adapter: AdapterSource) -> Loaded:
        """Hold an adapter of a base that is held, proven to change the output."""
        ...

    async def unload(self, weights: Weights) -> int:
        """Let an adapter go wherever it is or, where none is named, its base; the bytes freed, 0: it was not held."""
        ...

    async def counters(self) -> Counters:
        """What it did since it started."""
        ...


class Engine(Runner, Protocol):
    """One that also keeps adapters in host memory, and runs models that do not generate."""

    async def stow(self, weights: Weights) -> int:
        """Move an adapter from the device to host memory; its exact bytes there, 0 when it is not kept but gone."""
        ...

    async def restore(self, weights: Weights) -> Loaded:
        """Move an adapter back from host memory. Raises Unavailable (`not_resident`) when it is not there."""
        ...

    async def encode(self, asked: Encoding) -> Encoded:
        """What a base that is held and does not generate makes of texts or rows; cancelling drops what still waits.

        Raises Invalid (`context_length_exceeded`, `bad_features`), Exhausted (`queue_full`).
        """
        ...


class Registry(Protocol):
    """Which adapters exist, and what aliases point at. A tenant sees its own and those of `shared`."""

    async def find(self, tenant: str, base: str, name: str, tag: str) -> AdapterRecord:
        """The version that a tag means, withdrawn or not. Raises UnknownAdapter."""
        ...

    async def add(self, tenant: str, admitted: Admitted) -> AdapterRecord:
        """Register; again with the same digest changes nothing. Raises VersionTaken, AdapterWithdrawn."""
        ...

    async def page(
        self, tenant: str, *, base: str, task: str, after: str, size: int
    ) -> tuple[Sequence[AdapterRecord], str]:
        """Versions in order of base, name and version, and where the next page starts; empty: no more."""
        ...

    async def withdraw(self, tenant: str, base: str, name: str, version: str, reason: str) -> AdapterRecord:
        """Mark a version withdrawn and remove the aliases that point at it. Raises UnknownAdapter."""
        ...

    async def set_alias(
        self, tenant: str, base: str, name: str, alias: str, *, version: str, expected: str
    ) -> AdapterRecord | None:
        """Move an alias if it points at digest `expected` (empty: must not exist); `version` empty removes it.

        Raises AliasMoved, UnknownAdapter, AdapterWithdrawn.
        """
        ...

    async def versions(self, tenant: str, base: str, name: str) -> Sequence[AdapterRecord]:
        """Every version of an adapter that the tenant sees, withdrawn ones too, the tenant's before shared ones."""
        ...

    async def stable(self, tenant: str, base: str) -> Sequence[AdapterRecord]:
        """The active stable version of every adapter of a base, the tenant's own in place of a shared one."""
        ...

    async def set_fallbacks(self, tenant: str, base: str, name: str, models: Sequence[str]) -> None:
        """Declare which models may answer in place of an adapter, in this order; none: nobody may."""
        ...

    async def fallbacks(self, tenant: str, base: str, name: str) -> Sequence[str]:
        """What was declared: by the tenant, else by `shared`."""
        ...

    async def set_pinned(self, record: AdapterRecord, pinned: bool) -> None:
        """Remember a pin."""
        ...

    async def pinned(self) -> Sequence[AdapterRecord]:
        """Every pinned, active version of every tenant."""
        ...

    async def count_uses(self, uses: Mapping[Use, int]) -> None:
        """Add to the counts of uses."""
        ...

    async def tell_residency(self, tenant: str, model: str, tier: str, bytes: int) -> None:
        """Announce that something was loaded or is gone."""
        ...


class Bases(Protocol):
    """The configured bases; each passes the gate when first asked for, and before every load."""

    def names(self) -> Sequence[str]:
        """Every configured local base."""
        ...

    def kind(self, name: str) -> ModelType:
        """What a configured base is for; it passes only if it does that."""
        ...

    def known(self, name: str) -> BaseRecord | None:
        """A base that passed before."""
        ...

    def problem(self, name: str) -> str:
        """Why a configured base cannot pass, or did not when last asked for, with the cure. Reads no file of it."""
        ...

    async def get(self, name: str) -> BaseRecord:
        """A base. Raises UnknownModel, BaseMisplaced, or the gate's refusal."""
        ...

    async def check(self, name: str) -> BaseRecord:
        """A base about to be loaded: checked again unless it was just now, and still the same."""
        ...

    async def accept(self, name: str, digest: str) -> BaseRecord:
        """Take a base as it is now, altered on purpose; `digest` empty: whatever it has. Raises Conflict."""
        ...


class Gate(Protocol):
    """Admits adapters to the store, and checks them again whenever they are loaded."""

    async def admit_folder(self, folder: Path) -> Admitted:
        """Check and keep a folder. Raises the gate's refusals."""
        ...

    async def admit_file(self, file: Path, *, base: str, called: str) -> Admitted:
        """Check and keep a single `.safetensors` file as `name:version` of a base. Raises the gate's refusals."""
        ...

    async def admit_archive(self, archive: bytes) -> Admitted:
        """Check and keep a tar. Raises the gate's refusals."""
        ...

    async def check(self, record: AdapterRecord) -> Part:
        """Check a registered adapter again, and describe its files to the engine, which hashes what it reads."""
        ...

    def doubt(self, record: AdapterRecord) -> None:
        """Its files were refused while they were read: the next check believes nothing that was found before."""
        ...

    async def vouched(self, record: AdapterRecord) -> bool:
        """Whether what its last check found still holds: it is stored, and who signed it is trusted to this day.

        Reads none of its bytes: enough for what was kept in memory since that check.
        """
        ...

    async def stored(self) -> Stored:
        """What the store holds."""
        ...
