"""Where the learner's parts meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceStub
from catena.api.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from catena.api.learner.v1.learner_pb2_grpc import add_LearnerServiceServicer_to_server
from catena.api.router.v1.router_pb2_grpc import RouterServiceStub
from catena.api.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from catena.kit.chassis import open_chassis
from catena.kit.clock import World
from catena.kit.config import House
from catena.learner.config import LearnerConfig
from catena.learner.core.learner import Learner, Rooms, Rules
from catena.learner.drivers.library import METADATA, SqlLibrary
from catena.learner.drivers.rooms import AdapterRegistry, ExecutorRecords, RouterDesk, TrainerJobs
from catena.learner.handlers.events import COLLECTED, DATASET, EXECUTED, JOB, VERDICT, Hearing
from catena.learner.handlers.service import LearnerHandlers

SERVICE = "catena.api.learner.v1.LearnerService"


@asynccontextmanager
async def open_learner(house: House, config: LearnerConfig, world: World) -> AsyncIterator[None]:
    """Serve LearnerService and move the loop on by events until the block ends."""
    async with open_chassis("learner", house, world, metadata=METADATA) as chassis:
        rooms = Rooms(
            executions=ExecutorRecords(ExecutorServiceStub(await chassis.dial("executor"))),
            training=TrainerJobs(TrainerServiceStub(await chassis.dial("trainer")), config, dearest_base(house)),
            routing=RouterDesk(RouterServiceStub(await chassis.dial("router")), config),
            registry=AdapterRegistry(AdaptersServiceStub(await chassis.dial("adapters"))),
        )
        rules = Rules(
            threshold=config.threshold,
            capsule_threshold=config.capsule_threshold,
            min_corrections=config.min_corrections,
            good_score=config.good_score,
            verifiers=tuple(config.verifiers),
            capsule_score=config.capsule_score,
        )
        learner = Learner(SqlLibrary(chassis.store, chassis.outbox, world), rooms, rules, world)
        hearing = Hearing(learner)
        chassis.consume("learner-feedback", [COLLECTED], hearing.feedback)
        chassis.consume_together("learner-executions", [EXECUTED], hearing.executions)
        chassis.consume("learner-steps", [DATASET, JOB, VERDICT], hearing.step)
        handlers = LearnerHandlers(learner)
        async with chassis.serve(
            lambda server: add_LearnerServiceServicer_to_server(handlers, server), names=[SERVICE]
        ):
            yield


def dearest_base(house: House) -> str:
    """The local model with the highest price, which is worth adapting most; empty where there is none."""
    local = [model for model in house.models if model.provider == "local" and model.path and model.type == "chat"]
    return max(local, key=lambda model: model.price.output).name if local else ""
