"""Features' gRPC service: proto in, core call, proto out."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from catena.api.features.v1 import features_pb2 as pb
from catena.api.features.v1.features_pb2_grpc import FeaturesServiceServicer
from catena.features.core.features import Features, Question
from catena.features.core.reading import choose_feature_type
from catena.features.core.types import Definition, Draft, EntityReading, Group, Reading, Row, Status
from catena.kit.caller import caller
from catena.kit.jsonvalue import from_json, to_json

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class FeaturesHandlers(FeaturesServiceServicer):
    """`FeaturesService` over `Features`."""

    def __init__(self, features: Features) -> None:
        """Answer from `features`."""
        self._features = features

    async def Set(self, request: pb.SetRequest, context: Context) -> pb.SetResponse:
        """Append values."""
        drafts = [draft_of(item) for item in request.values]
        rows = await self._features.append(caller().tenant, drafts, request_id=request.request_id)
        return pb.SetResponse(
            values=[
                row_to(draft.entity_type, row, row.value, Status.PRESENT)
                for draft, row in zip(drafts, rows, strict=True)
            ]
        )

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        """Read one entity."""
        (reading,) = await self._features.read(question_of(request, [request.entity_id]))
        return pb.GetResponse(row=reading_to(request.entity_type, reading))

    async def BatchGet(self, request: pb.BatchGetRequest, context: Context) -> pb.BatchGetResponse:
        """Read many entities."""
        readings = await self._features.read(question_of(request, list(request.entity_ids)))
        return pb.BatchGetResponse(rows=[reading_to(request.entity_type, reading) for reading in readings])

    async def PutDefinition(self, request: pb.PutDefinitionRequest, context: Context) -> pb.PutDefinitionResponse:
        """Add or change a definition."""
        asked = request.definition
        stored = await self._features.put_definition(
            caller().tenant,
            Definition(
                entity_type=asked.entity_type,
                name=asked.name,
                type=choose_feature_type(asked.type),
                ttl_s=asked.ttl_s,
                description=asked.description,
            ),
        )
        return pb.PutDefinitionResponse(definition=definition_to(stored))

    async def PutGroup(self, request: pb.PutGroupRequest, context: Context) -> pb.PutGroupResponse:
        """Add or change a group."""
        asked = request.group
        stored = await self._features.put_group(
            caller().tenant,
            Group(
                name=asked.name,
                entity_type=asked.entity_type,
                features=tuple(asked.features),
                description=asked.description,
            ),
        )
        return pb.PutGroupResponse(
            group=pb.Group(
                name=stored.name,
                entity_type=stored.entity_type,
                features=stored.features,
                description=stored.description,
                version=stored.version,
            )
        )


def draft_of(item: pb.Value) -> Draft:
    """A value to append, as asked for."""
    return Draft(
        entity_type=item.entity_type,
        entity_id=item.entity_id,
        feature=item.feature,
        value=to_json(item.value),
        event_s=item.event_s,
    )


def question_of(request: pb.GetRequest | pb.BatchGetRequest, entity_ids: Sequence[str]) -> Question:
    """A read as asked for, on behalf of the caller's tenant."""
    return Question(
        tenant=caller().tenant,
        entity_type=request.entity_type,
        entity_ids=entity_ids,
        features=request.features,
        group=request.group,
        as_of_s=request.as_of_s,
        known_at_s=request.known_at_s,
    )


def reading_to(entity_type: str, reading: EntityReading) -> pb.FeatureRow:
    """An entity as read."""
    values = [value_to(entity_type, reading.entity_id, item) for item in reading.readings]
    return pb.FeatureRow(entity_id=reading.entity_id, values=values, vector=reading.vector)


def value_to(entity_type: str, entity_id: str, reading: Reading) -> pb.Value:
    """A feature as read; a missing one has its name and status only."""
    if reading.row is not None:
        return row_to(entity_type, reading.row, reading.value, reading.status)
    return pb.Value(entity_type=entity_type, entity_id=entity_id, feature=reading.feature, status=reading.status.value)


def row_to(entity_type: str, row: Row, value: Any, status: Status) -> pb.Value:
    """A row as told; `value` is what of it counts."""
    return pb.Value(
        entity_type=entity_type,
        entity_id=row.entity_id,
        feature=row.feature,
        value=from_json(value),
        event_s=row.event_s,
        created_s=row.created_s,
        definition_version=row.definition_version,
        version=row.version,
        status=status.value,
    )


def definition_to(definition: Definition) -> pb.Definition:
    """A definition as told."""
    return pb.Definition(
        entity_type=definition.entity_type,
        name=definition.name,
        type=definition.type.value,
        ttl_s=definition.ttl_s,
        description=definition.description,
        version=definition.version,
    )
