import base64
import re

import helm_python
import kubernetes_validate
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tests.chart.manifests import (
    CHART,
    POSTGRES,
    RELEASE,
    ROOMS,
    ROOT,
    Values,
    config,
    container,
    named,
    notes,
    of_kind,
    pod,
    pods,
    render,
    workload,
    workloads,
)

pytestmark = pytest.mark.chart
MONITORED: Values = {"monitoring": {"serviceMonitor": {"enabled": True}}}
OUTSIDE: Values = {
    **POSTGRES,
    **MONITORED,
    "nats": {"enabled": False},
    "bus": {"existingSecret": "broker"},
    "auth": {"existingSecret": "tokens"},
    "models": {"existingClaim": "models"},
    "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {}}], "providersTo": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
    "config": {"telemetry": {"otlp_endpoint": "http://collector:4317"}},
    "rooms": {"gateway": {"autoscaling": {"enabled": True}, "affinity": {"podAntiAffinity": {}}}},
}
EVERY = [{}, POSTGRES, OUTSIDE]
CUSTOM = {"ServiceMonitor"}


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
@pytest.mark.parametrize("values", EVERY, ids=["default", "postgres", "outside"])
def test_every_object_is_valid_kubernetes(values: Values, version: str) -> None:
    for found in render(values):
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)


def test_validation_refuses_an_unknown_field() -> None:
    broken = {**workload(render(), "router"), "replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_lint_finds_nothing_wrong() -> None:
    told = helm_python.lint(CHART, strict=True)
    assert not told["errors"]
    assert all(message["severity"] < 2 for message in told["messages"]), told


def test_the_kind_example_renders_and_is_valid() -> None:
    values = yaml.safe_load((ROOT / "k8s" / "kind" / "values.yaml").read_text())
    objects = render(values)
    for found in objects:
        kubernetes_validate.validate(found, "1.37", strict=True)
    limits = [container(objects, room)["resources"]["limits"] for room in ROOMS]
    assert not any("gpu" in name for limit in limits for name in limit)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_objects(room: str) -> None:
    objects = render(POSTGRES)
    name = f"{RELEASE}-{room}"
    for kind in ("Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"):
        assert named(objects, kind, name)
    assert workload(objects, room)["spec"]["replicas"] == 1


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_probed_at_start_in_life_and_for_readiness(room: str) -> None:
    probed = container(render(), room)
    assert probed["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    assert probed["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    asked = {"httpGet": {"path": "/healthz", "port": "http"}} if room == "gateway" else {"grpc": {"port": 50051}}
    assert asked.items() <= probed["readinessProbe"].items()


@pytest.mark.parametrize("room", ROOMS)
def test_an_object_selects_the_pods_of_its_own_room_only(room: str) -> None:
    objects = render()
    labels = {
        found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"] for found in workloads(objects)
    }
    selectors = [
        named(objects, "Service", f"{RELEASE}-{room}")["spec"]["selector"],
        named(objects, "PodDisruptionBudget", f"{RELEASE}-{room}")["spec"]["selector"]["matchLabels"],
        named(objects, "NetworkPolicy", f"{RELEASE}-{room}")["spec"]["podSelector"]["matchLabels"],
        workload(objects, room)["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert [name for name, has in labels.items() if selector.items() <= has.items()] == [f"{RELEASE}-{room}"]


def test_state_on_disk_makes_a_stateful_set_with_a_volume() -> None:
    kinds = {found["metadata"]["name"]: found["kind"] for found in workloads(render(POSTGRES))}
    assert {name for name, kind in kinds.items() if kind == "StatefulSet"} == {
        "catena-adapters", "catena-trainer", "catena-memory", "catena-nats",
    }  # fmt: skip
    assert {found["kind"] for found in workloads(render())} == {"StatefulSet"}
    for found in workloads(render()):
        mounted = {mount["name"] for mount in found["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
        assert found["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] in mounted


@pytest.mark.parametrize("room", ROOMS)
def test_home_is_always_a_volume(room: str) -> None:
    for values in EVERY:
        objects = render(values)
        assert config(objects, room)["home"] == "/var/lib/catena"
        assert {"name": "home", "mountPath": "/var/lib/catena"} in container(objects, room)["volumeMounts"]


@pytest.mark.parametrize("values", EVERY, ids=["default", "postgres", "outside"])
def test_every_mount_has_its_volume_and_every_volume_its_mount(values: Values) -> None:
    objects = render(values)
    claims = {
        found["metadata"]["name"]: {
            claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])
        }
        for found in workloads(objects)
    }
    for name, spec in pods(objects):
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims.get(name, set())
        mounts = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
        assert volumes == mounts, name


def test_a_changed_configuration_restarts_only_its_room() -> None:
    def sums(values: Values) -> dict[str, str]:
        found = workloads(render(values))
        return {
            one["metadata"]["name"]: one["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for one in found
        }

    before, after = sums({}), sums({"rooms": {"router": {"config": {"threshold": 0.7}}}})
    assert {name for name in before if before[name] != after[name]} == {"catena-router"}
    shared = sums({"config": {"telemetry": {"level": "debug"}}})
    assert {name for name in before if before[name] == shared[name]} == {"catena-nats"}


@pytest.mark.parametrize("room", ["gateway", "executor", "adapters"])
def test_a_pod_outlives_the_longest_stream(room: str) -> None:
    objects = render()
    pause = container(objects, room)["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest = config(objects, "gateway")["gateway"].get("timeout_s", 120)
    assert pod(objects, room)["terminationGracePeriodSeconds"] >= pause + longest


def test_gpus_bring_runtime_class_tolerations_and_node_selector() -> None:
    gpu = {
        "count": 1,
        "resource": "nvidia.com/mig-1g.10gb",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/mig.capable": "true"},
    }
    objects = render({"rooms": {"adapters": {"gpu": gpu}, "trainer": {"gpu": {"count": 0}}}})
    spec = pod(objects, "adapters")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {"nvidia.com/mig.capable": "true"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    without = pod(objects, "trainer")
    assert "tolerations" not in without
    assert "runtimeClassName" not in without
    assert set(without["containers"][0]["resources"]["limits"]) == {"memory"}


def test_an_autoscaler_owns_the_number_of_replicas() -> None:
    objects = render(OUTSIDE)
    scaler = named(objects, "HorizontalPodAutoscaler", "catena-gateway")
    assert scaler["spec"]["scaleTargetRef"]["kind"] == workload(objects, "gateway")["kind"] == "Deployment"
    assert "replicas" not in workload(objects, "gateway")["spec"]


def test_replicas_spread_over_hosts_and_zones() -> None:
    spread = pod(render(), "router")["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_an_image_is_pinned_by_digest_when_one_is_given() -> None:
    digest = "sha256:" + "a" * 64
    values = {"image": {"registry": "r.example/c", "tag": "2"}, "rooms": {"router": {"image": {"digest": digest}}}}
    objects = render(values)
    assert container(objects, "router")["image"] == f"r.example/c/catena-router@{digest}"
    assert container(objects, "gateway")["image"] == "r.example/c/catena-gateway:2"


def test_no_secret_is_written_into_a_config_map_or_a_pod() -> None:
    objects = render({**POSTGRES, "nats": {"enabled": False}, "bus": {"url": "nats://hidden@broker:4222"}})
    for found in objects:
        if found["kind"] != "Secret":
            assert not re.search(r"hidden|catena:secret", str(found)), found["metadata"]["name"]


def test_existing_secrets_replace_the_generated_ones() -> None:
    assert not of_kind(render({**OUTSIDE, "sql": {"existingSecret": "database"}}), "Secret")
    env = {one["name"]: one for one in container(render(OUTSIDE), "router")["env"]}
    assert env["CATENA__AUTH__SERVICE_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "tokens"
    assert env["CATENA__BUS__URL"]["valueFrom"]["secretKeyRef"] == {"name": "broker", "key": "url"}


def test_secrets_that_pods_read_have_their_keys() -> None:
    objects = render(POSTGRES)
    kept = {
        found["metadata"]["name"]: {*found.get("data", {}), *found.get("stringData", {})}
        for found in of_kind(objects, "Secret")
    }
    for _, spec in pods(objects):
        for one in spec["containers"]:
            for ref in (env["valueFrom"]["secretKeyRef"] for env in one.get("env", []) if "valueFrom" in env):
                assert ref["key"] in kept[ref["name"]]


def test_the_generated_signing_key_fits_its_public_half_and_only_the_trainer_holds_it() -> None:
    objects = render()
    data = named(objects, "Secret", "catena-auth")["data"]
    private = load_pem_private_key(base64.b64decode(data["signing.pem"]), None)
    form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    told = load_pem_public_key(base64.b64decode(data["signing.pub"]))
    assert told.public_bytes(*form) == private.public_key().public_bytes(*form)
    holders = {
        name: {item["key"] for volume in spec["volumes"] for item in volume.get("secret", {}).get("items", [])}
        for name, spec in pods(objects)
        if "volumes" in spec
    }
    assert holders.pop("catena-trainer") == {"signing.pem", "signing.pub"}
    assert holders.pop("catena-adapters") == {"signing.pub"}
    assert not any(holders.values())


@pytest.mark.parametrize("count", [0, 1])
def test_the_adapters_use_the_gpu_that_they_are_given(count: int) -> None:
    objects = render({"rooms": {"adapters": {"gpu": {"count": count}}}})
    assert config(objects, "adapters")["adapters"]["device"] == ("cuda" if count else "cpu")


def test_metrics_are_scraped_where_an_operator_is() -> None:
    assert not of_kind(render(), "ServiceMonitor")
    monitor = of_kind(render(MONITORED), "ServiceMonitor")[0]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for room in ROOMS:
        service = named(render(), "Service", f"{RELEASE}-{room}")
        assert wanted.items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_notes_tell_how_to_ask_and_what_is_missing() -> None:
    told = notes()
    assert "svc/catena-gateway 8080:80" in told
    assert "No model is configured" not in told
    assert "No model is configured" in notes({"config": {"models": []}})
