"""The dashboard's figures for Prometheus, worked out whenever it asks."""

from functools import partial

from catena.gateway.core.figures import HOUR_S, Figures
from catena.kit.clock import Clock
from catena.kit.telemetry import gauge

WINDOWS_S = {"1h": HOUR_S, "total": float("inf")}
"""`time_window`: the sliding hour that the dashboard keeps, and since this gateway started."""


def export(figures: Figures, clock: Clock) -> None:
    """Show what `figures` count; negative where more was spent than the baseline model would have cost."""
    text = "USD less than the baseline model would have cost"
    savings = gauge("gateway", "cost_savings_usd", text, ["time_window"])
    alora = gauge("", "alora_cost_savings_usd", text, ["time_window"])

    def saved_usd(window_s: float) -> float:
        return figures.saved_usd(clock.now(), window_s)

    for window, window_s in WINDOWS_S.items():
        for metric in (savings, alora):
            metric.labels(window).set_function(partial(saved_usd, window_s))
