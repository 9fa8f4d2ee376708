"""The executor's catalogue, as the router reckons with it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from catena.api.executor.v1.executor_pb2 import ListModelsRequest
from catena.kit.caller import Caller, as_caller, within
from catena.kit.config import ModelConfig
from catena.router.core.catalogue import ModelCard

if TYPE_CHECKING:
    from catena.api.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

_PATIENCE_S = 2.0


class ExecutorModels:
    """`FetchModels` over the executor."""

    def __init__(self, executor: "ExecutorServiceAsyncStub") -> None:
        """Ask this executor."""
        self._executor = executor

    async def __call__(self, tenant: str) -> Sequence[ModelCard]:
        """What the tenant may call. Raises Unavailable or Late when the executor does not answer in two seconds."""
        with as_caller(Caller(tenant)), within(_PATIENCE_S):
            told = await self._executor.ListModels(ListModelsRequest())
        return [
            ModelCard(
                name=model.name,
                price_input=model.price_input,
                price_output=model.price_output,
                type=model.type or "chat",
                parent=model.parent,
                active=model.status in ("", "active") and not model.problem,
                problem=model.problem,
            )
            for model in told.models
        ]


def configured_models(models: Iterable[ModelConfig]) -> list[ModelCard]:
    """The models of the configuration: what is reckoned with until the executor answers."""
    return [
        ModelCard(name=model.name, price_input=model.price.input, price_output=model.price.output, type=model.type)
        for model in models
    ]
