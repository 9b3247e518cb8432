"""When requests came at real services: Mooncake's and Azure's published traces."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from paceline.errors import ConfigError


def arrival_seconds(file: Path, num_requests: int, *, factor: float = 1.0) -> tuple[float, ...]:
    """The first arrivals of a trace, in seconds since the first of them, each times `factor`.

    Args:
        file: ``.jsonl.gz`` with a ``timestamp`` in milliseconds a line (Mooncake), or ``.csv.gz``
            with a column ``TIMESTAMP`` (Azure LLM inference 2023).
        num_requests: how many.
        factor: more than 1 thins the load out, less than 1 presses it together; > 0.

    Raises:
        ConfigError: no such file, of another kind, or with fewer arrivals.
    """
    if factor <= 0:
        raise ConfigError(f"--arrival-factor is {factor:g}; give a number above 0")
    if not file.is_file():
        known = ", ".join(sorted(p.name for p in file.parent.glob("*.gz")))
        raise ConfigError(f"{file} does not exist; the traces there are: {known or 'none'}")
    seconds = list(islice(_seconds(file), num_requests))
    if len(seconds) < num_requests:
        raise ConfigError(
            f"{file} holds {len(seconds)} arrivals, {num_requests} requests are to be sent; "
            "take fewer episodes or requests"
        )
    return tuple((second - seconds[0]) * factor for second in seconds)


def _seconds(file: Path) -> Iterator[float]:
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        if file.name.endswith(".jsonl.gz"):
            for line in lines:
                yield json.loads(line)["timestamp"] / 1000
        elif file.name.endswith(".csv.gz"):
            for row in csv.DictReader(lines):
                # seven digits after the point, of which Python reads six
                yield datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        else:
            raise ConfigError(f"{file} is neither .jsonl.gz nor .csv.gz; see docs/bench-engine.md")
