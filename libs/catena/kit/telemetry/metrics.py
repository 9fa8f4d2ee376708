"""Prometheus metrics named `catena_<room>_<noun>_<unit>`; asking twice for one gives the same one."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from catena.kit.errors import Invalid

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
UNBOUNDED = frozenset({"tenant", "id", "user", "key", "prompt", "digest"})

Kind = TypeVar("Kind", bound=MetricWrapperBase)
_made: WeakKeyDictionary[CollectorRegistry, dict[str, MetricWrapperBase]] = WeakKeyDictionary()


def counter(
    room: str, noun: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry = REGISTRY
) -> Counter:
    """A count that only grows, `catena_<room>_<noun>`; `noun` ends in its unit or `_total`.

    An empty `room` leaves the name as given, for names that dashboards elsewhere already know (`alora_...`).
    Raises Invalid for a label without bound (a tenant, an id), or when the name is taken by another kind of metric.
    """
    name, known = _find(room, noun, labels, registry, Counter)
    return known or _keep(name, registry, Counter(name, text, labels, registry=registry))


def gauge(
    room: str, noun: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry = REGISTRY
) -> Gauge:
    """A value that goes up and down; otherwise as `counter`."""
    name, known = _find(room, noun, labels, registry, Gauge)
    return known or _keep(name, registry, Gauge(name, text, labels, registry=registry))


def histogram(
    room: str,
    noun: str,
    text: str,
    labels: Sequence[str] = (),
    *,
    buckets: Sequence[float] = SECONDS,
    registry: CollectorRegistry = REGISTRY,
) -> Histogram:
    """A distribution over `buckets` (upper bounds, in the noun's unit); otherwise as `counter`."""
    name, known = _find(room, noun, labels, registry, Histogram)
    return known or _keep(name, registry, Histogram(name, text, labels, registry=registry, buckets=buckets))


def by_labels(metric: Kind) -> Callable[..., Kind]:
    """`metric.labels`, which looks up the values that it has seen lately a good deal faster."""
    return functools.lru_cache(maxsize=1024)(metric.labels)


def _find(
    room: str, noun: str, labels: Sequence[str], registry: CollectorRegistry, kind: type[Kind]
) -> tuple[str, Kind | None]:
    name = f"catena_{room}_{noun}" if room else noun
    for label in labels:
        if label in UNBOUNDED or label.endswith(("_id", "_key")):
            raise Invalid(f"label {label!r} of metric {name} has no bound; put it in a span or a log", code="bad_label")
    known = _made.get(registry, {}).get(name)
    if known is not None and not isinstance(known, kind):
        raise Invalid(f"metric {name} is a {type(known).__name__}, not a {kind.__name__}", code="bad_metric")
    return name, known


def _keep(name: str, registry: CollectorRegistry, metric: Kind) -> Kind:
    _made.setdefault(registry, {})[name] = metric
    return metric
