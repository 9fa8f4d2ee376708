"""The list of models as OpenAI shows it."""

from dataclasses import dataclass
from typing import Any

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.gateway.core.choice import AUTO
from catena.gateway.handlers.lora_names import LoraNames, card


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """Reads the executor's catalogue, which includes the adapters."""

    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub"
    names: LoraNames

    async def all(self, tenant: str) -> list[dict[str, Any]]:
        """`auto`, every model by name that can be called, and plain names; an adapter carries `parent`."""
        catalogue = await self.executor.ListModels(executor_pb2.ListModelsRequest())
        callable_now = [m for m in catalogue.models if m.status != "disabled" and not m.problem]
        active = [model_json(model) for model in callable_now]
        plain = [card(lora) for _, lora in sorted((await self.names.of(tenant)).items())]
        auto = {"id": AUTO, "object": "model", "created": 0, "owned_by": "catena", "root": AUTO, "parent": None}
        return [auto, *active, *plain]


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
