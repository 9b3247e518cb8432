"""One page of metrics for all worker processes of a proxy, each with its number in a label.

Each worker's counters stay series of their own, so that they begin anew, as Prometheus expects it
of counters, when one is replaced; a sum over workers would fall instead, which reads as if all of
them had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

WORKER_LABEL: Final = "worker"


class _Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric: samples are name, labels and value."""

    name: str
    text: str
    kind: str
    samples: list[tuple[str, dict[str, str], float]]


def gathered(registry: CollectorRegistry) -> bytes:
    """What one worker counts, to be handed to another. O(series)."""
    return msgspec.msgpack.encode(
        [
            _Family(
                metric.name,
                metric.documentation,
                metric.type,
                [(sample.name, sample.labels, sample.value) for sample in metric.samples],
            )
            for metric in registry.collect()
        ]
    )


def joined(parts: Mapping[int, bytes]) -> bytes:
    """All workers' metrics in the text format. O(series).

    Args:
        parts: of each worker, by number; see `gathered`.
    """
    return generate_latest(_Joined(parts))


class _Joined(CollectorRegistry):
    def __init__(self, parts: Mapping[int, bytes]) -> None:
        super().__init__()
        self.register(_Parts(parts))


class _Parts(Collector):
    def __init__(self, parts: Mapping[int, bytes]) -> None:
        self._parts = parts

    def describe(self) -> list[Metric]:
        """Nothing: each is made for one page."""
        return []

    def collect(self) -> list[Metric]:
        """Families in the order in which they are met first."""
        workers = GaugeMetricFamily(
            "paceline_proxy_workers", "Worker processes whose figures are on this page."
        )
        workers.add_metric((), len(self._parts))
        families: dict[str, Metric] = {workers.name: workers}
        for index, part in sorted(self._parts.items()):
            for family in _families.decode(part):
                metric = families.get(family.name)
                if metric is None:
                    metric = families[family.name] = Metric(family.name, family.text, family.kind)
                for name, labels, value in family.samples:
                    metric.add_sample(name, {**labels, WORKER_LABEL: str(index)}, value)
        return list(families.values())


_families: Final = msgspec.msgpack.Decoder(list[_Family])
