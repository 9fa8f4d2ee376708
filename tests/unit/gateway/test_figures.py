import math
from dataclasses import replace

import pytest

from catena.gateway.core.figures import Ended, Figures, saved_percent

NOW = 1_800_000_000.0
ONE = Ended(
    at_s=NOW,
    model="small",
    shape="cascade",
    agent_type="assistant",
    ok=True,
    duration_ms=10.0,
    cost_usd=0.1,
    baseline_usd=1.0,
    tokens=7,
)


def test_the_page_shows_as_many_requests_as_were_counted() -> None:
    figures = Figures()
    for number in range(5):
        figures.count(replace(ONE, at_s=NOW + number, ok=number != 4))
    view = figures.view(NOW + 5)
    assert (view["requests"], view["failures"], view["tokens"]) == (5, 1, 35)
    assert view["by_model"] == {"small": 5}
    assert view["models_30s"] == {"small": 5}
    assert view["success"] == [{"agent_type": "assistant", "hour": 8, "requests": 5, "success": 0.8}]


def test_the_pie_forgets_after_thirty_seconds_and_the_series_after_an_hour() -> None:
    figures = Figures()
    figures.count(ONE)
    assert figures.view(NOW + 31)["models_30s"] == {}
    assert figures.view(NOW + 3700)["latency"] == {}
    assert figures.view(NOW + 3700)["requests"] == 1


def test_latency_quantiles_leave_failures_out() -> None:
    figures = Figures()
    for duration in (10.0, 20.0, 30.0):
        figures.count(replace(ONE, duration_ms=duration))
    figures.count(replace(ONE, duration_ms=9000.0, ok=False))
    (point,) = figures.view(NOW)["latency"]["small"]
    assert (point["p50"], point["p99"]) == (20.0, 30.0)


def test_what_was_saved_is_told_for_the_last_hour_and_for_all() -> None:
    figures = Figures()
    figures.count(ONE)
    figures.count(replace(ONE, at_s=NOW + 3000, cost_usd=2.0))
    assert figures.saved_usd(NOW + 3000, 3600.0) == pytest.approx(0.9 - 1.0)
    assert figures.saved_usd(NOW + 4000, 3600.0) == pytest.approx(-1.0)
    assert figures.saved_usd(NOW + 90_000, 3600.0) == 0.0
    assert figures.saved_usd(NOW + 90_000, math.inf) == pytest.approx(-0.1)


def test_savings_lie_between_nothing_and_all() -> None:
    assert saved_percent(0.1, 1.0) == 90.0
    assert saved_percent(2.0, 1.0) == 0.0
    assert saved_percent(0.0, 0.0) == 0.0
