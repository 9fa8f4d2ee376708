"""`catena features`."""

import json
import math
from collections.abc import Iterable
from typing import Annotated

import typer
from google.protobuf import json_format, struct_pb2

from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.sdk.terminal import Tenant, Terminal, moment

app = typer.Typer(help="Feature values: set and get, now or as of a time.", no_args_is_help=True)
Entity = Annotated[str, typer.Argument(help="entity_type/entity_id, for example user/42")]


@app.command("set")
def set_(
    context: typer.Context,
    entity: Entity,
    values: Annotated[list[str], typer.Argument(help="name=value; values are JSON, else text.")],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Append values."""
    terminal: Terminal = context.obj
    kind, _, id_ = entity.partition("/")

    async def work() -> None:
        request = features_pb2.SetRequest(values=[value_of(kind, id_, value) for value in values])
        async with terminal.room("features", features_pb2_grpc.FeaturesServiceStub, tenant) as features:
            told = await features.Set(request)
        _show(terminal, told.values)

    terminal.run(work())


@app.command("get")
def get(
    context: typer.Context,
    entity: Entity,
    names: Annotated[list[str], typer.Argument(help="Names of features.")],
    as_of_s: Annotated[float, typer.Option(help="Seconds since the epoch; 0: now.")] = 0.0,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Read values."""
    terminal: Terminal = context.obj
    kind, _, id_ = entity.partition("/")

    async def work() -> None:
        async with terminal.room("features", features_pb2_grpc.FeaturesServiceStub, tenant) as features:
            request = features_pb2.GetRequest(entity_type=kind, entity_id=id_, features=names, as_of_s=as_of_s)
            told = await features.Get(request)
        _show(terminal, told.row.values)

    terminal.run(work())


def value_of(kind: str, id_: str, told: str) -> features_pb2.Value:
    """`name=value` as a message; what is no JSON, or no finite number, is text. Raises Invalid (`bad_value`)."""
    name, equals, text = told.partition("=")
    if not (name and equals):
        raise Invalid(f"{told!r} should read name=value", code="bad_value")
    try:
        plain = json.loads(text, parse_float=finite, parse_constant=finite)
    except ValueError:
        plain = text
    value = json_format.ParseDict(plain, struct_pb2.Value())
    return features_pb2.Value(entity_type=kind, entity_id=id_, feature=name, value=value)


def finite(text: str) -> float:
    """The number. Raises ValueError when it is none that can be stored."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _show(terminal: Terminal, values: Iterable[features_pb2.Value]) -> None:
    rows = []
    for value in values:
        plain = json_format.MessageToDict(value.value)
        told = plain if terminal.plain else json.dumps(plain)
        rows.append((value.feature, told, value.status, value.version, moment(value.event_s)))
    terminal.table("Features", ("feature", "value", "status", "version", "event time"), rows)
