"""The list of models as OpenAI shows it."""

from dataclasses import dataclass
from typing import Any

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.gateway.core.choice import AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """Reads the executor's catalogue, which includes the adapters."""

    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub"

    async def all(self) -> list[dict[str, Any]]:
        """`auto`, then every model by name that can be called; an adapter carries `parent`."""
        catalogue = await self.executor.ListModels(executor_pb2.ListModelsRequest())
        callable_now = [m for m in catalogue.models if m.status != "disabled" and not m.problem]
        active = [model_json(model) for model in callable_now]
        return [{"id": AUTO, "object": "model", "created": 0, "owned_by": "catena", "parent": None}, *active]


def model_json(model: executor_pb2.Model) -> dict[str, Any]:
    """One entry."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.provider or "local",
        "root": model.upstream_name or model.name,
        "parent": model.parent or None,
        "max_model_len": model.context_tokens or None,
        "pricing": {"input_usd_per_million": model.price_input, "output_usd_per_million": model.price_output},
    }
