"""Reads the data files, the shipped ones or a user's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from catena.adapters.core.records import BaseProfile, Profile
from catena.kit.errors import Invalid

FOLDER = Path(__file__).parent
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}\Z")]
Content = TypeVar("Content")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tasks: tuple[str, ...] = ()
    description: str = ""


class _Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    parameters: Annotated[int, msgspec.Meta(gt=0)]
    licence: str = ""
    description: str = ""


def read_workflows(own: str = "") -> Mapping[str, Sequence[str]]:
    """The adapters that each workflow begins with; `own` names a file to read instead of the shipped one.

    Raises Invalid, naming the place, when the file cannot be read or is no mapping of lists of names.
    """
    return _read("workflows.yaml", own, dict[str, list[Name]], "workflow: [adapter, ...]")


def read_profiles(own: str = "") -> Mapping[str, Profile]:
    """The library profiles by name; `own` and errors as for workflows."""
    entries = _read("library.yaml", own, dict[Name, _Entry], "name: {tasks: [...], description: ...}")
    return {
        name: Profile(name=name, tasks=entry.tasks, description=entry.description) for name, entry in entries.items()
    }


def read_base_profiles(own: str = "") -> Mapping[str, BaseProfile]:
    """The base profiles by name; `own` and errors as for workflows."""
    entries = _read("bases.yaml", own, dict[Name, _Base], "name: {path: ..., parameters: ..., ...}")
    return {name: BaseProfile(name=name, **msgspec.structs.asdict(entry)) for name, entry in entries.items()}


def _read(name: str, own: str, kind: type[Content], form: str) -> Content:
    path = Path(own) if own else FOLDER / name
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}; name a readable file", code="bad_config") from error
    except msgspec.MsgspecError as error:
        raise Invalid(f"{path}: {error}; write {form}", code="bad_config") from error
