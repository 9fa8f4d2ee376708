"""A kubelet in small: runs the pods of a rendered chart as local processes, so that chart and services must agree.

It does for a pod what a node does: volumes, ConfigMaps and Secrets, variables with $(NAME), init containers, the
container's own command, and its probes as written. What it cannot do without namespaces it translates in every text
that reaches a container: mount paths become folders, the pod's own ports become free ones, and `service:port` becomes
what the rendered Services route it to. Anything of a pod that it does not know is an error, never ignored.
"""

import asyncio
import base64
import os
import random
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from catena.kit.supervise import Child, Supervisor
from tests.chart.manifests import Manifest, named, of_kind, workloads

READY_WITHIN_S = 60.0
LOCAL = "127.0.0.1"
PORTS = range(20_000, 32_000)


@dataclass(kw_only=True)
class Pod:
    """One pod of the chart; `ports` maps what its containers listen at to free ports of this machine."""

    name: str
    labels: dict[str, str]
    spec: Manifest
    claims: list[str] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)

    def port(self, wanted: str | int) -> int:
        """The local port of a container's port, by name or number. Raises KeyError when no container declares it."""
        declared = [port for one in self.spec["containers"] for port in one.get("ports", [])]
        numbers = {port["name"]: port["containerPort"] for port in declared}
        return self.ports[numbers[wanted] if isinstance(wanted, str) else wanted]


def pods_of(objects: list[Manifest]) -> dict[str, Pod]:
    found = [
        Pod(
            name=one["metadata"]["name"],
            labels=one["spec"]["template"]["metadata"]["labels"],
            spec=one["spec"]["template"]["spec"],
            claims=[claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])],
        )
        for one in workloads(objects)
    ]
    found += [
        Pod(name=one["metadata"]["name"], labels=one["metadata"]["labels"], spec=one["spec"])
        for one in of_kind(objects, "Pod")
    ]
    free = free_ports()
    for pod in found:
        declared = [port["containerPort"] for one in pod.spec["containers"] for port in one.get("ports", [])]
        pod.ports = {number: next(free) for number in declared}
    return {pod.name: pod for pod in found}


def free_ports() -> Iterator[int]:
    """Ports that nothing listens at, each given once, from below those that outgoing connections take."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probing:
            probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probing.bind((LOCAL, port))
            except OSError:
                continue
        yield port


class Node:
    """Runs the pods of `objects`. `image_files` are paths inside images, `claims` existing volume claims by name."""

    def __init__(
        self,
        objects: list[Manifest],
        folder: Path,
        supervisor: Supervisor,
        *,
        image_files: Mapping[str, Path],
        claims: Mapping[str, Path] | None = None,
    ) -> None:
        self.pods = pods_of(objects)
        self._objects = objects
        self._folder = folder
        self._supervisor = supervisor
        self._image_files = image_files
        self._claims = claims or {}

    async def start(self, name: str) -> None:
        """Run a pod until all its probes passed once. Raises AssertionError with its last lines when one does not."""
        pod = self.pods[name]
        for one in pod.spec.get("initContainers", []):
            code = await self._run(pod, one)
            assert code == 0, f"{name}/{one['name']} ended with {code}:\n{self.output(name, one['name'])}"
        for one in pod.spec["containers"]:
            await self._supervisor.start(self._child(pod, one))
        for one in pod.spec["containers"]:
            await self._started(pod, one)
            assert await probe(pod, one["livenessProbe"]), f"{name}/{one['name']} started but is not alive"
            await self._ready(pod, one)

    async def complete(self, name: str) -> int:
        """Run a pod with one container to its end; its exit code."""
        return await self._run(self.pods[name], self.pods[name].spec["containers"][0])

    async def stop(self, name: str) -> int:
        """SIGTERM as the kubelet sends it; the exit code. Raises TimeoutError past the pod's grace period."""
        child = f"{name}-{self.pods[name].spec['containers'][0]['name']}"
        process = self._supervisor.pid(child)
        assert process is not None, f"{child} does not run:\n{self._supervisor.last_lines(child)}"
        os.kill(process, signal.SIGTERM)
        grace_s = self.pods[name].spec["terminationGracePeriodSeconds"]
        return await asyncio.wait_for(self._supervisor.wait(child), grace_s)

    def volume(self, pod: str, name: str) -> Path:
        """The folder that stands for a pod's volume."""
        return self._folder / pod / name

    def output(self, pod: str, container: str) -> str:
        return self._supervisor.last_lines(f"{pod}-{container}", 40)

    async def _run(self, pod: Pod, container: Manifest) -> int:
        child = self._child(pod, container)
        await self._supervisor.start(child)
        return await self._supervisor.wait(child.name)

    async def _started(self, pod: Pod, container: Manifest) -> None:
        asked = container["startupProbe"]
        for _ in range(asked["failureThreshold"]):
            state = self._supervisor.state(f"{pod.name}-{container['name']}")
            assert state == "running", f"{pod.name} {state}:\n{self.output(pod.name, container['name'])}"
            if await probe(pod, asked):
                return
            await asyncio.sleep(asked["periodSeconds"])
        raise AssertionError(f"{pod.name} did not start:\n{self.output(pod.name, container['name'])}")

    async def _ready(self, pod: Pod, container: Manifest) -> None:
        asked = container["readinessProbe"]
        deadline = asyncio.get_running_loop().time() + READY_WITHIN_S
        while not await probe(pod, asked):
            told = f"{pod.name} is not ready:\n{self.output(pod.name, container['name'])}"
            assert asyncio.get_running_loop().time() < deadline, told
            await asyncio.sleep(asked["periodSeconds"])

    def _child(self, pod: Pod, container: Manifest) -> Child:
        known = {"name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "resources"}
        known |= {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "securityContext", "volumeMounts"}
        assert set(container) <= known, f"this kubelet does not know {set(container) - known}"
        mounts = self._mounts(pod, container)
        command = [*container["command"], *container.get("args", [])]
        return Child(
            name=f"{pod.name}-{container['name']}",
            command=[self._translate(word, pod, mounts) for word in command],
            env=self._environment(pod, container, mounts),
            restart=False,
        )

    def _environment(self, pod: Pod, container: Manifest, mounts: Mapping[str, Path]) -> dict[str, str]:
        env: dict[str, str] = {}
        for one in container.get("env", []):
            raw = one["value"] if "value" in one else self._secret(one["valueFrom"]["secretKeyRef"])
            env[one["name"]] = re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], raw)
        env = {name: self._translate(value, pod, mounts) for name, value in env.items()}
        # What images bring: a PATH on which `python` and `nats-server` are this environment's.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        scratch = {"TMPDIR": str(mounts["/tmp"])} if "/tmp" in mounts else {}
        return {"PATH": path, "OMP_NUM_THREADS": "1", **scratch, **env}

    def _secret(self, ref: Manifest) -> str:
        secret = named(self._objects, "Secret", ref["name"])
        plain = secret.get("stringData", {}).get(ref["key"])
        return plain if plain is not None else base64.b64decode(secret["data"][ref["key"]]).decode()

    def _mounts(self, pod: Pod, container: Manifest) -> dict[str, Path]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounts = dict(self._image_files)
        for mount in container.get("volumeMounts", []):
            assert set(mount) <= {"name", "mountPath", "readOnly"}, mount
            folder = self._volume(pod, mount["name"], volumes)
            mounts[mount["mountPath"]] = folder
        for path in sorted(mounts, key=len):
            above = next((one for one in mounts if path.startswith(f"{one}/")), None)
            if above is not None and not (inner := mounts[above] / path.removeprefix(f"{above}/")).exists():
                inner.symlink_to(mounts[path])
        for mount in container.get("volumeMounts", []):
            for name, text in self._files(volumes.get(mount["name"], {})).items():
                (mounts[mount["mountPath"]] / name).write_text(self._translate(text, pod, mounts))
        return mounts

    def _files(self, source: Manifest) -> dict[str, str]:
        """What a ConfigMap or a Secret puts into its volume."""
        if "configMap" in source:
            data: dict[str, str] = named(self._objects, "ConfigMap", source["configMap"]["name"])["data"]
            return data
        secret = source.get("secret", {})
        ref = {"name": secret.get("secretName")}
        return {item["path"]: self._secret({**ref, "key": item["key"]}) for item in secret.get("items", [])}

    def _volume(self, pod: Pod, name: str, volumes: Mapping[str, Manifest]) -> Path:
        source = volumes.get(name, {})
        if "persistentVolumeClaim" in source:
            return self._claims[source["persistentVolumeClaim"]["claimName"]]
        known = name in pod.claims or {"emptyDir", "configMap", "secret"} & set(source)
        assert known, f"{pod.name} mounts {name!r}, which is no volume that this kubelet knows: {source}"
        folder = self.volume(pod.name, name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _translate(self, text: str, pod: Pod, mounts: Mapping[str, Path]) -> str:
        """`text` as it must read on this machine; one pass, so that nothing is translated twice."""
        routes = self._routes()
        paths = sorted(mounts, key=len, reverse=True)
        words = [
            r"(?<![\w.-])(?P<service>" + "|".join(map(re.escape, routes)) + r"):(?P<port>\d+)(?!\d)",
            r"(?<![\w.])(?P<path>" + "|".join(map(re.escape, paths)) + r")(?![\w-])" if paths else r"(?P<path>(?!))",
            r"(?P<any>0\.0\.0\.0)",
            r"(?<![\w.])(?P<own>" + ("|".join(map(str, pod.ports)) or "(?!)") + r")(?![\w.])",
        ]

        def local(found: re.Match[str]) -> str:
            if found["service"]:
                return f"{LOCAL}:{routes[found['service']][int(found['port'])]}"
            if found["path"]:
                return str(mounts[found["path"]])
            return LOCAL if found["any"] else str(pod.ports[int(found["own"])])

        return re.sub("|".join(words), local, text)

    def _routes(self) -> dict[str, dict[int, int]]:
        """By service and its port, the local port of the pod that its selector finds."""
        routes: dict[str, dict[int, int]] = {}
        for service in of_kind(self._objects, "Service"):
            wanted = service["spec"]["selector"].items()
            (behind,) = [pod for pod in self.pods.values() if wanted <= pod.labels.items()]
            ports = service["spec"]["ports"]
            routes[service["metadata"]["name"]] = {port["port"]: behind.port(port["targetPort"]) for port in ports}
        return routes


async def probe(pod: Pod, asked: Manifest) -> bool:
    """One try of a probe as the kubelet makes it."""
    timeout_s = asked.get("timeoutSeconds", 1)
    if "httpGet" in asked:
        url = f"http://{LOCAL}:{pod.port(asked['httpGet']['port'])}{asked['httpGet']['path']}"
        return await _http(url, timeout_s)
    return await _grpc(f"{LOCAL}:{pod.port(asked['grpc']['port'])}", asked["grpc"].get("service", ""), timeout_s)


async def _http(url: str, timeout_s: float) -> bool:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            return 200 <= answer.status < 400
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _grpc(address: str, service: str, timeout_s: float) -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
