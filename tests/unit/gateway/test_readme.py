"""The README is where an unknown path sends its caller: it names every route."""

import re
from pathlib import Path

import pytest

from tests.unit.gateway.fronts import entries

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


def test_the_readme_names_every_route_and_none_that_there_is_not() -> None:
    served = {entry.path.replace("{name:path}", "{name}") for entry in entries()}
    named = set(re.findall(r"`?(/(?:v1|v2|api|dashboard|health|openapi)[^`, ;]*)`", (ROOT / "README.md").read_text()))
    assert served == named
