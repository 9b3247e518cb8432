"""What a replay counts, in a shape that adds up and can be kept on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

import msgspec

CALLS: Final = ("start", "propose", "commit", "finish")
NUM_BINS: Final = 10
TOKEN_COSTS: Final = (0.005, 0.02, 0.05)
BUCKETS_PER_DOUBLING: Final = 64
NS_PER_US: Final = 1000.0


class Timing(msgspec.Struct, kw_only=True):
    """Durations in logarithmic buckets, 64 a doubling: a quantile is right within about 1 %.

    Attributes:
        num_calls: calls timed.
        total_ns: their sum, exact.
        buckets: bucket number to calls in it.
    """

    num_calls: int = 0
    total_ns: int = 0
    buckets: dict[int, int] = msgspec.field(default_factory=dict)

    def add_durations(self, durations_ns: Iterable[int]) -> None:
        """Count each duration. O(n)."""
        for duration in durations_ns:
            bucket = int(math.log2(max(1, duration)) * BUCKETS_PER_DOUBLING)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
            self.num_calls += 1
            self.total_ns += duration

    def merge(self, other: Self) -> None:
        """Add the other's calls."""
        self.num_calls += other.num_calls
        self.total_ns += other.total_ns
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    @property
    def mean_us(self) -> float:
        """Mean in microseconds, NaN without calls."""
        return self.total_ns / self.num_calls / NS_PER_US if self.num_calls else math.nan

    def quantile_us(self, share: float) -> float:
        """The duration that `share` of the calls do not exceed, in microseconds."""
        wanted = share * self.num_calls
        passed = 0
        for bucket in sorted(self.buckets):
            passed += self.buckets[bucket]
            if passed >= wanted:
                return float(2 ** ((bucket + 0.5) / BUCKETS_PER_DOUBLING) / NS_PER_US)
        return math.nan


class Reliability(msgspec.Struct, kw_only=True):
    """Predicted and observed acceptance in ten bins of equal width.

    Only nodes whose parent was accepted are counted, for only theirs was put to the test.

    Attributes:
        num_nodes: nodes of each bin.
        predicted: sum of their predicted probabilities.
        accepted: how many of them were accepted.
    """

    num_nodes: list[int] = msgspec.field(default_factory=lambda: [0] * NUM_BINS)
    predicted: list[float] = msgspec.field(default_factory=lambda: [0.0] * NUM_BINS)
    accepted: list[int] = msgspec.field(default_factory=lambda: [0] * NUM_BINS)

    def add(self, probability: float, *, accepted: bool) -> None:
        """Count one node; a probability of 1 belongs to the last bin."""
        index = min(int(probability * NUM_BINS), NUM_BINS - 1)
        self.num_nodes[index] += 1
        self.predicted[index] += probability
        self.accepted[index] += accepted

    def merge(self, other: Self) -> None:
        """Add the other's nodes."""
        self.num_nodes = _sums(self.num_nodes, other.num_nodes)
        self.accepted = _sums(self.accepted, other.accepted)
        self.predicted = [a + b for a, b in zip(self.predicted, other.predicted, strict=True)]

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean |predicted - observed| over bins, weighted by nodes.

        NaN without nodes.
        """
        total = sum(self.num_nodes)
        gaps = (abs(p - a) for p, a in zip(self.predicted, self.accepted, strict=True))
        return sum(gaps) / total if total else math.nan


class Counts(msgspec.Struct, kw_only=True):
    """Totals over some requests.

    Attributes:
        requests: requests replayed.
        output_tokens: tokens of their replies.
        committed: tokens committed by decode steps: all but each reply's first.
        steps: decode steps.
        drafted: tokens verified.
        accepted: drafted tokens that were accepted.
        passes: forward passes of a model that drafts.
        timings: name of the drafter's call to how long it took.
        reliability: how right the drafter's probabilities were.
    """

    requests: int = 0
    output_tokens: int = 0
    committed: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    timings: dict[str, Timing] = msgspec.field(
        default_factory=lambda: {call: Timing() for call in CALLS}
    )
    reliability: Reliability = msgspec.field(default_factory=Reliability)

    def merge(self, other: Self) -> None:
        """Add the other's totals."""
        self.requests += other.requests
        self.output_tokens += other.output_tokens
        self.committed += other.committed
        self.steps += other.steps
        self.drafted += other.drafted
        self.accepted += other.accepted
        self.passes += other.passes
        for call, timing in other.timings.items():
            self.timings[call].merge(timing)
        self.reliability.merge(other.reliability)

    def quality(self, pass_cost: float = 0.0) -> dict[str, float]:
        """Tokens/step, drafted/step, acceptance, modelled speedups, calibration error.

        Sums first, then ratios; NaN where there was nothing to measure.

        Args:
            pass_cost: of a drafting model's forward pass, in passes of the target.
        """
        tokens_per_step = _ratio(self.committed, self.steps)
        drafted_per_step = _ratio(self.drafted, self.steps)
        passes_per_step = _ratio(self.passes, self.steps)
        return {
            "tokens_per_step": tokens_per_step,
            "drafted_per_step": drafted_per_step,
            "acceptance": _ratio(self.accepted, self.drafted),
            "passes_per_step": passes_per_step,
            **{
                f"speedup_at_{cost}": tokens_per_step
                / (1 + cost * drafted_per_step + pass_cost * passes_per_step)
                for cost in TOKEN_COSTS
            },
            "calibration_error": self.reliability.expected_error,
        }

    def durations(self) -> dict[str, float]:
        """Mean, median and 99th percentile of each call, in microseconds."""
        figures = {}
        for call, timing in self.timings.items():
            figures[f"{call}_mean_us"] = timing.mean_us
            figures[f"{call}_p50_us"] = timing.quantile_us(0.5)
            figures[f"{call}_p99_us"] = timing.quantile_us(0.99)
        return figures


def mean_of_each(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Unweighted mean of every figure by itself; a source that has none of it is left out."""
    means = {}
    for name in dict.fromkeys(name for one in figures for name in one):
        values = [one[name] for one in figures if name in one and not math.isnan(one[name])]
        means[name] = sum(values) / len(values) if values else math.nan
    return means


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _sums(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
