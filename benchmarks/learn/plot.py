"""The plot of `paceline bench learn`: agreement and accepted length over what was served."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from paceline.benchmarks.learn.records import Mark
from paceline.errors import ConfigError

INCHES: Final = (11.0, 4.5)
MEASURES: Final = {
    "agreement": "share of held-out tokens that agree",
    "accepted_length": "accepted tokens a round",
}


def draw(marks: Sequence[Mark], file: Path) -> None:
    """A panel for each measure, a colour for each workload; what is frozen is dashed.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    canvas = Figure(figsize=INCHES, layout="constrained")
    served = [mark.served / 1000 for mark in marks]
    for panel_number, (measure, text) in enumerate(MEASURES.items(), 1):
        panel = canvas.add_subplot(1, len(MEASURES), panel_number)
        for number, name in enumerate(marks[0].learned):
            learned = [getattr(mark.learned[name], measure) for mark in marks]
            frozen = [getattr(mark.frozen[name], measure) for mark in marks]
            colour = f"C{number}"
            panel.plot(served, learned, marker="o", color=colour, label=name)
            panel.plot(served, frozen, linestyle="--", color=colour, label=f"{name}, frozen")
        for before, after in pairwise(marks):
            if before.workload != after.workload:
                panel.axvline(after.served / 1000, color="grey", linewidth=1)
        panel.set_xlabel("thousand tokens served")
        panel.set_ylabel(text)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    canvas.axes[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        canvas.savefig(file)
    except ValueError as error:
        raise ConfigError(f"cannot draw {file}: {error}") from error
