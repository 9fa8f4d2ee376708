"""Data files that come with the room and that a user may replace by files of their own."""

from pathlib import Path

from catena.kit.errors import Invalid

FOLDER = Path(__file__).parent


def read(name: str, own: str) -> bytes:
    """The file that the user names, else the one that is shipped. Raises Invalid when theirs cannot be read."""
    path = Path(own) if own else FOLDER / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}; name a readable file", code="bad_config") from error
