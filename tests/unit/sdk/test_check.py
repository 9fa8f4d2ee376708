"""What `catena up` checks before it starts anything."""

from pathlib import Path

import pytest

from catena.allinone.check import SECTIONS, complaints
from catena.embed.folder import MODEL, TOKENIZER, write_card
from catena.kit.config import ROOMS

pytestmark = pytest.mark.unit


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose embedding model is whole."""
    for name in (MODEL, TOKENIZER):
        (tmp_path / name).write_bytes(b"bytes")
    write_card(tmp_path, name="x", dimension=2, max_tokens=8)
    path = tmp_path / "catena.yaml"
    path.write_text("embedding: .\n")
    return path


def test_every_room_is_looked_at(config: Path) -> None:
    assert set(SECTIONS) == set(ROOMS)
    assert list(complaints(config)) == []
    for room in ROOMS:
        config.write_text(f"embedding: .\n{room}: {{colour: red}}\n")
        (told,) = complaints(config)
        assert f"configuration section '{room}': Object contains unknown field `colour`" in told


def test_all_complaints_are_told_at_once(config: Path) -> None:
    config.write_text("embedding: nowhere\nrouter: {margn: 1}\nlearner: {treshold: 2}\n")
    told = list(complaints(config))
    assert [name for one in told for name in ("margn", "treshold", "nowhere") if name in one] == [
        "margn",
        "treshold",
        "nowhere",
    ]
