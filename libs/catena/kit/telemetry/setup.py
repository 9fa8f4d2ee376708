"""What each `__main__` does first: logs, traces and metrics for the process."""

from types import TracebackType

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from prometheus_client import REGISTRY, CollectorRegistry

from catena.kit.config import House
from catena.kit.telemetry.logs import configure
from catena.kit.telemetry.spans import Current, Tracers
from catena.kit.telemetry.traces import FileExporter

EXPORT_EVERY_MS = 500


class Telemetry:
    """A process's telemetry until `close`; also a context manager."""

    def __init__(self, process: str, exporter: SpanExporter, *, sample: float) -> None:
        """Record the share `sample` of new traces, and what arrives sampled, to `exporter`."""
        self.registry: CollectorRegistry = REGISTRY
        self._processor = BatchSpanProcessor(
            exporter, max_queue_size=16384, schedule_delay_millis=EXPORT_EVERY_MS, max_export_batch_size=512
        )
        self._before = Current.tracers
        Current.tracers = Tracers(process, ParentBasedTraceIdRatio(sample), self._processor)

    def flush(self) -> None:
        """Write every span that has ended; blocks while it does."""
        self._processor.force_flush()

    def close(self) -> None:
        """Flush, and record nothing more."""
        Current.tracers = self._before
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def setup(room: str, house: House) -> Telemetry:
    """Configure logs and start tracing for a process named `room` (`router`, `allinone`); once a process.

    Spans go to `telemetry.otlp_endpoint` (gRPC) when the house names one, else to files under `home/traces`.
    """
    configure(room, house.log_level)
    return Telemetry(room, _exporter(room, house), sample=house.telemetry.sample)


def _exporter(room: str, house: House) -> SpanExporter:
    endpoint = house.telemetry.otlp_endpoint
    if not endpoint:
        return FileExporter(house.folder("traces"), room)
    # Imported when needed: it takes a quarter of a second.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
