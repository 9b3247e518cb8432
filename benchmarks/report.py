"""The one shape of every benchmark's result."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from paceline import __version__


def describe_machine() -> dict[str, Any]:
    """Processor, cores and Python of this machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark measured.

    Attributes:
        bench: name of the benchmark.
        settings: what it ran with.
        figures: flat names to numbers; NaN where there was nothing to measure.
        version: Paceline's version.
        machine: what it ran on.
    """

    bench: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    version: str = __version__
    machine: Mapping[str, Any] = field(default_factory=describe_machine)

    def as_json(self) -> str:
        """The report as JSON; a figure for which there was nothing to measure (NaN) is left out."""
        return json.dumps(
            {
                "bench": self.bench,
                "version": self.version,
                "machine": dict(self.machine),
                "settings": dict(self.settings),
                "figures": {k: v for k, v in self.figures.items() if not math.isnan(v)},
            },
            indent=2,
        )


def write_report(report: Report, json_file: Path | None) -> None:
    """Print the figures, and write the report to `json_file` if one is named."""
    width = max(map(len, report.figures), default=0)
    for name, value in report.figures.items():
        click.echo(f"{name:<{width}}  {value:,.4g}")
    if json_file is not None:
        write_json(report, json_file)


def write_json(report: Report, json_file: Path) -> None:
    """Write the report to `json_file`, whose folder is made if need be."""
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(report.as_json() + "\n", encoding="utf-8")
