import pytest

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.gateway.handlers.bill import answering

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("asked", ["base@mine", "base@mine:1", "base@mine:stable", "base@auto"])
def test_an_adapter_is_counted_by_its_version_whatever_it_was_asked_by(asked: str) -> None:
    stages = [
        types_pb2.StageResult(model=asked, resolved_model="base@mine:1#digest"),
        types_pb2.StageResult(model="other", resolved_model="other#digest"),
    ]
    assert answering(executor_pb2.Finished(model=asked, stages=stages), asked) == "base@mine:1"


def test_other_models_are_counted_by_the_name_of_the_catalogue() -> None:
    stages = [types_pb2.StageResult(model="gpt", resolved_model="gpt-2026-01-01")]
    assert answering(executor_pb2.Finished(stages=stages), "gpt") == "gpt"
    assert answering(executor_pb2.Finished(), "base@mine") == "base@mine"
