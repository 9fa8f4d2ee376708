"""What the dashboard tells of jobs, adapters, promotions and experiments, from their events."""

from dataclasses import dataclass
from typing import ClassVar

from google.protobuf import json_format
from google.protobuf.message import Message

from catena.api.events.v1 import events_pb2
from catena.gateway.core.figures import Board
from catena.kit.event import Event


@dataclass(frozen=True, slots=True)
class News:
    """Puts events into the figures."""

    figures: Board
    KINDS: ClassVar[dict[str, type[Message]]] = {
        "trainer.job.started": events_pb2.JobStarted,
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
        details = json_format.MessageToDict(message, preserving_proto_field_name=True)
        self.figures.tell(event.tenant, event.time_s, event.type, details)
