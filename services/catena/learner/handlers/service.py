"""LearnerService: proto in, core call, proto out."""

from typing import Any

from catena.api.learner.v1 import learner_pb2, learner_pb2_grpc
from catena.kit.caller import caller
from catena.learner.core.learner import Capsule, Learner
from catena.learner.core.records import Dataset, Feedback, Promotion


class LearnerHandlers(learner_pb2_grpc.LearnerServiceServicer):
    """The RPCs."""

    def __init__(self, learner: Learner) -> None:
        """Answer from `learner`."""
        self._learner = learner

    async def RecordFeedback(
        self, request: learner_pb2.RecordFeedbackRequest, context: Any
    ) -> learner_pb2.RecordFeedbackResponse:
        """Take feedback; returns once committed."""
        told = request.feedback
        feedback = Feedback(
            id="",
            execution_id=told.execution_id,
            score=told.score if told.HasField("score") else None,
            correction=told.correction,
            comment=told.comment,
            prompt=told.prompt,
            task=told.task,
            request_id=told.request_id,
        )
        return learner_pb2.RecordFeedbackResponse(id=await self._learner.record(caller().tenant, feedback, told.thumbs))

    async def PutCapsules(
        self, request: learner_pb2.PutCapsulesRequest, context: Any
    ) -> learner_pb2.PutCapsulesResponse:
        """Take capsules; returns once committed."""
        capsules = [
            Capsule(
                id=capsule.id,
                stack=tuple(capsule.tech_stack),
                score=capsule.validation_score,
                tasks=tuple((task.prompt, task.context, task.output) for task in capsule.tasks),
            )
            for capsule in request.capsules
        ]
        accepted, refused = await self._learner.take(caller().tenant, capsules)
        return learner_pb2.PutCapsulesResponse(accepted=accepted, refused=refused)

    async def ListDatasets(
        self, request: learner_pb2.ListDatasetsRequest, context: Any
    ) -> learner_pb2.ListDatasetsResponse:
        """The tenant's data sets."""
        found = await self._learner.datasets(caller().tenant)
        return learner_pb2.ListDatasetsResponse(datasets=[dataset_to(dataset) for dataset in found])

    async def GetPromotion(
        self, request: learner_pb2.GetPromotionRequest, context: Any
    ) -> learner_pb2.GetPromotionResponse:
        """One promotion."""
        found = await self._learner.get(caller().tenant, request.id)
        return learner_pb2.GetPromotionResponse(promotion=promotion_to(found))

    async def ListPromotions(
        self, request: learner_pb2.ListPromotionsRequest, context: Any
    ) -> learner_pb2.ListPromotionsResponse:
        """The tenant's promotions."""
        found = await self._learner.promotions(caller().tenant, request.state)
        return learner_pb2.ListPromotionsResponse(promotions=[promotion_to(promotion) for promotion in found])

    async def Promote(self, request: learner_pb2.PromoteRequest, context: Any) -> learner_pb2.PromoteResponse:
        """Promote without waiting for the canary."""
        moved = await self._learner.promote(caller().tenant, request.id, request.reason)
        return learner_pb2.PromoteResponse(promotion=promotion_to(moved))

    async def RollBack(self, request: learner_pb2.RollBackRequest, context: Any) -> learner_pb2.RollBackResponse:
        """Put the former version back."""
        moved = await self._learner.roll_back(caller().tenant, request.id, request.reason)
        return learner_pb2.RollBackResponse(promotion=promotion_to(moved))


def dataset_to(dataset: Dataset) -> learner_pb2.Dataset:
    """A data set as a message."""
    return learner_pb2.Dataset(
        id=dataset.id,
        task=dataset.task,
        rows=dataset.rows,
        threshold=dataset.threshold,
        state="training" if dataset.state == "ready" else dataset.state,
        job_id=dataset.job_id,
        created_s=dataset.created_s,
    )


def promotion_to(promotion: Promotion) -> learner_pb2.Promotion:
    """A promotion as a message."""
    return learner_pb2.Promotion(
        id=promotion.id,
        candidate=promotion.candidate,
        incumbent=promotion.incumbent,
        domain=promotion.domain,
        state=promotion.state,
        experiment_id=promotion.experiment_id,
        job_id=promotion.job_id,
        reason=promotion.reason,
        metrics=dict(promotion.metrics),
        created_s=promotion.created_s,
        updated_s=promotion.updated_s,
    )
