import math
import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.gateway.core.figures import MOST_NAMES, OTHER, Board, Figures, saved_percent
from catena.gateway.core.hour import Durations, Ended, Hour

NOW = 1_800_000_000.0
ONE = Ended(
    at_s=NOW,
    model="small",
    shape="cascade",
    agent_type="assistant",
    outcome="succeeded",
    duration_ms=10.0,
    cost_usd=0.1,
    baseline_usd=1.0,
    tokens=7,
)


def test_the_page_shows_as_many_requests_as_were_counted() -> None:
    figures = Figures()
    for number in range(5):
        figures.count(replace(ONE, at_s=NOW + number, outcome="failed" if number == 4 else "succeeded"))
    view = figures.view(NOW + 5)
    assert (view["requests"], view["failures"], view["tokens"]) == (5, 1, 35)
    assert view["by_model"] == view["models_30s"] == {"small": 4}
    assert view["success"] == [{"agent_type": "assistant", "hour": 8, "requests": 5, "success": 0.8}]


def test_wrong_requests_and_clients_that_go_are_no_failures() -> None:
    figures = Figures()
    figures.count(replace(ONE, model="", outcome="refused"))
    figures.count(replace(ONE, model="", outcome="cancelled"))
    view = figures.view(NOW)
    assert (view["requests"], view["failures"], view["refused"], view["cancelled"]) == (2, 0, 1, 1)
    assert view["by_model"] == view["models_30s"] == view["latency"] == {}
    assert view["success"] == []


def test_made_up_names_are_counted_as_one() -> None:
    figures = Figures()
    for number in range(MOST_NAMES + 9):
        figures.count(replace(ONE, model=f"base@{{a=0.{number}}}", agent_type=f"agent {number}", shape=f"s{number}"))
    view = figures.view(NOW)
    for counts in (view["by_model"], view["models_30s"], view["by_shape"]):
        assert (len(counts), counts[OTHER]) == (MOST_NAMES + 1, 9)
    assert len(view["success"]) == len(view["latency"]) == MOST_NAMES + 1


def test_a_tenant_sees_its_own_figures_and_everybodys_news() -> None:
    board = Board()
    board.count("acme", ONE)
    board.count("other", replace(ONE, cost_usd=9.0))
    for at_s, tenant in enumerate(("shared", "other", "acme")):
        board.tell(tenant, at_s, "job", {"of": tenant})
    view = board.view("acme", NOW)
    assert (view["requests"], view["cost_usd"]) == (1, 0.1)
    assert [item["of"] for item in view["news"]] == ["acme", "shared"]
    assert board.view("shared", NOW)["requests"] == 2
    assert board.view("new", NOW)["requests"] == 0


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
    figures.count(replace(ONE, duration_ms=9000.0, outcome="failed"))
    (point,) = figures.view(NOW)["latency"]["small"]
    assert (point["p50"], point["p99"]) == (pytest.approx(20.0, rel=0.01), pytest.approx(30.0, rel=0.01))


@given(st.lists(st.floats(min_value=0.01, max_value=1e7), min_size=1, max_size=300), st.floats(0.0, 1.0))
def test_quantiles_are_right_to_a_hundredth(durations: list[float], share: float) -> None:
    sketch = Durations()
    for ms in durations:
        sketch.add(ms)
    exact = sorted(durations)[min(len(durations) - 1, int(share * len(durations)))]
    assert sketch.quantile(share) == pytest.approx(exact, rel=0.01)


def test_an_hour_takes_no_more_memory_for_more_requests() -> None:
    def bytes_of(count: int) -> int:
        hour, rng = Hour(), random.Random(1)
        for number in range(count):
            took_ms = rng.lognormvariate(5.0, 0.5)
            hour.add(replace(ONE, at_s=NOW + 3600.0 * number / count, duration_ms=took_ms))
        return len(pickle.dumps(hour))

    assert bytes_of(40_000) < 3 * bytes_of(4_000)


def test_a_request_that_is_told_late_counts_for_its_own_minute() -> None:
    hour = Hour()
    for at_s in (NOW, NOW + 120.0, NOW + 30.0, NOW - 4000.0):
        hour.add(replace(ONE, at_s=at_s))
    assert [(minute.start_s - NOW, minute.asked.total()) for minute in hour.minutes(NOW + 120.0)] == [(0, 2), (120, 1)]


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
