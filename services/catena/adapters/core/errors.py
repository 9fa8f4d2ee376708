"""What callers of the adapters can act upon."""

from catena.kit.errors import Conflict, Exhausted, Invalid, Missing


class BadModel(Invalid):
    """The model's name cannot be read."""

    default_code = "bad_model_name"


class UnknownModel(Missing):
    """No base of that name is configured."""

    default_code = "unknown_model"


class BaseMisplaced(Invalid):
    """A configured base is not where its path says."""

    default_code = "base_misplaced"


class UnknownAdapter(Missing):
    """The base has no such adapter, version or alias."""

    default_code = "unknown_adapter"


class WrongBase(Invalid):
    """The adapter is for another base than the caller says."""

    default_code = "wrong_base"


class AdapterWithdrawn(Missing):
    """The version was withdrawn and may not be used any more."""

    default_code = "adapter_withdrawn"


class VersionTaken(Conflict):
    """Another adapter was registered under that name and version."""

    default_code = "version_taken"


class AliasMoved(Conflict):
    """The alias does not point where the caller thinks."""

    default_code = "alias_moved"


class NoRoom(Exhausted):
    """Every resident adapter is pinned or in use, or the adapter is larger than the whole budget."""

    default_code = "no_adapter_room"
