"""The dashboard's figures for Prometheus: some worked out whenever it asks, some counted as they happen."""

from collections.abc import Collection
from functools import partial

from catena.gateway.core.figures import OTHER, Figures
from catena.gateway.core.hour import HOUR_S, Ended
from catena.kit.clock import Clock
from catena.kit.telemetry import by_labels, counter, gauge, histogram

WINDOWS_S = {"1h": HOUR_S, "total": float("inf")}
"""`time_window`: the sliding hour that the dashboard keeps, and since this gateway started."""


def export(figures: Figures, clock: Clock) -> None:
    """Show what `figures` count; negative where more was spent than the baseline model would have cost."""
    text = "USD less than the baseline model would have cost"
    savings = gauge("gateway", "cost_savings_usd", text, ["time_window"])
    alora = gauge("", "alora_cost_savings_usd", text, ["time_window"])
    percent = gauge("gateway", "cost_saved_percent", "Per cent less than the baseline model would have cost")

    def saved_usd(window_s: float) -> float:
        return figures.saved_usd(clock.now(), window_s)

    for window, window_s in WINDOWS_S.items():
        for metric in (savings, alora):
            metric.labels(window).set_function(partial(saved_usd, window_s))
    percent.set_function(lambda: figures.saved_percent)


class Exported:
    """What is counted as it happens. Of those who ask, `agent_types` are told apart; all others are `other`."""

    def __init__(self, agent_types: Collection[str]) -> None:
        """Make the metrics."""
        self._agent_types = frozenset(agent_types)
        requests = counter("gateway", "requests_total", "Requests that ended", ["model_type", "agent_type", "outcome"])
        seconds = histogram("gateway", "request_seconds", "Duration of answers", ["model_type"])
        self._requests, self._seconds = by_labels(requests), by_labels(seconds)
        self._loss = gauge("gateway", "training_loss", "Loss that the newest job on a base told last", ["base"])
        self._experiments = counter("gateway", "experiments_total", "Experiments that were decided", ["state"])

    def ended(self, one: Ended) -> None:
        """A request ended."""
        who = one.agent_type if one.agent_type in self._agent_types else OTHER
        self._requests(one.kind, who, one.outcome).inc()
        if one.outcome == "succeeded":
            self._seconds(one.kind).observe(one.duration_ms / 1000)

    def lost(self, base: str, loss: float) -> None:
        """A job told its loss."""
        self._loss.labels(base).set(loss)

    def decided(self, state: str) -> None:
        """An experiment ended."""
        self._experiments.labels(state).inc()
