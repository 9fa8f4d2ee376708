"""The OpenAPI document says what the routes really take."""

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from catena.gateway.handlers.exchange import decode
from catena.gateway.handlers.openapi import document
from catena.gateway.handlers.routes import Entry
from tests.unit.gateway.fronts import entries, front

pytestmark = pytest.mark.unit
ENTRIES = entries()
DOCUMENT = json.loads(msgspec.json.encode(document(ENTRIES, "0")))
BODIED = [entry for entry in ENTRIES if entry.takes is not None and entry.verb in ("POST", "PUT")]


def operation(entry: Entry) -> dict[str, Any]:
    return DOCUMENT["paths"][entry.path.replace(":path", "")][entry.verb.lower()]


def named(entry: Entry) -> str:
    return f"{entry.verb} {entry.path}"


def resolved(schema: Any) -> Any:
    """A schema whose references lead into the document."""
    return {**schema, "components": DOCUMENT["components"]}


def test_every_route_is_in_it_and_nothing_else() -> None:
    routes = front().application().routes
    served = {(route.path.replace(":path", ""), verb) for route in routes for verb in route.methods}
    told = {(path, verb.upper()) for path, verbs in DOCUMENT["paths"].items() for verb in verbs}
    assert told == {(path, verb) for path, verb in served if verb != "HEAD"}


def test_its_schemas_are_schemas_and_its_references_lead_somewhere() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert set(references(DOCUMENT)) <= known
    operations = [verb["operationId"] for verbs in DOCUMENT["paths"].values() for verb in verbs.values()]
    assert len(operations) == len(set(operations))


@pytest.mark.parametrize("entry", BODIED, ids=named)
def test_every_body_has_an_example_that_fits_its_schema_and_its_reader(entry: Entry) -> None:
    content = operation(entry)["requestBody"]["content"]["application/json"]
    jsonschema.validate(content["example"], resolved(content["schema"]))
    raw = json.dumps(content["example"]).encode()
    if issubclass(entry.takes, Message):
        json_format.ParseDict(json.loads(raw), entry.takes())
    else:
        decode(raw, entry.takes)


def test_a_body_of_another_type_fits_neither_schema_nor_reader() -> None:
    (chat,) = [entry for entry in BODIED if entry.path == "/v1/chat/completions"]
    wrong = {"model": "auto", "messages": "hello"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, resolved(operation(chat)["requestBody"]["content"]["application/json"]["schema"]))


def test_routes_that_need_no_key_say_so_and_no_other() -> None:
    free = {entry.path for entry in ENTRIES if operation(entry).get("security") == []}
    assert free == {"/dashboard", "/healthz", "/health", "/openapi.json", "/v2/health/live", "/v2/health/ready"}


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for one in node for found in references(one)]
    if not isinstance(node, dict):
        return []
    here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
    return here + [found for one in node.values() for found in references(one)]
