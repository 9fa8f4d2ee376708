"""The chart, rendered by Helm itself, and the parts of what comes out that the tests look at."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

from catena.kit.config import ROOMS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "catena"
RELEASE = "catena"
POSTGRES = {"sql": {"url": "postgresql://catena:secret@db/catena"}}

Manifest = dict[str, Any]
Values = dict[str, Any]

__all__ = ["CHART", "POSTGRES", "RELEASE", "ROOMS", "ROOT", "Manifest", "Values"]


def render(values: Values | None = None) -> list[Manifest]:
    """Every object of a release named `catena`, hooks included. Raises what Helm raises."""
    objects: list[Manifest] = json.loads(_rendered(json.dumps(values or {}, sort_keys=True)))
    return objects


def notes(values: Values | None = None) -> str:
    """The text that Helm prints after an installation."""
    with helm_python.Chart.load(CHART) as chart:
        return chart.render(values, name=RELEASE, namespace="tests")["catena/templates/NOTES.txt"]


@functools.cache
def _rendered(values: str) -> str:
    # A handle loses subcharts for good after one render: one handle per render.
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(json.loads(values), name=RELEASE, namespace="tests")
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
    return json.dumps([found for text in texts for found in yaml.safe_load_all(text) if found])


def of_kind(objects: list[Manifest], *kinds: str) -> list[Manifest]:
    return [found for found in objects if found["kind"] in kinds]


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    return next(found for found in of_kind(objects, kind) if found["metadata"]["name"] == name)


def workloads(objects: list[Manifest]) -> list[Manifest]:
    return of_kind(objects, "Deployment", "StatefulSet")


def workload(objects: list[Manifest], room: str) -> Manifest:
    return next(found for found in workloads(objects) if found["metadata"]["name"] == f"{RELEASE}-{room}")


def pods(objects: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod's name and spec, from workloads and the `helm test` pod."""
    for found in workloads(objects):
        yield found["metadata"]["name"], found["spec"]["template"]["spec"]
    for found in of_kind(objects, "Pod"):
        yield found["metadata"]["name"], found["spec"]


def pod(objects: list[Manifest], room: str) -> Manifest:
    spec: Manifest = workload(objects, room)["spec"]["template"]["spec"]
    return spec


def container(objects: list[Manifest], room: str) -> Manifest:
    only: Manifest = pod(objects, room)["containers"][0]
    return only


def containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def config(objects: list[Manifest], room: str) -> Manifest:
    """The catena.yaml that a room reads."""
    read: Manifest = yaml.safe_load(named(objects, "ConfigMap", f"{RELEASE}-{room}")["data"]["catena.yaml"])
    return read
