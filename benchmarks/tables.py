"""The tables of README.md, made from the JSON files that benchmarks write.

``python -m paceline.benchmarks.tables docs/benchmarks/*.json`` prints them; a test holds the README
to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paceline.errors import ConfigError

VARIANTS: Final = {"off": "without speculation", "ngram": "vLLM's `ngram`", "paceline": "Paceline"}
ENGINES: Final = {
    "off": "without speculation",
    "ngram": "vLLM's `ngram`",
    "suffix": "vLLM's `suffix`",
    "paceline": "Paceline",
    "paceline-fused": "Paceline with a drafter",
    "embedded-off": "embedded, without speculation",
    "embedded": "embedded, Paceline",
    "embedded-tree": "embedded, Paceline's trees",
    "embedded-drafter": "embedded, a drafter",
    "embedded-drafter-tree": "embedded, a drafter's trees",
    "embedded-fused": "embedded, both",
    "embedded-fused-tree": "embedded, trees of both",
}
"""Variants of `paceline bench engine`, in the order of its tables."""


def table(file: Path) -> str:
    """The Markdown table of one benchmark's report.

    Raises:
        ConfigError: the file is not a report, or of a benchmark without a table.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        make = _TABLES[report["bench"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a report of {', '.join(_TABLES)}: {error!r}") from error
    return make(report["figures"])


def _agent(figures: Mapping[str, float]) -> str:
    sources = sorted({name.partition(".")[0] for name in figures})
    rows = [
        [
            source,
            label,
            _number(figures.get(f"{source}.{variant}.tokens_per_second"), 1),
            _number(figures.get(f"{source}.{variant}.tokens_per_second_not_looping"), 1),
            _number(figures.get(f"{source}.{variant}.decode_tokens_per_second"), 1),
            _number(figures.get(f"{source}.{variant}.tokens_per_step"), 2),
            _number(figures.get(f"{source}.{variant}.accepted_per_drafted"), 2),
            *_compared(figures, source, variant),
        ]
        for source in sources
        for variant, label in VARIANTS.items()
        if f"{source}.{variant}.requests" in figures
    ]
    head = ["traces", "engine", "tokens/s", "not looping", "decode tokens/s", "tokens/step"]
    return _markdown([*head, "accepted/drafted", "Paceline is", "identical replies"], rows)


def _compared(figures: Mapping[str, float], source: str, variant: str) -> list[str]:
    """How many times as fast ours is, and how many replies are the same."""
    ratio = figures.get(f"{source}.ratio_to_{variant}")
    if ratio is None:
        return ["", ""]
    apart = _number(figures.get(f"{source}.ratio_to_{variant}_not_looping"), 2)
    decode = _number(figures.get(f"{source}.decode_ratio_to_{variant}"), 2)
    same = int(figures[f"{source}.identical_to_{variant}"])
    asked = int(figures[f"{source}.{variant}.requests"])
    return [f"{ratio:.2f}x ({apart}x not looping, {decode}x decode)", f"{same} of {asked}"]


def _proxy(figures: Mapping[str, float]) -> str:
    columns = [
        ("added p50 ms", "added_p50_ms", 2),
        ("requests/s", "requests_per_second", 0),
        ("250 KB requests/s", "large_requests_per_second", 0),
        ("CPU µs a chunk, one stream", "cpu_us_per_chunk", 0),
        ("64 streams", "crowd_cpu_us_per_chunk", 0),
        ("added p99 ms at 64", "added_crowd_p99_ms", 1),
    ]
    ways = {
        "bare": "bare uvicorn + aiohttp",
        "proxied": "Paceline",
        "vllm_router": "vllm-router (Rust)",
        "litellm": "LiteLLM",
    }
    rows = [
        [label, *(_number(figures.get(f"{way}_{key}"), digits) for _, key, digits in columns)]
        for way, label in ways.items()
        if any(name.startswith(f"{way}_") for name in figures)
    ]
    return _markdown(["in the middle", *(title for title, _, _ in columns)], rows)


def engine_tables(figures: Mapping[str, float]) -> str:
    """The tables of `paceline bench engine`: speed by source and load, then what a round takes."""
    parts = [name.split(".") for name in figures]
    sources = dict.fromkeys(p[0] for p in parts if p[0] not in ("macro", "rounds"))
    loads = dict.fromkeys(p[1] for p in parts)
    keys = [
        (source, load, variant)
        for source in [*sources, "macro"]
        for load in loads
        for variant in ENGINES
        if f"{source}.{load}.{variant}.tokens_per_step" in figures
    ]
    head = ["traces", "load", "engine", "tokens/s", "decode tokens/s", "TTFT p50 ms"]
    head += ["inter-token p50/p99 ms", "tokens/step", "drafted/step", "accepted/drafted"]
    head += [
        "drafting µs a step",
        "of the time",
        "prefill, of the time",
        "times off",
        "times ngram",
        "times suffix",
    ]
    speed = _markdown(head, [_engine_row(figures, *key) for key in keys])
    return f"{speed}\n\n{_rounds_table(figures, parts)}"


def _engine_row(figures: Mapping[str, float], source: str, load: str, variant: str) -> list[str]:
    def number(name: str, digits: int) -> str:
        return _number(figures.get(f"{source}.{load}.{variant}.{name}"), digits)

    def share(name: str, digits: int) -> str:
        value = figures.get(f"{source}.{load}.{variant}.{name}")
        return "" if value is None else f"{100 * value:.{digits}f} %"

    off = "embedded-off" if variant.startswith("embedded") else "off"
    gaps = [number("inter_token_p50_ms", 1), number("inter_token_p99_ms", 1)]
    return [
        *(source, load, ENGINES[variant]),
        number("tokens_per_second", 1),
        number("decode_tokens_per_second", 1),
        number("ttft_p50_ms", 0),
        " / ".join(gap for gap in gaps if gap),
        number("tokens_per_step", 2),
        number("drafted_per_step", 2),
        number("acceptance", 2),
        number("drafting_us_per_step", 0),
        share("drafting_share", 2),
        share("prefill_share", 0),
        *(number(f"ratio_to_{peer}", 2) for peer in (off, "ngram", "suffix")),
    ]


def _rounds_table(figures: Mapping[str, float], parts: Sequence[Sequence[str]]) -> str:
    """Median milliseconds of a round without prefill, by load, engine and tokens verified."""
    rounds = [p for p in parts if p[0] == "rounds" and p[-1] == "ms"]
    buckets = sorted({p[3] for p in rounds}, key=lambda b: int(b.rpartition("-")[2]))
    rows = [
        [load, label, *(_round(figures, f"rounds.{load}.{variant}.{b}") for b in buckets)]
        for load in dict.fromkeys(p[1] for p in rounds)
        for variant, label in ENGINES.items()
        if any(p[1:3] == [load, variant] for p in rounds)
    ]
    return _markdown(["load", "ms a round verifying", *(f"{b} tokens" for b in buckets)], rows)


def _round(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(f"{name}.ms")
    return "" if value is None else f"{value:.1f} ({figures[f'{name}.steps']:.0f})"


def _replay(figures: Mapping[str, float]) -> str:
    """Tokens/step @ drafted/step of the reporting half: a line a drafter, a column a source."""
    names = [name.split("/") for name in figures]
    places = ["macro", *dict.fromkeys(n[0] for n in names if n[0] != "macro")]
    rows = [
        [
            drafter,
            *(_tokens_at_drafted(figures, f"{place}/{drafter}/reporting") for place in places),
            _number(figures.get(f"macro/{drafter}/reporting/speedup_at_0.02"), 2),
            f"{_number(figures.get(f'macro/{drafter}/propose_p50_us'), 0)}/"
            f"{_number(figures.get(f'macro/{drafter}/propose_p99_us'), 0)}",
        ]
        for drafter in dict.fromkeys(n[1] for n in names)
    ]
    return _markdown(["drafter", *places, "speedup at 0.02", "µs a proposal, p50/p99"], rows)


def _tokens_at_drafted(figures: Mapping[str, float], where: str) -> str:
    tokens = _number(figures.get(f"{where}/tokens_per_step"), 2)
    return f"{tokens}@{_number(figures.get(f'{where}/drafted_per_step'), 1)}" if tokens else ""


_TABLES: Final[Mapping[str, Callable[[Mapping[str, float]], str]]] = {
    "agent": _agent,
    "engine": engine_tables,
    "proxy": _proxy,
    "replay": _replay,
}


def _number(value: Any, digits: int) -> str:
    # a figure for which there was nothing to measure is NaN, which differs from itself
    return "" if value is None or value != value else f"{value:,.{digits}f}"  # noqa: PLR0124


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{table(Path(name))}\n")
