"""Quantisation profiles: which level for which adapter family on which device, and how much it may lose.

Read from a YAML file that users may copy and edit; `profiles.yaml` beside this module is the one shipped.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from catena.artifacts.formats.levels import Level
from catena.kit.errors import Invalid, Missing

SHIPPED = "profiles.yaml"
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One choice. `floor` is the least top-1 agreement; `size_cut` and `speed_gain` are expected, not promised."""

    family: str = "default"
    device: str = "any"
    level: Level
    floor: Share
    size_cut: Share
    speed_gain: Annotated[float, msgspec.Meta(gt=0)]

    @property
    def name(self) -> str:
        """As a user names it."""
        return f"{self.family}/{self.device}"


class Profiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    profiles: list[Profile]
    default: Profile

    def find(self, name: str) -> Profile:
        """The profile for `family/device`; the default for a pair that is not listed."""
        return next((profile for profile in self.profiles if profile.name == name), self.default)


def read_profiles(path: Path | None = None) -> Profiles:
    """The profiles of a file, or those shipped. Raises Invalid (`bad_profiles`) naming the field, or Missing."""
    where = str(path or SHIPPED)
    try:
        return msgspec.convert(yaml.safe_load(path.read_text() if path else shipped()), Profiles)
    except FileNotFoundError:
        raise Missing(f"no profiles at {where}; name one that exists", code="no_profiles") from None
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Invalid(f"{where}: {error}", code="bad_profiles") from error


def shipped() -> str:
    """The profiles that come with Catena, as YAML with its comments."""
    return resources.files(__package__).joinpath(SHIPPED).read_text()
