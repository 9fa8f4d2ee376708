"""The gauge `vllm:lora_requests_info`, by which gateways made for vLLM send requests where their adapter is."""

from collections.abc import Iterable, Mapping, Sequence

from catena.adapters.core.resident import Resident
from catena.adapters.core.serving import labels
from catena.kit.telemetry import gauge


class LoraGauge:
    """One series at a time: its value is when it was written, its labels what runs and what waits, by commas."""

    def __init__(self) -> None:
        """Find or make the metric; vLLM gives its name and labels."""
        text = "Running stats on lora requests."
        self._gauge = gauge(
            "", "vllm:lora_requests_info", text, ["max_lora", "waiting_lora_adapters", "running_lora_adapters"]
        )

    def mirror(
        self,
        residents: Iterable[Resident],
        names: Mapping[tuple[str, str], Sequence[str]],
        *,
        max_lora: int,
        now_s: float,
    ) -> None:
        """Write what requests use now, and what they wait for while it is loaded."""
        running: dict[str, None] = {}
        waiting: dict[str, None] = {}
        for resident in residents:
            if resident.users:
                told = waiting if resident.loading is not None else running
                told |= dict.fromkeys(labels(resident.model, resident.tenant, names))
        self._gauge.clear()
        self._gauge.labels(str(max_lora), ",".join(sorted(waiting)), ",".join(sorted(running))).set(now_s)
