"""The caches of a whole room, over gRPC."""

from pathlib import Path

import pytest

from catena.api.executor.v1 import executor_pb2 as pb
from catena.executor.app import caches
from catena.executor.config import CacheConfig, ExecutorConfig, SemanticConfig
from catena.kit.clock import ManualClock
from catena.kit.errors import Invalid
from catena.kit.serve import Caller, as_caller
from catena.kit.testing import eventually
from catena.plan.build import sequential
from tests.contract.executor.rooms import around, finished, house_at, request

LARGE = sequential("large")


async def test_equal_cold_questions_come_from_the_cache_free_of_charge(tmp_path: Path) -> None:
    async with around(tmp_path) as room:
        first = await finished(room.stub.Run(request(LARGE, temperature=0.0)))
        again = await finished(room.stub.Run(request(LARGE, temperature=0.0)))
        warm = await finished(room.stub.Run(request(LARGE)))
        with as_caller(Caller("other")):
            other = await finished(room.stub.Run(request(LARGE, temperature=0.0)))
        anew = await finished(room.stub.Run(request(LARGE, temperature=0.0, no_cache=True)))
    assert again.cached
    assert again.cost_usd == 0
    assert again.saved.cost_usd == first.cost_usd > 0
    assert again.saved.usage == first.usage
    assert again.saved.execution_id == first.execution_id
    assert not first.HasField("saved")
    assert again.choices == first.choices
    assert again.stages[0].resolved_model == first.stages[-1].resolved_model != ""
    assert again.execution_id != first.execution_id
    assert not any(end.cached for end in (first, warm, other, anew))


async def test_questions_that_mean_the_same_share_an_answer_where_a_threshold_is_set(
    tmp_path: Path, minilm: Path
) -> None:
    house = house_at(tmp_path, embedding=str(minilm))
    async with around(tmp_path, house=house, cache=CacheConfig(semantic=SemanticConfig(threshold=0.85))) as room:
        first = await finished(room.stub.Run(request(LARGE, "how do i reset my password")))
        alike = await finished(room.stub.Run(request(LARGE, "how can i reset my password")))
        other = await finished(room.stub.Run(request(LARGE, "how do i bake bread")))

        async def rate() -> dict[str, int]:
            told = (await room.stub.GetMetrics(pb.GetMetricsRequest(pipeline="sequential"))).pipelines
            return {stage.name: stage.calls for stage in told[0].stages} if told else {}

        async def counted() -> bool:
            return await rate() == {"cache": 1, "embed": 3, "main": 2}

        await eventually(counted, 30.0)
    assert alike.cached
    assert alike.choices == first.choices
    assert alike.saved.similarity > 0.85
    assert not other.cached


def test_a_semantic_threshold_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(Invalid, match="no cosine"):
        caches(ExecutorConfig(cache=CacheConfig(semantic=SemanticConfig(threshold=1.5))), ManualClock())
