"""From timings and steps to figures: flat names, medians over episodes, ratios between variants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final

import numpy as np

from paceline.benchmarks.engine.records import RequestTiming, Step, UnitResult, Variant

NAN: Final = float("nan")
PEERS: Final[Mapping[Variant, tuple[Variant, ...]]] = {
    "paceline": ("off", "ngram", "suffix"),
    "paceline-fused": ("off", "paceline"),
    "embedded": ("embedded-off",),
    "embedded-tree": ("embedded-off", "embedded"),
    "embedded-drafter": ("embedded-off",),
    "embedded-drafter-tree": ("embedded-off",),
    "embedded-fused": ("embedded-off", "embedded"),
    "embedded-fused-tree": ("embedded-off", "embedded"),
}
MACRO: Final = (
    "tokens_per_step",
    "drafted_per_step",
    "acceptance",
    "drafting_share",
    "ratio_to_off",
    "ratio_to_ngram",
    "ratio_to_suffix",
    "decode_ratio_to_off",
    "decode_ratio_to_ngram",
    "decode_ratio_to_suffix",
    "ratio_to_paceline",
    "decode_ratio_to_paceline",
    "ratio_to_embedded-off",
    "decode_ratio_to_embedded-off",
    "ratio_to_embedded",
    "decode_ratio_to_embedded",
)
"""Figures that are averaged over the sources, each source counting the same."""


def figures(results: Iterable[UnitResult]) -> dict[str, float]:
    """Flat figures of a run.

    Names are ``source.load.variant.figure``; ``macro.load.variant.figure`` is the unweighted mean
    over sources; ``rounds.load.variant.tokens.ms`` is the median time of a round that verified
    `tokens` tokens and read no prompt, and ``.steps`` how many there were.
    """
    flat: dict[str, float] = {}
    groups: dict[tuple[str, str], dict[Variant, UnitResult]] = defaultdict(dict)
    for result in results:
        groups[result.source, result.load.label][result.variant] = result
    for (source, load), by_variant in groups.items():
        for variant, result in by_variant.items():
            values = _timing_figures(result.timings) | _step_figures(result.steps)
            for peer in PEERS.get(variant, ()):
                if peer in by_variant:
                    values |= _comparison(result.timings, by_variant[peer].timings, peer)
            flat |= {f"{source}.{load}.{variant}.{name}": v for name, v in values.items()}
    return flat | _macro(flat) | _rounds(groups)


def episode_speed(
    timings: Sequence[RequestTiming], *, decode: bool = False, without_loops: bool = False
) -> dict[str, float]:
    """Tokens per second of each episode, over the time its requests took; NaN without any.

    Args:
        timings: of one unit.
        decode: leave the first token of each reply and the time to it out.
        without_loops: leave replies out that repeat themselves.
    """
    tokens: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for timing in timings:
        kept = not (without_loops and timing.loops)
        tokens[timing.episode_id] += kept * (timing.num_output - decode)
        spent = timing.total_seconds - decode * timing.first_token_seconds
        seconds[timing.episode_id] += kept * spent
    return {name: tokens[name] / seconds[name] if seconds[name] else NAN for name in tokens}


def inter_token_seconds(timings: Iterable[RequestTiming]) -> np.ndarray:
    """Time between a reply's tokens, float64 (tokens after the first piece of each reply,).

    Tokens that come together share the wait for them evenly.
    """
    gaps: list[float] = []
    for timing in timings:
        for (before, now), size in zip(
            pairwise(timing.chunk_times), timing.chunk_tokens[1:], strict=True
        ):
            gaps.extend([(now - before) / size] * size)
    return np.array(gaps)


def bucket(num_tokens: int) -> str:
    """The power-of-two range that a number of tokens lies in: 1, 2, 3-4, 5-8 and so on."""
    high = 1 << max(0, num_tokens - 1).bit_length()
    low = high // 2 + 1
    return str(high) if low >= high else f"{low}-{high}"


def _timing_figures(timings: Sequence[RequestTiming]) -> dict[str, float]:
    speeds = episode_speed(timings)
    output = sum(t.num_output for t in timings)
    span = max(t.chunk_times[-1] for t in timings) - min(t.due for t in timings)
    first = np.array([t.first_token_seconds for t in timings])
    gaps = inter_token_seconds(timings)
    return {
        "episodes": len(speeds),
        "requests": len(timings),
        "looping_requests": sum(t.loops for t in timings),
        "prompt_tokens": sum(t.num_prompt for t in timings),
        "output_tokens": output,
        "exact_replies": len(timings),
        "tokens_per_second": output / span,
        "episode_tokens_per_second": _median(speeds.values()),
        "episode_tokens_per_second_not_looping": _median(
            episode_speed(timings, without_loops=True).values()
        ),
        "decode_tokens_per_second": _median(episode_speed(timings, decode=True).values()),
        "ttft_p50_ms": _quantile(first, 0.5) * 1e3,
        "ttft_p99_ms": _quantile(first, 0.99) * 1e3,
        "inter_token_p50_ms": _quantile(gaps, 0.5) * 1e3,
        "inter_token_p99_ms": _quantile(gaps, 0.99) * 1e3,
    }


def _step_figures(steps: Sequence[Step]) -> dict[str, float]:
    turns = sum(s.num_decoding for s in steps)
    drafted = sum(s.num_drafted for s in steps)
    decoding = [s for s in steps if not s.num_prefill]
    drafts = np.array([s.draft_seconds for s in steps])
    busy = sum(s.round_seconds for s in steps)
    return {
        "steps": len(steps),
        "tokens_per_step": _ratio(sum(s.num_decoded for s in steps), turns),
        "drafted_per_step": _ratio(drafted, turns),
        "acceptance": _ratio(sum(s.num_accepted for s in steps), drafted),
        "requests_per_step": _ratio(sum(s.num_requests * s.round_seconds for s in steps), busy),
        "step_ms": _median(s.round_seconds for s in decoding) * 1e3,
        "prefilled_tokens": sum(s.num_prefill for s in steps),
        "prefill_share": _ratio(sum(s.round_seconds for s in steps if s.num_prefill), busy),
        "drafting_us_per_step": float(drafts.mean()) * 1e6 if len(drafts) else NAN,
        "drafting_us_per_step_p99": _quantile(drafts, 0.99) * 1e6,
        "drafting_share": _ratio(float(drafts.sum()), busy),
        "drafting_share_decode": _ratio(
            sum(s.draft_seconds for s in decoding), sum(s.round_seconds for s in decoding)
        ),
        "forcing_share": _ratio(sum(s.force_seconds for s in steps), busy),
    }


def _comparison(
    ours: Sequence[RequestTiming], theirs: Sequence[RequestTiming], peer: Variant
) -> dict[str, float]:
    """How many times as fast: of the whole unit, and the medians over its episodes."""
    flat = {
        f"ratio_to_{peer}": _timing_figures(ours)["tokens_per_second"]
        / _timing_figures(theirs)["tokens_per_second"]
    }
    for name, options in {
        "episode_ratio": {},
        "decode_ratio": {"decode": True},
        "episode_ratio_not_looping": {"without_loops": True},
    }.items():
        speeds, others = episode_speed(ours, **options), episode_speed(theirs, **options)
        ratios = (speeds[name] / others[name] for name in speeds if name in others)
        flat[f"{name}_to_{peer}"] = _median(ratios)
    return flat


def _macro(flat: Mapping[str, float]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for name, value in flat.items():
        _, load, variant, figure = name.split(".")
        if figure in MACRO:
            values[f"macro.{load}.{variant}.{figure}"].append(value)
    return {name: fmean(numbers) for name, numbers in values.items()}


def _rounds(
    groups: Mapping[tuple[str, str], Mapping[Variant, UnitResult]],
) -> dict[str, float]:
    """Round time against tokens verified, over all sources."""
    seconds: dict[tuple[str, Variant], dict[int, list[float]]] = {}
    for (_, load), by_variant in groups.items():
        for variant, result in by_variant.items():
            buckets = seconds.setdefault((load, variant), defaultdict(list))
            for step in result.steps:
                if step.num_verified and not step.num_prefill:
                    exponent = (step.num_verified - 1).bit_length()
                    buckets[exponent].append(step.round_seconds)
    flat: dict[str, float] = {}
    for (load, variant), buckets in seconds.items():
        for exponent in sorted(buckets):
            name = f"rounds.{load}.{variant}.{bucket(1 << exponent)}"
            flat[f"{name}.ms"] = median(buckets[exponent]) * 1e3
            flat[f"{name}.steps"] = len(buckets[exponent])
    return flat


def _median(values: Iterable[float]) -> float:
    numbers = [v for v in values if v == v]  # noqa: PLR0124  NaN differs from itself
    return median(numbers) if numbers else NAN


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else NAN


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN
