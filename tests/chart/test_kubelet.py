"""The chart's proof: every container that it renders runs here, by its own command, configuration and probes."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from catena.artifacts import signature
from catena.kit.supervise import Supervisor
from tests.chart.kubelet import Node
from tests.chart.manifests import RELEASE, ROOMS, ROOT, render

pytestmark = [pytest.mark.chart, pytest.mark.asyncio(loop_scope="module")]
EMBEDDER = ROOT / ".catena-cache" / "minilm-int8"
KIND = ROOT / "k8s" / "kind" / "values.yaml"
TEST = f"{RELEASE}-test"
Outcomes = dict[str, BaseException | None]


def models(folder: Path) -> Path:
    """What docker/models.Dockerfile puts under /catena-models."""
    for name in ("demo-small", "demo-large"):
        shutil.copytree(ROOT / "demo" / "models" / name, folder / name)
    assert EMBEDDER.exists(), f"no embedding model at {EMBEDDER}; run `make test`, or python -m catena.embed.export"
    shutil.copytree(EMBEDDER, folder / "embed")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    async with Supervisor(folder / "logs") as supervisor:
        image_files = {"/catena-models": models(folder / "images")}
        kind = yaml.safe_load(KIND.read_text())
        objects = render({**kind, "test": {"timeoutSeconds": 40}})
        yield Node(objects, folder / "pods", supervisor, image_files=image_files)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(node: Node) -> Outcomes:
    """Every pod started at once, as a cluster does, and what came of it."""
    names = [name for name in node.pods if name != TEST]
    results = await asyncio.gather(*(node.start(name) for name in names), return_exceptions=True)
    return dict(zip(names, results, strict=True))


@pytest.mark.parametrize("part", ["nats", *ROOMS])
async def test_a_rendered_container_starts_and_passes_its_own_probes(part: str, outcomes: Outcomes) -> None:
    failure = outcomes[f"{RELEASE}-{part}"]
    if failure is not None:
        raise failure


async def test_helm_test_gets_an_answer_through_the_gateway(node: Node, outcomes: Outcomes) -> None:
    assert not any(outcomes.values()), "a room did not start"
    code = await node.complete(TEST)
    assert code == 0, node.output(TEST, "infer")
    assert "auto answered" in node.output(TEST, "infer")


async def test_the_adapters_trust_what_the_trainer_signs(node: Node, outcomes: Outcomes, tmp_path: Path) -> None:
    assert outcomes
    (tmp_path / "adapter_config.json").write_text("{}")
    signature.sign(tmp_path, node.volume("catena-trainer", "home") / "keys" / "signing.pem")
    trusted = signature.public_keys(node.volume("catena-adapters", "signing"))
    assert signature.verify(tmp_path, trusted) == "signing"


@pytest.mark.parametrize("part", [*ROOMS, "nats"])
async def test_a_container_ends_by_itself_when_told_to(part: str, node: Node, outcomes: Outcomes) -> None:
    assert outcomes
    assert await node.stop(f"{RELEASE}-{part}") == 0


async def test_a_changed_model_file_keeps_a_room_from_starting(tmp_path: Path) -> None:
    files = models(tmp_path / "images")
    weights = files / "demo-small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    async with Supervisor(tmp_path / "logs") as supervisor:
        values = {"models": {"existingClaim": "models"}}
        tampered = Node(render(values), tmp_path / "pods", supervisor, image_files={}, claims={"models": files})
        with pytest.raises(AssertionError, match=r"model.safetensors: FAILED"):
            await tampered.start(f"{RELEASE}-adapters")
