"""What the commands that convert, merge and quantise do; they load it when they run, since it needs `gguf`.

Everything happens on files here. The platform is asked for one thing only: the digest of an adapter that is named
rather than given as a folder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from catena.artifacts import migration, sidecar, signature
from catena.artifacts.formats import imports
from catena.artifacts.formats.arrays import Step, silent
from catena.artifacts.formats.derived import Derived
from catena.artifacts.formats.factors import LoraWeights, read_peft, write_peft
from catena.artifacts.formats.gguf_adapter import write_gguf_adapter
from catena.artifacts.formats.gguf_export import export_gguf, value_count
from catena.artifacts.formats.imports import Format, Naming
from catena.artifacts.formats.levels import Level, level_of
from catena.artifacts.formats.llama_cpp import open_llama
from catena.artifacts.formats.merging import Merged, write_merged
from catena.artifacts.formats.mlx_adapter import write_mlx
from catena.artifacts.formats.models import BaseModel, Weights, open_base
from catena.artifacts.formats.placing import new_file, new_folder
from catena.artifacts.formats.profiles import Profiles, read_profiles, shipped
from catena.artifacts.formats.quantising import Quantised, export_quantised
from catena.artifacts.gate import Checked, Rules, check_adapter
from catena.artifacts.migration import NO_STRATEGIES, Move, read_strategies
from catena.artifacts.placing import put
from catena.kit.config import House
from catena.kit.errors import Invalid, Missing
from catena.sdk.terminal import Terminal
from catena.sdk.vouching import SIDECAR, importing_key, kept, record

PROFILES = "quantisation.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter that passed the gate, or, where that was allowed, is merely well formed."""

    weights: LoraWeights
    name: str
    digest: str
    signer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """At what precision a GGUF is written, what it must keep, and the texts to measure that on (none: unmeasured)."""

    level: Level
    floor: float
    profile: str
    prompts: list[str]


def base_of(house: House, told: str) -> tuple[str, BaseModel]:
    """The base that is meant: a folder, or the name of one under `models` in the configuration."""
    if (path := Path(told)).is_dir():
        return path.resolve().name, open_base(path)
    for model in house.models:
        if model.name == told and Path(model.path).is_dir():
            return model.name, open_base(Path(model.path))
    known = ", ".join(model.name for model in house.models if model.provider == "local") or "none"
    raise Missing(f"no base at {told!r}; name its folder, or one of the configuration's: {known}", code="unknown_base")


def adapter_of(house: House, folder: Path, base: BaseModel, *, unsigned: bool) -> Adapter:
    """The adapter in a PEFT folder, past the gate; `unsigned` lets one pass that nobody sealed or signed."""
    rules = Rules(require_manifest=not unsigned, require_signature=not unsigned)
    keys = signature.public_keys(house.folder("keys", "trusted"))
    checked = check_adapter(folder, base_digest=base.digest, shape=base.shape, keys=keys, rules=rules)
    card = checked.manifest
    name = f"{card.name}:{card.version}" if card else folder.resolve().name
    weights = read_peft(folder, base.shape)
    return Adapter(weights=weights, name=name, digest=checked.digest, signer=checked.signer)


def convert(house: House, source: Path, out: Path, *, to: Format, base: str, factors: str = "F32") -> Format:
    """Write an adapter in another format, vouching for nothing; returns the format it was in."""
    kind = imports.format_of(source)
    name, model = base_of(house, base)
    _write(imports.read_adapter(source, model), out, to, model, base_name=name, factors=factors)
    return kind


def export(house: House, adapter: Adapter, out: Path, *, to: Format, base: tuple[str, BaseModel], now_s: float) -> Path:
    """Write an adapter for another runtime, with a signed record that names its digest and its base's beside it."""
    name, model = base
    _write(adapter.weights, out, to, model, base_name=name, factors="F32", title=adapter.name)
    told = {
        "kind": f"{to}-adapter",
        "adapter": adapter.name,
        "adapter_digest": adapter.digest,
        "adapter_signer": adapter.signer,
        "base": name,
        "base_digest": model.digest,
        "rank": adapter.weights.rank,
    }
    return record(house, out, told, now_s=now_s)


def take_in(house: House, source: Path, out: Path, naming: Naming, *, base: str, now_s: float) -> Checked:
    """Import an adapter: converted, sealed, signed with this installation's importing key, past the gate."""
    name, model = base_of(house, base)
    naming = replace(naming, base_name=naming.base_name or name)
    trusted = house.folder("keys", "trusted")
    private = importing_key(house)
    keys = signature.public_keys(trusted)
    return imports.import_adapter(source, out, model, naming, private=private, keys=keys, now_s=now_s)


def migrate(house: House, source: Path, out: Path, *, version: str, bases: tuple[str, str], strategies: str) -> Checked:
    """Write an adapter as another version, signed with this installation's importing key, past the gate.

    `bases` are the one that it is to fit and, if it is another one, the one that it was trained on.
    """
    trusted = house.folder("keys", "trusted")
    private = importing_key(house)
    base, former = (base_of(house, told)[1].folder if told else None for told in bases)
    assert base is not None
    told = read_strategies(Path(strategies)) if strategies else NO_STRATEGIES
    move = Move(version=version, base=base, former=former, strategies=told)
    with new_folder(out) as made:
        checked = migration.migrate(source, made, move, private=private, keys=signature.public_keys(trusted))
    return replace(checked, folder=out)


def merge(base: tuple[str, BaseModel], adapter: Adapter, out: Path, *, now_s: float, terminal: Terminal) -> Derived:
    """Write a base with an adapter in it as a new base folder, and the signed record beside it."""
    name, model = base
    both = Merged(base=model, adapter=adapter.weights)
    card = Derived(
        kind="merge",
        name=out.name,
        base_name=name,
        base_digest=model.digest,
        adapter_name=adapter.name,
        adapter_digest=adapter.digest,
        created_s=now_s,
    )
    with bar(terminal, "merging", value_count(both)) as step, new_folder(out) as made:
        sealed = write_merged(both, made, card, step=step)
    _record_base(terminal.house, out, sealed, now_s=now_s)
    return sealed


def export_model(
    terminal: Terminal,
    base: tuple[str, BaseModel],
    adapter: Adapter | None,
    out: Path,
    *,
    finish: Finish,
    now_s: float,
) -> tuple[Quantised, Path]:
    """Write a base, or a merge, as GGUF for llama.cpp; returns how, and the signed record beside the file."""
    name, model = base
    weights: Weights = model if adapter is None else Merged(base=model, adapter=adapter.weights)
    origin = {"base_digest": model.digest} | ({"adapter_digest": adapter.digest} if adapter else {})
    title = name if adapter is None else f"{name}@{adapter.name}"

    def write(path: Path, at: Level) -> None:
        with bar(terminal, f"writing {at}", value_count(weights)) as step:
            export_gguf(weights, path, level=at, name=title, origin=origin, step=step)

    with new_file(out) as made:
        told = export_quantised(
            weights,
            made,
            level=finish.level,
            floor=finish.floor,
            prompts=finish.prompts,
            write=write,
            open_model=partial(open_llama, context=model.config.context),
        )
    metadata = {"kind": "gguf", "base": name, **origin, "profile": finish.profile}
    metadata |= {"quantisation": msgspec.to_builtins(told)} | ({"adapter": adapter.name} if adapter else {})
    return told, record(terminal.house, out, metadata, now_s=now_s)


def finish_of(house: House, at: str, prompts: Path | None) -> Finish:
    """What a level, or a profile named `family/device`, comes to; nothing named means the default profile."""
    texts = _prompts(prompts) if prompts else []
    if at and "/" not in at:
        return Finish(level=level_of(at), floor=0.0, profile="", prompts=texts)
    found = profiles_of(house)[0].find(at)
    return Finish(level=found.level, floor=found.floor, profile=found.name, prompts=texts)


def profiles_of(house: House, *, copy: bool = False) -> tuple[Profiles, Path | None]:
    """The profiles in force, and their file if the home has its own; `copy` puts those shipped there to be edited."""
    path = house.folder() / PROFILES
    if copy and not path.exists():
        put(path, shipped().encode())
    own = path if path.exists() else None
    return read_profiles(own), own


def take_in_model(terminal: Terminal, source: Path, out: Path, *, dtype: str, now_s: float) -> Derived:
    """Import a GGUF model as a base folder, past the gate for bases, with the signed record beside it."""
    with bar(terminal, "importing", None) as step:
        sealed = imports.import_base(source, out, name=out.name, dtype=dtype, now_s=now_s, step=step)
    _record_base(terminal.house, out, sealed, now_s=now_s)
    return sealed


def verify(house: House, model: Path, key: Path | None) -> sidecar.Sidecar:
    """The record of a file or folder that is as it was signed, by this installation unless `key` says otherwise."""
    public = key or house.folder("keys") / f"{SIDECAR}.pub"
    if not public.is_file():
        raise Missing(f"no public key at {public}; name the signer's with --key", code="no_key")
    return sidecar.verify(model, public)


@contextmanager
def bar(terminal: Terminal, what: str, total: int | None) -> Iterator[Step]:
    """A progress bar over values; nothing in JSON mode."""
    if terminal.plain:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[tensor]}"), console=terminal.console, transient=True) as progress:
        task = progress.add_task(what, total=total, tensor="")
        yield lambda count, tensor: progress.update(task, advance=count, tensor=tensor)


def _record_base(house: House, out: Path, card: Derived, *, now_s: float) -> None:
    """Write the signed record of a base: all that its manifest says but what the record says itself."""
    told = msgspec.to_builtins(card)
    metadata = {name: value for name, value in told.items() if value and name not in ("format", "created_s")}
    record(house, out, metadata, now_s=now_s)


def _write(
    adapter: LoraWeights, out: Path, to: Format, base: BaseModel, *, base_name: str, factors: str, title: str = ""
) -> None:
    if to == "gguf":
        dtype: Literal["F32", "F16"] = "F16" if factors == "F16" else "F32"
        more = {"catena.base_digest": base.digest}
        with new_file(out) as path:
            write_gguf_adapter(adapter, path, base.config, name=title, dtype=dtype, more=more)
        return
    with new_folder(out) as folder:
        write: Callable[[], None] = partial(write_mlx, adapter, folder)
        if to == "peft":
            write = partial(write_peft, adapter, folder, base.shape, base_name=base_name)
        write()


def _prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read as text: {error}; one prompt a line", code="no_prompts") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise Invalid(f"{path} holds no prompts; write one a line", code="no_prompts")
    return found


__all__ = ["Adapter", "Finish", "Naming", "kept"]
