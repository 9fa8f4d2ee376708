"""Procedures as JSON files in a folder: one object, or a list of them, a file."""

from pathlib import Path

import msgspec

from catena.kit.errors import Invalid, Missing
from catena.memory.core.types import Sop, SopStep


class _Step(msgspec.Struct, forbid_unknown_fields=True):
    action: str
    condition: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    description: str
    trigger: list[str]
    steps: list[_Step]
    category: str = ""
    priority: float = 0.0


def read_sops(folder: str) -> list[Sop]:
    """The procedures of every `*.json` in `folder`, by file name; an empty `folder` holds none.

    Raises Missing for an absent folder, Invalid, naming the file, for one that does not fit.
    """
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise Missing(f"no folder {folder} for memory.sops; make it or leave the setting empty", code="no_sops")
    return [_sop(item) for path in sorted(Path(folder).glob("*.json")) for item in _read(path)]


def _read(path: Path) -> list[_File]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File | list[_File])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Invalid(f"{path}: {error}", code="bad_sop") from error
    return found if isinstance(found, list) else [found]


def _sop(item: _File) -> Sop:
    return Sop(
        name=item.name,
        description=item.description,
        triggers=tuple(item.trigger),
        steps=tuple(SopStep(action=step.action, condition=step.condition) for step in item.steps),
        category=item.category,
        priority=item.priority,
    )
