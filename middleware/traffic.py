"""What clients get of their streams, by tenant and workload: when it begins, and how it goes on."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline.policies.series_bounds import SeriesBounds

FIRST_TOKEN_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
QUEUE_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
GAP_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Upper bounds of buckets, in seconds; a last one takes what is beyond."""
LABELS: Final = ("tenant", "workload")
DONE: Final = b"data: [DONE]\n\n"
EMPTY_CONTENT: Final = (b'"content":""', b'"content": ""', b'"content":null', b'"content": null')


class Histogram:
    """Counts of durations; a tenth of what `prometheus_client` takes to count one.

    Args:
        bounds: upper bounds of the buckets, seconds, ascending.

    Attributes:
        counts: of each bucket alone, the last one for what is beyond all bounds.
        total: seconds of all.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one. O(log buckets)."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Bounds and cumulative counts, as Prometheus wants them."""
        names = [str(bound) for bound in (*self.bounds, math.inf)]
        names[-1] = "+Inf"
        return list(zip(names, accumulate(self.counts), strict=True))


class Series:
    """What is counted of one tenant's workload."""

    __slots__ = ("first_token", "gaps", "in_flight", "queue", "waiting")

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = 0
        self.queue = Histogram(QUEUE_BOUNDS)
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS)
        self.gaps = Histogram(GAP_BOUNDS)


class StreamWatch:
    """Times one request: an `Exchange` tells it of each piece of a stream.

    Args:
        series: takes what is found.
        clock: monotonic seconds.
        began_at: when the request was there, by that clock; None for now.

    Attributes:
        queue_seconds: from then until an engine was asked, the first if there were several; None
            of a request that none was asked for.
        first_token_seconds: from the request to the first piece that says something; None of an
            answer that is not streamed.
        num_pieces: that said something.
    """

    __slots__ = (
        *("_began_at", "_clock", "_last_at", "_series"),
        *("first_token_seconds", "num_pieces", "queue_seconds"),
    )

    def __init__(
        self, series: Series, clock: Callable[[], float], began_at: float | None = None
    ) -> None:
        self.queue_seconds: float | None = None
        self.first_token_seconds: float | None = None
        self.num_pieces = 0
        self._series = series
        self._clock = clock
        self._began_at = clock() if began_at is None else began_at
        self._last_at = 0.0
        series.in_flight += 1
        series.waiting += 1

    def asked(self) -> None:
        """An engine is asked now; further ones after it change nothing."""
        if self.queue_seconds is None:
            self.queue_seconds = self._clock() - self._began_at
            self._series.queue.add(self.queue_seconds)

    def wrote(self, piece: bytes) -> None:
        """A piece of a stream has gone to the client. Half a microsecond after the first."""
        if piece == DONE:
            return
        now = self._clock()
        if self.first_token_seconds is None:
            if says_nothing(piece):
                return
            self.first_token_seconds = now - self._began_at
            self._series.first_token.add(self.first_token_seconds)
            self._series.waiting -= 1
        else:
            self._series.gaps.add(now - self._last_at)
        self._last_at = now
        self.num_pieces += 1

    def answered(self, body: bytes) -> None:
        """A whole answer has no first token."""

    def finish(self) -> None:
        """The request has ended, one way or another. Call it once."""
        self._series.in_flight -= 1
        if self.first_token_seconds is None:
            self._series.waiting -= 1


def says_nothing(piece: bytes) -> bool:
    """Whether a stream's piece comes before its first token.

    An opening that names the role, or one of the events with which Anthropic's and OpenAI's newer
    streams begin. O(piece).
    """
    if b"event: " in piece:
        return b"delta" not in piece
    is_one = piece.find(b"\n\n") == len(piece) - 2
    return is_one and b'"role"' in piece and any(each in piece for each in EMPTY_CONTENT)


class Traffic(Collector):
    """All series of a proxy. Used, and collected, on its event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._bounds = SeriesBounds()
        self._series: dict[tuple[str, str], Series] = {}

    def watch(self, tenant: str, workload: str, began_at: float | None = None) -> StreamWatch:
        """Time a request that was there at `began_at` (now, if None). O(1)."""
        labels = self._bounds.labels(tenant, workload)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Series()
        return StreamWatch(series, self._clock, began_at)

    def collect(self) -> Iterator[Metric]:
        """One reading. O(series)."""
        in_flight = GaugeMetricFamily(
            "paceline_proxy_generating", "Generations that are being answered.", labels=LABELS
        )
        waiting = GaugeMetricFamily(
            "paceline_proxy_waiting",
            "Of them, those of which nothing has come yet: queued, or their prompt is read.",
            labels=LABELS,
        )
        queue = HistogramMetricFamily(
            "paceline_proxy_queue_seconds",
            "From a request's arrival until an engine is asked: its work is named, limits are "
            "looked at.",
            labels=LABELS,
        )
        first = HistogramMetricFamily(
            "paceline_proxy_first_token_seconds",
            "From a streamed request's arrival to the first piece that says something.",
            labels=LABELS,
        )
        gaps = HistogramMetricFamily(
            "paceline_proxy_inter_token_seconds",
            "Between two pieces of a stream; a piece has all tokens of an engine's round.",
            labels=LABELS,
        )
        for labels, series in self._series.items():
            in_flight.add_metric(labels, series.in_flight)
            waiting.add_metric(labels, series.waiting)
            for family, histogram in (
                (queue, series.queue),
                (first, series.first_token),
                (gaps, series.gaps),
            ):
                family.add_metric(labels, histogram.buckets(), histogram.total)
        yield from (in_flight, waiting, queue, first, gaps)
