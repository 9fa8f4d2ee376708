"""The routes whose JSON is a room's own message, each with what it is for and a body that is accepted."""

from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.api.memory.v1 import memory_pb2, memory_pb2_grpc
from catena.gateway.handlers.passage import Way

PERSON = {"entity_type": "user", "entity_id": "u1"}
EXAMPLES: dict[str, Any] = {
    "/v1/pipelines": {
        "pipeline": {
            "name": "tidy",
            "steps": [{"name": "clean", "type": "preprocess", "config": {"operations": ["remove_html"]}}],
        }
    },
    "/v1/memory/documents": {"collection": "notes", "documents": [{"id": "a", "text": "Catena means chain."}]},
    "/v1/memory/delete": {"collection": "notes", "ids": ["a"]},
    "/v1/memory/search": {"collection": "notes", "query": "chain", "n_results": 3},
    "/v1/memory/sops": {"sop": {"name": "greet", "triggers": ["hello"], "steps": [{"action": "Greet back."}]}},
    "/v1/memory/sops/match": {"text": "hello there", "n_results": 1},
    "/v1/features": {"values": [{**PERSON, "feature": "age", "value": 41}]},
    "/v1/features/get": {**PERSON, "features": ["age"]},
    "/v1/features/batch": {"entity_type": "user", "entity_ids": ["u1"], "features": ["age"]},
    "/v1/features/definitions": {"definition": {"entity_type": "user", "name": "age", "type": "json"}},
    "/v1/features/groups": {"group": {"name": "profile", "entity_type": "user", "features": ["age"]}},
}
EXECUTOR = [
    ("PUT", "/v1/pipelines", "PutPipeline", "stores a pipeline under a new version"),
    ("GET", "/v1/pipelines", "ListPipelines", "lists pipelines"),
    ("GET", "/v1/pipelines/{name}", "GetPipeline", "one pipeline"),
    ("DELETE", "/v1/pipelines/{name}", "DeletePipeline", "removes a pipeline"),
    ("GET", "/v1/executions/{id}", "GetExecution", "the record of what ran"),
    ("GET", "/v1/runs/{id}", "GetRun", "where a background run stands"),
    ("DELETE", "/v1/runs/{id}", "CancelRun", "asks a background run to stop"),
]
MEMORY = [
    ("POST", "/v1/memory/documents", "PutDocuments", "stores documents"),
    ("POST", "/v1/memory/delete", "DeleteDocuments", "removes documents"),
    ("POST", "/v1/memory/search", "Search", "finds what is known"),
    ("PUT", "/v1/memory/sops", "PutSop", "stores a procedure"),
    ("POST", "/v1/memory/sops/match", "MatchSops", "procedures that a text calls for"),
]
FEATURES = [
    ("POST", "/v1/features", "Set", "sets values of an entity"),
    ("POST", "/v1/features/get", "Get", "values of an entity, now or as of a time"),
    ("POST", "/v1/features/batch", "BatchGet", "values of many entities"),
    ("PUT", "/v1/features/definitions", "PutDefinition", "says what a value is"),
    ("PUT", "/v1/features/groups", "PutGroup", "makes a vector of values"),
]


def ways(
    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub",
    memory: "memory_pb2_grpc.MemoryServiceAsyncStub",
    features: "features_pb2_grpc.FeaturesServiceAsyncStub",
) -> list[Way]:
    """Every way that is served."""
    rooms: list[tuple[Any, ServiceDescriptor, list[tuple[str, str, str, str]]]] = [
        (executor, executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"], EXECUTOR),
        (memory, memory_pb2.DESCRIPTOR.services_by_name["MemoryService"], MEMORY),
        (features, features_pb2.DESCRIPTOR.services_by_name["FeaturesService"], FEATURES),
    ]
    return [
        Way(
            verb=verb,
            path=path,
            request=GetMessageClass(service.methods_by_name[method].input_type),
            response=GetMessageClass(service.methods_by_name[method].output_type),
            call=getattr(stub, method),
            says=says,
            example=EXAMPLES.get(path),
        )
        for stub, service, table in rooms
        for verb, path, method, says in table
    ]
