"""The network policies let through what the rooms' own code dials, and nothing else."""

import ast
from collections.abc import Iterator

import pytest

from tests.chart.manifests import RELEASE, ROOMS, ROOT, Manifest, config, named, of_kind, render, workload

pytestmark = pytest.mark.chart
PAIRS = [(source, target) for source in ROOMS for target in ROOMS if source != target]


def labels(objects: list[Manifest], part: str) -> dict[str, str]:
    found: dict[str, str] = workload(objects, part)["spec"]["template"]["metadata"]["labels"]
    return found


def allows(rules: list[Manifest], side: str, peer: dict[str, str], ports: set[str | int]) -> bool:
    """Whether a rule lets a pod with labels `peer` through at one of `ports`; no peers means any peer."""
    return any(
        ports & {port["port"] for port in rule["ports"]}
        and (side not in rule or any(_is(one, peer) for one in rule[side]))
        for rule in rules
    )


def _is(selector: Manifest, peer: dict[str, str]) -> bool:
    wanted = selector.get("podSelector", {}).get("matchLabels", {})
    return bool(wanted) and "namespaceSelector" not in selector and wanted.items() <= peer.items()


def passes(objects: list[Manifest], source: str, target: str, ports: set[str | int]) -> bool:
    out = named(objects, "NetworkPolicy", f"{RELEASE}-{source}")["spec"]["egress"]
    into = named(objects, "NetworkPolicy", f"{RELEASE}-{target}")["spec"]["ingress"]
    return allows(out, "to", labels(objects, target), ports) and allows(into, "from", labels(objects, source), ports)


def dialled(room: str) -> Iterator[str]:
    """The rooms whose address this room's code asks for, by their name or by a constant of its module."""
    for path in (ROOT / "services" / "catena" / room).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("dial", "address"):
                yield from (found.value for found in ast.walk(node) if _names_a_room(found))  # type: ignore[attr-defined]


def _names_a_room(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_given_the_addresses_that_its_code_dials(room: str) -> None:
    given = set(config(render(), room)["addresses"])
    assert given - {room} == set(dialled(room)) - {room}


@pytest.mark.parametrize("room", ROOMS)
def test_every_address_leads_through_a_service_and_the_policies_to_its_room(room: str) -> None:
    objects = render()
    for target, address in config(objects, room)["addresses"].items():
        if target == room:
            assert address == "0.0.0.0:50051"
            continue
        host, port = address.split(":")
        ports = named(objects, "Service", host)["spec"]["ports"]
        (through,) = [one for one in ports if one["port"] == int(port)]
        assert through["targetPort"] == "grpc"
        assert passes(objects, room, target, {"grpc", 50051})


def test_rooms_that_do_not_call_each_other_cannot() -> None:
    objects = render()
    reachable = {(one, other) for one, other in PAIRS if passes(objects, one, other, {"grpc", 50051})}
    calling = {(room, target) for room in ROOMS for target in config(objects, room)["addresses"] if target != room}
    # The gateway's gRPC is a front door; a room that wanted it would still need egress to it.
    assert reachable == calling


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_reaches_the_broker_and_nothing_reaches_out_unasked(room: str) -> None:
    objects = render()
    assert passes(objects, room, "nats", {"client", 4222})
    egress = named(objects, "NetworkPolicy", f"{RELEASE}-{room}")["spec"]["egress"]
    unbounded = [rule for rule in egress if "to" not in rule]
    assert [{port["port"] for port in rule["ports"]} for rule in unbounded] == [{53}]


def test_only_the_executor_reaches_outside_providers_and_only_where_told() -> None:
    objects = render({"networkPolicy": {"providersTo": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}})
    reaching = [
        policy["metadata"]["name"]
        for policy in of_kind(objects, "NetworkPolicy")
        if "203.0.113.0/24" in str(policy["spec"].get("egress"))
    ]
    assert reaching == ["catena-executor"]


def test_a_gateway_that_is_closed_to_others_stays_open_to_helm_test() -> None:
    objects = render({"networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}})
    rules = named(objects, "NetworkPolicy", "catena-gateway")["spec"]["ingress"]
    tester = of_kind(objects, "Pod")[0]["metadata"]["labels"]
    assert allows(rules, "from", tester, {"http"})
    assert not allows(rules, "from", labels(objects, "router"), {"http"})


def test_policies_can_be_left_to_somebody_else() -> None:
    assert not of_kind(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy")
