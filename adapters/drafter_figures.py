"""What an engine counts of its drafter's versions."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.policies.canary import Seen


@dataclass(slots=True)
class WatchCounts:
    """Totals since the start; written by the watching thread only.

    Attributes:
        swaps: drafters that took another's place, back and forth.
        canaries: candidates that were tried here.
        promotions: of those, that were kept.
        rollbacks: versions that were taken back from here, found worse or unusable.
        failures: versions that could not be loaded or put into place; each try counts.
        unreachable: looks that found no registry.
    """

    swaps: int = 0
    canaries: int = 0
    promotions: int = 0
    rollbacks: int = 0
    failures: int = 0
    unreachable: int = 0


@dataclass(frozen=True, slots=True)
class DrafterFigures:
    """What an engine tells Prometheus about its drafter.

    Attributes:
        group: whose it is.
        version: that drafts, 0 for what the engine was started with.
        is_canary: whether it is tried here.
        counts: of what has happened.
        swap_seconds: that a round has waited for the last swap.
        seen: what the latest versions did here.
    """

    group: str
    version: int
    is_canary: bool
    counts: WatchCounts
    swap_seconds: float
    seen: dict[int, Seen]
