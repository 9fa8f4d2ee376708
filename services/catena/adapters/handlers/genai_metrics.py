"""OpenTelemetry's metrics of a generative-AI server, under the names that Prometheus gives them."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from catena.kit import genai
from catena.kit.errors import CatenaError
from catena.kit.telemetry import histogram

# The conventions' own bucket bounds, in seconds.
REQUEST_S = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
OTHER = "_OTHER"
"""The conventions' word for what has no name of its own."""


class Request:
    """One request as it goes: `answers` run at once and write `tokens` in all; `first_s` is when the first came."""

    def __init__(self, now: Callable[[], float], answers: int) -> None:
        """Begin the clock."""
        self.began_s = now()
        self.first_s: float | None = None
        self.tokens = 0
        self.answers = answers
        self._now = now

    def wrote(self) -> None:
        """Something was written."""
        if self.first_s is None:
            self.first_s = self._now()


class ServerMetrics:
    """Times requests. Models are told by base alone: there may be thousands of adapters, and anybody may name any."""

    def __init__(self, bases: Collection[str], now: Callable[[], float]) -> None:
        """Find or make the metrics; `now` gives monotonic seconds."""
        self._bases = frozenset(bases)
        self._now = now
        self._whole = histogram(
            "",
            "gen_ai_server_request_duration_seconds",
            "From a request for generated text to its end",
            ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "error_type"],
            buckets=REQUEST_S,
        )
        self._first = histogram(
            "",
            "gen_ai_server_time_to_first_token_seconds",
            "From a request to the first token of its answer",
            ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"],
            buckets=FIRST_TOKEN_S,
        )
        self._each = histogram(
            "",
            "gen_ai_server_time_per_output_token_seconds",
            "For each token of an answer after the first",
            ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"],
            buckets=TOKEN_S,
        )

    @contextmanager
    def request(self, model: str, answers: int) -> Iterator[Request]:
        """Time a request; one that fails, or that its caller leaves, counts with its error and by duration alone."""
        request, error = Request(self._now, answers), OTHER
        base = model.partition("@")[0]
        labels = (genai.CHAT, genai.LOCAL_PROVIDER, base if base in self._bases else OTHER)
        try:
            yield request
            error = ""
        except CatenaError as failure:
            error = failure.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            error = "cancelled"
            raise
        finally:
            ended_s = self._now()
            self._whole.labels(*labels, error).observe(ended_s - request.began_s)
            if not error and request.first_s is not None:
                self._first.labels(*labels).observe(request.first_s - request.began_s)
                more = request.tokens / request.answers - 1
                if more > 0:
                    self._each.labels(*labels).observe((ended_s - request.first_s) / more)
