"""What became of every record, from what the engines wrote down and what the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.chaos.engine import ENDED, FLUSHED, GOT, SAID, STEPS


@dataclass(frozen=True, slots=True)
class Life:
    """One engine's life.

    Attributes:
        said: ids of its finished requests, in order.
        num_flushed: how many of them the store had surely taken.
        got: ids of others' records, as they were delivered.
        has_ended: whether it ended in order, with everything published.
        steps: float64 (steps, 2): Unix time and seconds of each.
    """

    said: Sequence[str]
    num_flushed: int
    got: Sequence[str]
    has_ended: bool
    steps: npt.NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path) -> Life:
        """From an engine's folder; a last line that was cut off by its end does not count."""
        steps = np.frombuffer((folder / STEPS).read_bytes()[: _whole(folder / STEPS)])
        flushed = _lines(folder / FLUSHED)
        return cls(
            said=_lines(folder / SAID),
            num_flushed=int(flushed[-1]) if flushed else 0,
            got=_lines(folder / GOT),
            has_ended=(folder / ENDED).exists(),
            steps=steps.reshape(-1, 2),
        )

    @property
    def owed(self) -> set[str]:
        """Ids that must be in the store, whatever happened since."""
        return set(self.said if self.has_ended else self.said[: self.num_flushed])


def judge(lives: Sequence[Life], stored: Sequence[str]) -> dict[str, float]:
    """What was lost, doubled or not delivered.

    Args:
        lives: every engine that ever lived; those that have ended in order lived to the end.
        stored: request ids of everything in the store, each as often as it is there.
    """
    kept = set(stored)
    missing = doubled = 0
    for life in lives:
        doubled += len(life.got) - len(set(life.got))
        if life.has_ended:
            missing += len(kept - set(life.said) - set(life.got))
    return {
        "records.said": float(sum(len(life.said) for life in lives)),
        "records.stored": float(len(kept)),
        "records.lost": float(sum(len(life.owed - kept) for life in lives)),
        "records.lost_with_engine": float(
            sum(len(set(life.said) - life.owed - kept) for life in lives)
        ),
        "records.stored_twice": float(len(stored) - len(kept)),
        "records.delivered_twice": float(doubled),
        "records.not_delivered": float(missing),
    }


def step_figures(
    lives: Iterable[Life], windows: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """How long steps took within stretches of Unix time, over all engines."""
    steps = np.concatenate([life.steps for life in lives])
    figures: dict[str, float] = {}
    for name, (start, end) in windows.items():
        took = 1e3 * steps[(steps[:, 0] >= start) & (steps[:, 0] < end), 1]
        quantiles = np.quantile(took, [0.5, 0.99, 0.999, 1.0]) if len(took) else [np.nan] * 4
        figures[f"{name}.steps"] = float(len(took))
        for label, value in zip(("p50", "p99", "p99.9", "max"), quantiles, strict=True):
            figures[f"{name}.step_{label}_ms"] = float(value)
    return figures


def _lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1]


def _whole(file: Path) -> int:
    return file.stat().st_size // 16 * 16
