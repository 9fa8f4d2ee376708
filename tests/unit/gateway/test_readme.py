"""The README is where an unknown path sends its caller: it names every route."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
GATEWAY = ROOT / "services" / "catena" / "gateway"


def test_the_readme_names_every_route_and_none_that_there_is_not() -> None:
    sources = (GATEWAY / "handlers" / "passage.py", GATEWAY / "handlers" / "http.py")
    route = re.compile(r'(?:Route\(|"(?:GET|PUT|POST|DELETE)", )"(/[^"]+)"')
    served = {path for source in sources for path in route.findall(source.read_text())}
    named = set(re.findall(r"`?(/(?:v1|api|dashboard|health)[^`, ;]*)`", (ROOT / "README.md").read_text()))
    assert {path.replace("{name:path}", "{name}") for path in served} == named
