"""Executions that began and whose end never reached the gateway, for the client left or a stage failed.

What they cost is what their records say; `asking` has them followed, once each.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.kit.caller import unhurried
from catena.kit.errors import CatenaError, Missing

RECORDED_WITHIN_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses between looks for a record: far longer than the executor's 50 ms, because it may be busy."""
OWED_WITHIN_S = (*RECORDED_WITHIN_S, 1.6, 3.2, 6.4, 12.8)
"""The same where nobody waits for the answer: models take a while to be stopped, an executor to come back."""
Settle = Callable[[executor_pb2.Execution | None], None]
log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Owing:
    """Follows executions on behalf of whoever calls."""

    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub"
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    def follow(self, execution_id: str, settle: Settle) -> None:
        """Hand the execution's record to `settle`, once; None where there is none in half a minute."""
        with unhurried():
            task = asyncio.create_task(self._follow(execution_id, settle), name="gateway owing")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self, within_s: float) -> None:
        """Wait for what is followed; what takes longer is settled without a record."""
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _follow(self, execution_id: str, settle: Settle) -> None:
        found = None
        try:
            found = await recorded(self.executor, execution_id, OWED_WITHIN_S, passing=CatenaError)
        except CatenaError as error:
            log.warning("execution not charged, its record did not come", execution=execution_id, error=error.message)
        finally:
            settle(found)


async def recorded(
    executor: "executor_pb2_grpc.ExecutorServiceAsyncStub",
    execution_id: str,
    pauses_s: Sequence[float],
    *,
    passing: type[CatenaError] = Missing,
) -> executor_pb2.Execution:
    """The record, which is written a moment after the execution ended; errors of kind `passing` are waited out.

    Raises Missing (`unknown_execution`) where it does not come.
    """
    wanted = executor_pb2.GetExecutionRequest(id=execution_id)
    for pause_s in pauses_s:
        try:
            return (await executor.GetExecution(wanted)).execution
        except passing:
            await asyncio.sleep(pause_s)
    return (await executor.GetExecution(wanted)).execution
