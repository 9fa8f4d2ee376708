"""Pod Security "restricted", asserted by its own text: kubernetes.io/docs/concepts/security/pod-security-standards."""

import pytest

from tests.chart.manifests import POSTGRES, Manifest, Values, containers, of_kind, pods, render

pytestmark = pytest.mark.chart
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
EVERY: list[Values] = [{}, POSTGRES, {"models": {"existingClaim": "models"}}]


def violations(spec: Manifest) -> list[str]:
    """What the restricted standard forbids of this pod."""
    security = spec.get("securityContext", {})
    told = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if spec.get(key)]
    for volume in spec.get("volumes", []):
        told += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    for one in containers(spec):
        own = {**security, **one.get("securityContext", {})}
        name = one["name"]
        if own.get("runAsNonRoot") is not True or own.get("runAsUser") == 0:
            told.append(f"{name} may run as root")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            told.append(f"{name} may gain privileges")
        dropped = own.get("capabilities", {})
        if dropped.get("drop") != ["ALL"] or set(dropped.get("add", [])) - {"NET_BIND_SERVICE"}:
            told.append(f"{name} keeps capabilities")
        if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            told.append(f"{name} has no seccomp profile")
        told += [f"{name} takes host port {port['hostPort']}" for port in one.get("ports", []) if "hostPort" in port]
    return told


@pytest.mark.parametrize("values", EVERY, ids=["default", "postgres", "claim"])
def test_every_pod_is_restricted(values: Values) -> None:
    found = {name: violations(spec) for name, spec in pods(render(values))}
    assert len(found) == 10
    assert not any(found.values()), found


def test_the_check_sees_a_pod_that_is_not() -> None:
    bad = {"hostNetwork": True, "volumes": [{"name": "v", "hostPath": {}}], "containers": [{"name": "c"}]}
    assert len(violations(bad)) == 6


@pytest.mark.parametrize("values", EVERY, ids=["default", "postgres", "claim"])
def test_root_is_read_only_and_what_is_written_is_bounded(values: Values) -> None:
    for _, spec in pods(render(values)):
        for one in containers(spec):
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"requests", "limits"} <= one["resources"].keys()
            assert "memory" in one["resources"]["limits"]
        assert all("sizeLimit" in volume["emptyDir"] for volume in spec.get("volumes", []) if "emptyDir" in volume)


def test_no_pod_holds_a_kubernetes_token() -> None:
    objects = render()
    assert of_kind(objects, "ServiceAccount")[0]["automountServiceAccountToken"] is False
    for _, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
    assert not of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
