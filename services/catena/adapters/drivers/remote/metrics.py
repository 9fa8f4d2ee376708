"""A remote engine's own metrics, in Prometheus's text form."""

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families


def figures(text: str) -> Mapping[str, float]:
    """Every sample by name, summed over its labels."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] += sample.value  # type: ignore[assignment]
    return found


def total(told: Iterable[Mapping[str, float]], name: str) -> int:
    """A figure over all servers; 0 where none tells it."""
    return int(sum(each.get(name, 0.0) for each in told))
