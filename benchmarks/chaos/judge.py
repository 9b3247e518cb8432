"""What became of every record, from what the engines wrote down and what the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.chaos.engine import ENDED, FLUSHED, GOT, SAID, STEPS

STEP_FIELDS: Final = 3
LATE_SECONDS: Final = 1e-3
QUANTILES: Final = (0.5, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Life:
    """One engine's life.

    Attributes:
        said: ids of its finished requests, in order.
        num_flushed: how many of them the store had surely taken.
        got: ids of others' records, as they were delivered.
        has_ended: whether it ended in order, with everything published.
        steps: float64 (steps, 3): Unix time of each, its seconds, and for how many of them it
            waited for a processor.
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
            steps=steps.reshape(-1, STEP_FIELDS),
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
    """How long steps took within stretches of Unix time, over all engines.

    `step` is by the clock, `own` without the time in which the machine had no processor for it.
    `late` counts steps that took a millisecond more than the first stretch's p99.
    """
    steps = np.concatenate([life.steps for life in lives])
    taken = {"step": steps[:, 1], "own": steps[:, 1] - steps[:, 2]}
    figures: dict[str, float] = {}
    late: dict[str, float] = {}
    for name, (start, end) in windows.items():
        is_in = (steps[:, 0] >= start) & (steps[:, 0] < end)
        figures[f"{name}.steps"] = float(is_in.sum())
        for kind, took in taken.items():
            seconds = took[is_in]
            quantiles = np.quantile(seconds, QUANTILES) if len(seconds) else [np.nan] * 4
            late.setdefault(kind, float(quantiles[1]) + LATE_SECONDS)
            for label, value in zip(("p50", "p99", "p99.9", "max"), quantiles, strict=True):
                figures[f"{name}.{kind}_{label}_ms"] = 1e3 * float(value)
            figures[f"{name}.{kind}_late"] = float((seconds > late[kind]).sum())
    return figures


def _lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1]


def _whole(file: Path) -> int:
    step_bytes = 8 * STEP_FIELDS
    return file.stat().st_size // step_bytes * step_bytes
