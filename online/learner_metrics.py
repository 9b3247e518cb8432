"""The learner in Prometheus' terms, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline.online.idle_time import PHASES, Spell
from paceline.online.learner_notes import LearnerFigures


class LearnerCollector(Collector):
    """What one learner does.

    Args:
        group: whose drafter it trains; a label of everything.
        figures: of the learner.
        stats: numbers of its parts by name, as gauges ``paceline_learner_NAME``; names that end in
            ``_total`` are counters.
        spells: seconds by load, gate and phase (`IdleGate.stats`).
    """

    def __init__(
        self,
        group: str,
        figures: LearnerFigures,
        stats: Callable[[], Mapping[str, float]],
        spells: Callable[[], Mapping[Spell, float]] = dict,
    ) -> None:
        self._group = group
        self._figures = figures
        self._stats = stats
        self._spells = spells

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        figures, group = self._figures, self._group
        events = CounterMetricFamily(
            "paceline_learner_events", "What the learner has done.", labels=["group", "event"]
        )
        for event, count in figures.events.items():
            events.add_metric([group, event], count)
        yield events
        phase = GaugeMetricFamily(
            "paceline_learner_phase", "What it does now: 1.", labels=["group", "phase"]
        )
        for name in PHASES:
            phase.add_metric([group, name], float(figures.phase == name))
        yield phase
        yield self._time()
        yield self._longest()
        for name, text, value in (
            ("base_version", "Version that it trains from.", figures.base),
            ("progress", "Of the training, 0 to 1.", figures.progress),
            ("loss", "Of its last step.", figures.loss),
            (
                "longest_part_seconds",
                "Longest time in which the last training did not ask whether to wait.",
                figures.longest_part_seconds,
            ),
        ):
            gauge = GaugeMetricFamily(f"paceline_learner_{name}", text, labels=["group"])
            gauge.add_metric([group], float(value))
            yield gauge
        for name, number in self._stats().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            metric = family(
                f"paceline_learner_{name.removesuffix('_total')}",
                f"{name.removesuffix('_total').replace('_', ' ').capitalize()}.",
                labels=["group"],
            )
            metric.add_metric([group], float(number))
            yield metric

    def _longest(self) -> Metric:
        """Parts between two looks at the gate."""
        longest = GaugeMetricFamily(
            "paceline_learner_longest_seconds",
            "Longest part of each kind of work between two looks whether to wait, since the start: "
            "by the clock, and of the learner's own processor time.",
            labels=["group", "kind", "time"],
        )
        for kind, its in sorted(dict(self._figures.longest).items()):
            longest.add_metric([self._group, kind, "clock"], its.seconds)
            longest.add_metric([self._group, kind, "processor"], its.processor_seconds)
        return longest

    def _time(self) -> Metric:
        """What held for how long."""
        seconds = CounterMetricFamily(
            "paceline_learner_seconds",
            "Seconds by how loaded the engines were, whether the gate was open, and what it did.",
            labels=["group", "load", "gate", "phase"],
        )
        for (level, is_open, phase), spent in sorted(self._spells().items()):
            gate = "open" if is_open else "closed"
            seconds.add_metric([self._group, level, gate, phase], spent)
        return seconds
