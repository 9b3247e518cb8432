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
    rows = [
        [
            label,
            _number(figures.get(f"{way}_p50_ms"), 2),
            _number(figures.get(f"{way}_added_p50_ms"), 2),
            _number(figures.get(f"{way}_cpu_ms_per_request"), 2),
            _number(figures.get(f"{way}_cpu_us_per_chunk"), 0),
        ]
        for way, label in {
            "direct": "direct",
            "bare": "bare uvicorn + aiohttp",
            "proxied": "Paceline",
        }.items()
    ]
    head = ["way to the engine", "p50 ms", "added p50 ms", "CPU ms a request", "CPU µs a chunk"]
    return _markdown(head, rows)


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
    "proxy": _proxy,
    "replay": _replay,
}


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{table(Path(name))}\n")
