"""Moves an adapter from one version of names, format or base to the next without touching a weight.

Which tensor means which layer is either told, by a strategy named for a pair of versions, or follows from the names
alone. A base whose digest changed must prove that the adapted layers did not. Whatever is left open is refused.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from catena.artifacts import gate, manifest, signature, tensors
from catena.artifacts.base import check_base
from catena.artifacts.digest import files_digest
from catena.artifacts.files import CONFIG, SIGNATURE, WEIGHTS, PlainFile, list_files, open_plain, read_small
from catena.artifacts.gate import MAX_CARD_BYTES, MAX_CONFIG_BYTES, PREFIX, Checked, Rules, check_adapter
from catena.artifacts.manifest import Manifest
from catena.artifacts.refusal import refused, untrusted
from catena.artifacts.strict_json import read_object
from catena.artifacts.tensors import TensorInfo
from catena.kit.errors import Invalid

ALIGNMENT = 8
CHUNK = 1 << 20
LEGAL = frozenset({"LICENSE", "NOTICE"})
Rename = Callable[[str], str]
"""A tensor's new name; empty: it is left out."""


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts of module paths by their new names, and modules to leave out."""

    rename: dict[str, str] = msgspec.field(default_factory=dict)
    drop: tuple[str, ...] = ()

    def module(self, path: str) -> str:
        """The new path, or name, of a module; empty: left out."""
        parts = path.split(".")
        return "" if set(parts) & set(self.drop) else ".".join(self.rename.get(part, part) for part in parts)


class Pair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"before": "from"}):
    """Which strategy leads from one version of an adapter to another."""

    adapter: str
    before: str
    to: str
    strategy: str


class Strategies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A user's file: strategies by name, and the pairs of versions that they are for."""

    strategies: dict[str, Strategy] = msgspec.field(default_factory=dict)
    pairs: list[Pair] = msgspec.field(default_factory=list)

    def find(self, adapter: str, before: str, to: str) -> Strategy | None:
        """The strategy named for a pair; None: there is none. Raises Invalid when it is named but not described."""
        for pair in self.pairs:
            if (pair.adapter, pair.before, pair.to) == (adapter, before, to):
                if pair.strategy not in self.strategies:
                    known = ", ".join(self.strategies) or "none"
                    raise Invalid(f"no strategy {pair.strategy!r}; described are: {known}", code="bad_strategies")
                return self.strategies[pair.strategy]
        return None


NO_STRATEGIES = Strategies()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """To which version and base. `former` is the folder of the base that it was trained on, if that is another one."""

    version: str
    base: Path
    former: Path | None = None
    strategies: Strategies = NO_STRATEGIES


def read_strategies(path: Path) -> Strategies:
    """The strategies in a YAML file. Raises Invalid, naming the place."""
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()) or {}, Strategies)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        message = f"{path}: {error}; write strategies: {{NAME: {{rename: ...}}}} and pairs: [...]"
        raise Invalid(message, code="bad_strategies") from error


def migrate(source: Path, folder: Path, move: Move, *, private: Path | None, keys: Mapping[str, Path]) -> Checked:
    """Write the adapter of `source` as another version into the empty `folder`, seal it, and pass it through the gate.

    `private` signs it; without one the new version is unsigned and passes only a gate that allows that.
    Raises Untrusted when `source` is not what was sealed and, to be signed anew, signed; Refused where names, format or
    base leave a doubt: weights are never guessed.
    """
    card, files = _trusted(source, keys, signed=private is not None)
    if CONFIG not in files or WEIGHTS not in files:
        raise refused("adapter", "missing_file", f"{source} lacks {CONFIG} or {WEIGHTS}; import it instead")
    base = check_base(move.base)
    strategy = move.strategies.find(card.name, card.version, move.version)
    tree = read_object(read_small(files[CONFIG], MAX_CONFIG_BYTES, "adapter"), CONFIG, "adapter", "bad_config")
    if strategy is not None:
        tree = _config(tree, strategy)
    header = tensors.read_header(files[WEIGHTS])
    names = {name: _named(name, strategy) for name in header}
    _check_names(names, base.shape)
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(tree)))
    _write(folder / WEIGHTS, files[WEIGHTS], [(names[name], info) for name, info in header.items() if names[name]])
    for name in LEGAL & files.keys():
        (folder / name).write_bytes(read_small(files[name], MAX_CARD_BYTES, "adapter"))
    if card.base_digest != base.digest:
        _same_layers({module for module in base.shape if _adapts(names, module)}, card.base_digest, move)
    moved = msgspec.structs.replace(
        card, version=move.version, base_digest=base.digest, parent_digest=card.digest, digest=""
    )
    manifest.seal(folder, moved)
    if private is not None:
        signature.sign(folder, private)
    rules = Rules(require_signature=private is not None)
    return check_adapter(folder, base_digest=base.digest, shape=base.shape, keys=keys, rules=rules)


def _trusted(source: Path, keys: Mapping[str, Path], *, signed: bool) -> tuple[Manifest, Mapping[str, PlainFile]]:
    """The manifest and files of an adapter that is as its maker left it: nobody may have a change signed here."""
    card = manifest.read(source)
    files = list_files(source, "adapter")
    actual = files_digest(files)
    if actual != card.digest:
        message = f"{source} has digest {actual[:12]}, its manifest says {card.digest[:12]}; get it anew"
        raise untrusted("adapter", "tampered", message)
    if signed or SIGNATURE in files:
        signature.verify(source, keys)
    return card, files


def _named(name: str, strategy: Strategy | None) -> str:
    """A tensor's name as PEFT writes it into files today.

    In memory PEFT puts the adapter's name before `.weight`, data parallelism `module.` before all, and other tools
    leave the prefix out.
    """
    bare = name.removeprefix("module.")
    while bare.startswith(PREFIX):
        bare = bare[len(PREFIX) :]
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        module, found, rest = bare.partition(f".{part}")
        if found:
            kept = strategy.module(module) if strategy is not None else module
            return f"{PREFIX}{kept}.{part}{rest.removeprefix('.default')}" if kept else ""
    return name


def _config(tree: Mapping[str, Any], strategy: Strategy) -> dict[str, Any]:
    """The configuration with its modules named anew."""
    moved = dict(tree)
    targets = tree.get("target_modules")
    if isinstance(targets, list):
        named = [strategy.module(str(target)) for target in targets]
        moved["target_modules"] = sorted({target for target in named if target})
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = tree.get(key)
        if isinstance(pattern, dict):
            moved[key] = {new: value for old, value in pattern.items() if (new := strategy.module(old))}
    return moved


def _check_names(names: Mapping[str, str], shape: gate.BaseShape) -> None:
    """Raises Refused when a tensor has no layer in the base, or two have become one."""
    kept = [name for name in names.values() if name]
    if len(set(kept)) < len(kept):
        raise refused("adapter", "bad_tensor", "two tensors would get one name; rename them apart in a strategy")
    for old, new in names.items():
        module = new.removeprefix(PREFIX).partition(".lora_")[0]
        if new and module not in shape:
            message = f"tensor {old!r} has no layer {module!r} in the base; name a strategy that tells which one it is"
            raise refused("adapter", "bad_tensor", message)


def _adapts(names: Mapping[str, str], module: str) -> bool:
    return any(name.startswith(f"{PREFIX}{module}.lora_") for name in names.values())


def _same_layers(modules: set[str], former_digest: str, move: Move) -> None:
    """Raises Refused unless the former base is at hand and holds the very weights that the adapter was trained on."""
    if move.former is None:
        message = f"it was trained on a base with digest {former_digest[:12]}; give that base too, or train it anew"
        raise refused("adapter", "base_mismatch", message)
    former = check_base(move.former)
    if former.digest != former_digest:
        message = f"{move.former} has digest {former.digest[:12]}, it was trained on {former_digest[:12]}"
        raise refused("adapter", "base_mismatch", f"{message}; give that base")
    before, after = _layers(move.former), _layers(move.base)
    for module in sorted(modules):
        name = f"{module}.weight"
        if name not in before or _bytes(*before[name]) != _bytes(*after[name]):
            message = f"layer {module!r} is another one in the new base; train the adapter on it anew"
            raise refused("adapter", "base_mismatch", message)


def _layers(folder: Path) -> dict[str, tuple[PlainFile, TensorInfo]]:
    return {
        name: (file, info)
        for file in list_files(folder, "base").values()
        if file.name.endswith(".safetensors")
        for name, info in tensors.read_header(file, "base").items()
    }


def _bytes(file: PlainFile, info: TensorInfo) -> tuple[str, bytes]:
    with open_plain(file.path, "base") as opened:
        opened.seek(info.begin)
        return info.dtype, opened.read(info.bytes)


def _write(path: Path, source: PlainFile, named: Sequence[tuple[str, TensorInfo]]) -> None:
    """A new file of the same values, byte for byte, under other names."""
    tree: dict[str, object] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for name, info in named:
        tree[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (reached, reached + info.bytes)}
        reached += info.bytes
    header = msgspec.json.encode(tree)
    header += b" " * (-len(header) % ALIGNMENT)
    with open_plain(source.path, "adapter") as given, path.open("xb") as made:
        made.write(struct.pack("<Q", len(header)) + header)
        for _, info in named:
            given.seek(info.begin)
            left = info.bytes
            while left:
                chunk = given.read(min(CHUNK, left))
                if not chunk:
                    raise refused("adapter", "bad_header", f"{WEIGHTS} shrank while it was read; try again")
                made.write(chunk)
                left -= len(chunk)
