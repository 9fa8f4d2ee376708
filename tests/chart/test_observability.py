"""Dashboards and alerts ask only for metrics and labels that the rooms' code makes."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.manifests import ROOMS, ROOT

pytestmark = pytest.mark.chart
BOARDS = sorted((ROOT / "k8s" / "dashboards").glob("*.json"))
RULES = ROOT / "k8s" / "alerts" / "catena.rules.yaml"
MAKERS = ("counter", "gauge", "histogram")
GIVEN_BY_PROMETHEUS = {"le", "room", "pod", "__name__"}
METRIC = re.compile(r"\b(?:catena|alora|gen_ai_server)_\w+")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
GROUP = re.compile(r"\bby\s*\(([^)]*)\)")


@cache
def made() -> dict[str, set[str]]:
    """Every metric of the code by its full name, with its labels."""
    found: dict[str, set[str]] = {}
    for folder in (ROOT / "libs", ROOT / "services"):
        for path in folder.rglob("*.py"):
            for room, noun, labels in makers(path):
                for one in ROOMS if room is None else [room]:
                    found[f"catena_{one}_{noun}" if one else noun] = labels
    return found


def makers(path: Path) -> Iterator[tuple[str | None, str, set[str]]]:
    """Room (None: any; empty: the noun is the full name), noun and labels of each metric that a module makes."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
            room, noun, *rest = node.args
            if isinstance(noun, ast.Constant):
                value = room.value if isinstance(room, ast.Constant) else constants.get(getattr(room, "id", ""))
                name = None if value is None else str(value)
                labels = next((one for one in rest if isinstance(one, ast.List)), ast.List(elts=[]))
                texts = {one.value for one in labels.elts if isinstance(one, ast.Constant)}
                yield name, str(noun.value), {str(text) for text in texts}


def complaints(expression: str) -> list[str]:
    """What an expression asks for that no room gives."""
    told = []
    allowed = set(GIVEN_BY_PROMETHEUS)
    for name in METRIC.findall(re.sub(r'__name__=~"[^"]*"', "", expression)):
        plain = name if name in made() else re.sub(r"_(bucket|sum|count)$", "", name)
        if plain in made():
            allowed |= made()[plain]
        else:
            told.append(f"no metric {name}")
    if "__name__" in expression:
        allowed |= {"verb", "outcome"}
    asked = {
        *LABEL.findall(expression),
        *(one.strip() for group in GROUP.findall(expression) for one in group.split(",")),
    }
    return told + [f"no label {label}" for label in sorted(asked - allowed)]


def test_the_check_sees_a_metric_and_a_label_that_do_not_exist() -> None:
    assert complaints('sum by (tenant) (rate(catena_router_call_total{outcome="ok"}[5m]))') == [
        "no metric catena_router_call_total", "no label outcome", "no label tenant",
    ]  # fmt: skip


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_there_is_and_its_panels_do_not_overlap(path: Path) -> None:
    board = json.loads(path.read_text())
    panels = board["panels"]
    for panel in panels:
        for target in panel["targets"]:
            assert not complaints(target["expr"]), panel["title"]
            assert target["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert not [(one["title"], other["title"]) for one, other in combinations(panels, 2) if _overlap(one, other)]


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    return not (beside or above)


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert not complaints(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description"} <= rule["annotations"].keys()
    assert re.fullmatch(r"\d+m", rule["for"])


def test_every_alert_is_tried_with_series_that_raise_it() -> None:
    tests = RULES.with_name("catena.rules.test.yaml")
    tried = {
        one["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in alerts()}
    promtool = shutil.which("promtool")
    if promtool:
        subprocess.run([promtool, "test", "rules", tests], check=True, cwd=tests.parent)
