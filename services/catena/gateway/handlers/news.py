"""What the dashboard tells of jobs, adapters, promotions and experiments, from their events."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import json_format
from google.protobuf.message import Message

from catena.api.events.v1 import events_pb2
from catena.gateway.core.figures import Board
from catena.kit.event import Event


@dataclass(frozen=True, slots=True)
class News:
    """Puts events into the figures, old ones too; `lost` hears of losses by base, `decided` of experiments' ends.

    What ended before `since_s` was counted by whoever ran then.
    """

    figures: Board
    lost: Callable[[str, float], None]
    decided: Callable[[str], None]
    since_s: float
    KINDS: ClassVar[dict[str, type[Message]]] = {
        "trainer.job.started": events_pb2.JobStarted,
        "trainer.job.progressed": events_pb2.JobProgressed,
        "trainer.job.finished": events_pb2.JobFinished,
        "adapters.adapter.registered": events_pb2.AdapterRegistered,
        "adapters.adapter.aliased": events_pb2.AdapterAliased,
        "adapters.adapter.withdrawn": events_pb2.AdapterWithdrawn,
        "learner.dataset.ready": events_pb2.DatasetReady,
        "learner.promotion.decided": events_pb2.PromotionDecided,
        "router.experiment.decided": events_pb2.ExperimentDecided,
    }

    async def hear(self, event: Event) -> None:
        """Take one event in."""
        message = self.KINDS[event.type].FromString(event.data)
        self._train(event, message)
        if isinstance(message, events_pb2.ExperimentDecided) and event.time_s >= self.since_s:
            self.decided(message.state)
        if isinstance(message, events_pb2.JobProgressed):
            return
        details = json_format.MessageToDict(message, preserving_proto_field_name=True)
        self.figures.tell(event.tenant, event.time_s, event.type, details)

    def _train(self, event: Event, message: Message) -> None:
        for jobs in self.figures.jobs(event.tenant):
            match message:
                case events_pb2.JobStarted():
                    job = jobs.of(message.job_id)
                    job.adapter, job.base, job.state = message.adapter, message.base, "running"
                    job.started_s = job.started_s or event.time_s
                case events_pb2.JobProgressed():
                    job = jobs.of(message.job_id)
                    job.progressed(message.step, message.total_steps, message.loss)
                    if job.base:
                        self.lost(job.base, message.loss)
                case events_pb2.JobFinished():
                    job = jobs.of(message.job_id)
                    job.state, job.model, job.reason = message.state, message.model, message.reason
