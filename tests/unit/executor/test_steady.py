"""Embeddings and predictions of outside models: tried again, within rates, and left alone while they are down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from catena.executor.core.breaker import BreakerLimits
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import Usage
from catena.executor.core.ports import Prediction, Vectors
from catena.executor.core.routes import Routes
from catena.executor.core.steady import Care, SteadyEmbedding, SteadyPredictor
from catena.kit.clock import still_world
from catena.kit.errors import CatenaError, Exhausted, Invalid, Unavailable

FAR = Model(name="far", type="embedding", provider="openai")
AWAY = Unavailable("away", code="provider_gone")


@dataclass
class Flaky:
    """Fails with `errors` in turn, then does what is asked."""

    errors: list[CatenaError] = field(default_factory=list)
    calls: int = 0

    def _fail(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        self._fail()
        return Vectors(vectors=[[float(truncate), timeout_s] for _ in texts], usage=Usage(input_tokens=3))

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        self._fail()
        return Prediction(values=[dict(parameters) for _ in inputs], usage=Usage(input_tokens=3))


@dataclass
class Bench:
    """A world whose clock the pauses move."""

    pauses: list[float] = field(default_factory=list)
    failures: int = 5

    def __post_init__(self) -> None:
        self.world = still_world()
        self.routes = Routes(breaking=BreakerLimits(failures=self.failures))
        self.care = Care(routes=self.routes, attempts=2, world=self.world, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.world.clock.advance(seconds)  # type: ignore[attr-defined]


async def test_what_passes_is_tried_again_with_the_time_that_is_left() -> None:
    bench, inner = Bench(), Flaky([Exhausted("busy", code="provider_busy", retry_after_s=2.0)])
    found = await SteadyEmbedding(inner, bench.care).embed(FAR, ["a", "b"], 10.0, truncate=True)
    truncated, left_s = found.vectors[0]
    assert inner.calls == 2
    assert truncated == 1.0
    assert 7.5 < left_s <= 8.0
    assert sum(bench.pauses) >= 2.0


@pytest.mark.parametrize(
    ("error", "timeout_s", "calls"),
    [(Invalid("no"), 10.0, 1), (AWAY, 10.0, 2), (Exhausted("busy", retry_after_s=60.0), 10.0, 1)],
)
async def test_what_does_not_pass_in_time_or_after_all_attempts_is_raised(
    error: CatenaError, timeout_s: float, calls: int
) -> None:
    inner = Flaky([error, error, error])
    with pytest.raises(type(error)):
        await SteadyPredictor(inner, Bench().care).predict(FAR, ["a"], {}, timeout_s)
    assert inner.calls == calls


async def test_a_model_that_is_down_is_not_asked() -> None:
    bench, inner = Bench(failures=2), Flaky([AWAY] * 9)
    steady = SteadyPredictor(inner, bench.care)
    with pytest.raises(Unavailable, match="away"):
        await steady.predict(FAR, ["a"], {}, 10.0)
    with pytest.raises(Unavailable) as caught:
        await steady.predict(FAR, ["a"], {}, 0.5)
    assert caught.value.code == "circuit_open"
    assert inner.calls == 2


async def test_calls_keep_to_the_rate_and_parameters_pass() -> None:
    bench, inner = Bench(), Flaky()
    limited = Model(name="far", type="classification", provider="openai", requests_per_minute=6.0)
    steady = SteadyPredictor(inner, bench.care)
    for _ in range(2):
        told = await steady.predict(limited, ["a"], {"top": 1}, 30.0)
    assert told.values == [{"top": 1}]
    assert bench.pauses == [pytest.approx(10.0)]
    with pytest.raises(Exhausted) as caught:
        await steady.predict(limited, ["a"], {}, 5.0)
    assert caught.value.code == "upstream_rate"
    bench.world.clock.advance(10.0)  # type: ignore[attr-defined]
    await steady.predict(limited, ["a"], {}, 5.0)


async def test_local_models_are_asked_as_they_are() -> None:
    bench, inner = Bench(failures=1), Flaky([AWAY, AWAY, AWAY])
    local = Model(name="near", type="embedding")
    with pytest.raises(Unavailable, match="away"):
        await SteadyEmbedding(inner, bench.care).embed(local, ["a"], 10.0)
    assert bench.routes.known() == ()
