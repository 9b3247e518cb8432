"""Tokens/step against drafted/step: the whole frontier of every drafter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paceline.benchmarks.replay.summary import MACRO
from paceline.errors import ConfigError

PANELS_A_ROW: Final = 3
PANEL_INCHES: Final = (5.0, 4.0)
Point = tuple[float, float]


def draw(figures: Mapping[str, float], file: Path, *, subset: str = "reporting") -> None:
    """Write one panel a source and one of the macro average; the suffix chooses the format.

    Drafters that share a name but for what follows their last hyphen or ``x`` are settings of one
    and joined by a line.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    places = [MACRO, *(p for p in dict.fromkeys(n.split("/")[0] for n in figures) if p != MACRO)]
    rows = math.ceil(len(places) / PANELS_A_ROW)
    width, height = PANEL_INCHES
    canvas = Figure(figsize=(PANELS_A_ROW * width, rows * height), layout="constrained")
    for number, place in enumerate(places):
        panel = canvas.add_subplot(rows, PANELS_A_ROW, number + 1)
        _panel(panel, place, curves(figures, place, subset))
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right upper")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        canvas.savefig(file)
    except ValueError as error:
        raise ConfigError(f"cannot draw {file}: {error}") from error


def curves(figures: Mapping[str, float], place: str, subset: str) -> dict[str, list[Point]]:
    """Family of drafters to its (drafted/step, tokens/step), sorted; undefined ones left out."""
    found: dict[str, list[Point]] = {}
    for drafter in dict.fromkeys(n.split("/")[1] for n in figures if n.startswith(f"{place}/")):
        where = f"{place}/{drafter}/{subset}"
        point = (
            figures.get(f"{where}/drafted_per_step", math.nan),
            figures.get(f"{where}/tokens_per_step", math.nan),
        )
        if not any(map(math.isnan, point)):
            found.setdefault(family(drafter), []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def family(drafter: str) -> str:
    """Name that the settings of one drafter share: ``arctic-24`` of ``arctic-24x2``."""
    stem, _, setting = drafter.rpartition("-")
    if stem and setting.replace(".", "", 1).isdigit():
        return stem
    before, _, factor = drafter.rpartition("x")
    return before if before and factor.isdigit() else drafter


def _panel(panel: Any, place: str, lines: Mapping[str, Sequence[Point]]) -> None:
    for name, points in lines.items():
        xs, ys = zip(*points, strict=True)
        panel.plot(xs, ys, marker="o", markersize=4, linewidth=1, label=name)
    panel.set_title(place)
    panel.set_xlabel("drafted tokens a step")
    panel.set_ylabel("tokens a step")
    panel.grid(alpha=0.3)
