"""Dockerfiles and compose.yaml, as far as they can be judged without a container engine."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from catena.kit.config import Section, load
from tests.chart.manifests import ROOMS, ROOT

pytestmark = pytest.mark.chart
DOCKER = ROOT / "docker"
TORCH = ("adapters", "trainer")
EXTRAS = {"adapters": ["nf4"]}
"""What an image has only where it is built so: `--build-arg EXTRAS=`."""
WITH_CUDA = {"triton"}
"""What torch's wheels for CUDA bring along, and nothing here imports without looking for it first."""
FILES = ["service.Dockerfile", "torch.Dockerfile", "models.Dockerfile"]
FOLDERS = (ROOT / "libs", ROOT / "services")
WORD = re.compile(r"\$\{(\w+):\?[^}]*\}")


def instructions(name: str) -> list[tuple[str, str]]:
    """A Dockerfile as pairs of instruction and arguments, comments dropped, continued lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").split("\n")
    return [(kind, words) for kind, words in (line.split(maxsplit=1) for line in joined)]


@pytest.mark.parametrize("name", FILES)
def test_a_dockerfile_builds_anywhere_and_runs_without_root(name: str) -> None:
    found = instructions(name)
    assert found[0][0] == "ARG"
    assert found[0][1].startswith("BASE=")
    assert all(words.startswith("${BASE}") for kind, words in found if kind == "FROM")
    assert [words for kind, words in found if kind == "USER"][-1] == "10001:10001"
    text = (DOCKER / name).read_text()
    assert "<<" not in text
    assert "--link" not in text
    copied = [words.split()[:-1] for kind, words in found if kind == "COPY"]
    sources = [word for words in copied for word in words if not any(one.startswith("--from") for one in words)]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert all(any(source.startswith(line[1:]) for line in ignored if line[0] == "!") for source in sources)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_rooms_image_asks_healthz_and_passes_arguments_on(name: str) -> None:
    found = dict(instructions(name))
    assert "http://127.0.0.1:9090/healthz" in found["HEALTHCHECK"]
    assert found["ENTRYPOINT"].startswith('["/bin/sh", "-c", "exec python -m catena.${CATENA_ROOM}')
    extras = "${EXTRAS:+,${EXTRAS}}" if name.startswith("torch") else ""
    assert f'-c constraints.txt ".[${{SERVICE}}{extras}]"' in (DOCKER / name).read_text()


def test_torch_comes_first_and_by_its_exact_version() -> None:
    runs = [words for kind, words in instructions("torch.Dockerfile") if kind == "RUN" and "pip install" in words]
    assert runs[0].endswith("torch==2.13.0")
    assert "torch" not in (DOCKER / "service.Dockerfile").read_text().replace("without torch", "")


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return read


def test_compose_has_every_room_with_nats_and_postgres() -> None:
    found = compose()
    assert set(found["services"]) == {*ROOMS, "nats", "postgres"}
    used = {volume.split(":")[0] for one in found["services"].values() for volume in one["volumes"]}
    assert {name for name in used if name[0] not in "./"} == set(found["volumes"])


@pytest.mark.parametrize("room", ROOMS)
def test_compose_builds_a_room_from_the_right_file_and_confines_it(room: str) -> None:
    service = compose()["services"][room]
    wanted = "torch" if room in TORCH else "service"
    assert service["build"]["dockerfile"] == f"docker/{wanted}.Dockerfile"
    assert service["build"]["args"] == {"SERVICE": room}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert f"{room}:/var/lib/catena" in service["volumes"]
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DOCKER / source).exists() or ".catena-cache" in source


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_accepts_its_configuration_from_compose(room: str) -> None:
    kinds = vars(importlib.import_module(f"catena.{room}.config")).values()
    (kind,) = [one for one in kinds if isinstance(one, type) and one.__name__ == f"{room.title()}Config"]
    assert issubclass(kind, Section)
    environ = {name: WORD.sub("word", value) for name, value in compose()["services"][room]["environment"].items()}
    house, _ = load(DOCKER / "catena.yaml", room, kind, environ)
    assert house.address(room) == "0.0.0.0:50051"
    assert house.auth.service_token == "word"
    others = [other for other in ROOMS if other not in (room, "gateway")]
    assert [house.address(other) for other in others] == [f"{other}:50051" for other in others]


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What make answers, whoever runs this test by make."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)


def test_make_images_builds_every_room_from_its_file_and_the_models() -> None:
    planned = make("--dry-run", "images", "ENGINE=docker", "TAG=1.2.3").stdout
    for room in ROOMS:
        wanted = "torch" if room in TORCH else "service"
        file = f"docker/{wanted}.Dockerfile"
        assert f"docker build -f {file} --build-arg SERVICE={room} -t catena-{room}:1.2.3 ." in planned
    assert "docker build -f docker/models.Dockerfile -t catena-models:1.2.3 ." in planned


def test_make_images_says_what_is_missing_before_it_starts() -> None:
    told = make("images", "ENGINE=")
    assert told.returncode == 2
    assert "install and start docker or podman" in told.stdout
    assert "build" not in told.stdout


def test_make_images_names_the_images_as_the_chart_does() -> None:
    chart = yaml.safe_load((ROOT / "helm" / "catena" / "Chart.yaml").read_text())
    assert f"-t catena-router:{chart['appVersion']} ." in make("--dry-run", "image-router", "ENGINE=docker").stdout


def test_every_word_that_compose_asks_for_is_in_the_example() -> None:
    asked = set(WORD.findall((DOCKER / "compose.yaml").read_text()))
    told = {line.split("=")[0] for line in (DOCKER / ".env.example").read_text().splitlines() if "=" in line}
    assert asked == told


@pytest.mark.parametrize("room", ROOMS)
def test_an_image_installs_all_that_its_room_imports(room: str) -> None:
    installed = declared(room)
    offered = installed.union(*map(declared, EXTRAS.get(room, ())))
    owners = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, name in imported(room)
        if not {plain(owner) for owner in owners.get(name, [])} & offered and not (room in TORCH and name in WITH_CUDA)
    }
    assert not missing
    assert ("torch" in installed) == (room in TORCH)


def declared(room: str) -> set[str]:
    """The distributions that `.[room]`, a room's or another extra, names, its references to other extras followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, waiting = set[str](), [*project["dependencies"], *project["optional-dependencies"][room]]
    while waiting:
        name, _, extras = re.match(r"([\w.-]+)(\[(.*)\])?", waiting.pop()).groups()  # type: ignore[union-attr]
        if name == "catena":
            for extra in extras.split(","):
                waiting += project["optional-dependencies"][extra]
        found.add(plain(name))
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(room: str) -> Iterator[tuple[Path, str]]:
    """Every foreign package that the room's modules, and the libraries that they reach, import."""
    waiting = list((ROOT / "services" / "catena" / room).rglob("*.py"))
    assert waiting, f"no code of {room}"
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in names_in(path):
            top = name.split(".")[0]
            if top == "catena":
                waiting += files_of(name)
            elif top not in sys.stdlib_module_names:
                yield path, top


@cache
def names_in(path: Path) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


@cache
def files_of(module: str) -> list[Path]:
    """The file of a module of Catena, and the `__init__` of each package above it."""
    parts = module.split(".")
    ends = [Path(*parts[:count]) for count in range(2, len(parts) + 1)]
    candidates = [folder / end / "__init__.py" for folder in FOLDERS for end in ends]
    candidates += [(folder / Path(*parts)).with_suffix(".py") for folder in FOLDERS]
    return [path for path in candidates if path.exists()]
