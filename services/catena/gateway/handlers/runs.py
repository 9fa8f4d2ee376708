"""Charges background runs: their cost is known when they end, long after the request that a key was admitted for."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2
from catena.gateway.handlers.asking import Asking
from catena.kit.errors import Missing
from catena.kit.event import Event

FINISHED = "executor.run.finished"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """`spend` writes down what a key spent, once an event; False where it did before."""

    asking: Asking
    spend: Callable[[str, str, float], Awaitable[bool]]

    async def hear(self, event: Event) -> None:
        """Charge the key that submitted the run, whether it came to a good end or not."""
        ended = events_pb2.RunFinished.FromString(event.data)
        if not ended.payer or not ended.execution_id:
            return
        try:
            wanted = executor_pb2.GetExecutionRequest(id=ended.execution_id)
            execution = (await self.asking.executor.GetExecution(wanted)).execution
        except Missing:
            log.warning("run not charged, its record is gone", run=ended.run_id, payer=ended.payer)
            return
        if await self.spend(event.id, ended.payer, execution.cost_usd):
            self.asking.settle(event.tenant, ended.payer, execution)
