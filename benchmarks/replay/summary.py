"""From finished units to figures: per source, macro, and for every subset apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from paceline.benchmarks.replay.counts import Counts, mean_of_each
from paceline.benchmarks.replay.run import UnitResult

MACRO: Final = "macro"
ALL: Final = "all"
SUBSETS: Final = (
    ALL,
    "seen",
    "new",
    *(f"{half}{task}" for half in ("tuning", "reporting") for task in ("", "/seen", "/new")),
)


def figures(
    results: Iterable[UnitResult], *, controls: Sequence[str] = (), pass_cost: float = 0.0
) -> dict[str, float]:
    """Flat figures ``source/drafter/subset/figure``; subsets are `SUBSETS`, ``all`` is left out.

    Args:
        results: finished units.
        controls: sources that are kept out of the macro average.
        pass_cost: what modelled speedups count for a forward pass of a model that drafts, in passes
            of the target.
    """
    units = list(results)
    flat: dict[str, float] = {}
    for drafter in dict.fromkeys(unit.drafter for unit in units):
        mine = [unit for unit in units if unit.drafter == drafter]
        by_source = {
            source: [unit for unit in mine if unit.source == source]
            for source in dict.fromkeys(unit.source for unit in mine)
        }
        for subset in SUBSETS:
            of_source = {s: _figures_of(units, subset, pass_cost) for s, units in by_source.items()}
            averaged = [f for source, f in of_source.items() if source not in controls]
            for place, some in (*of_source.items(), (MACRO, mean_of_each(averaged))):
                where = f"{place}/{drafter}" + ("" if subset == ALL else f"/{subset}")
                flat |= {f"{where}/{name}": value for name, value in some.items()}
    return flat


def _figures_of(units: Sequence[UnitResult], subset: str, pass_cost: float) -> dict[str, float]:
    """Quality in one subset of one source; in all of it also sizes, durations and memory."""
    pooled = Counts()
    belongs = _membership(subset)
    for unit in units:
        for name, counts in unit.counts.items():
            if belongs(name):
                pooled.merge(counts)
    if subset != ALL:
        return {"requests": pooled.requests, "steps": pooled.steps, **pooled.quality(pass_cost)}
    told = [unit for unit in units if unit.num_bytes is not None and unit.num_tokens]
    num_tokens = sum(unit.num_tokens or 0 for unit in told)
    num_bytes = sum(unit.num_bytes or 0 for unit in told)
    return {
        "requests": pooled.requests,
        "output_tokens": pooled.output_tokens,
        "steps": pooled.steps,
        **pooled.quality(pass_cost),
        **pooled.durations(),
        "bytes_per_token": num_bytes / num_tokens if num_tokens else float("nan"),
        "replay_seconds": sum(unit.seconds for unit in units),
    }


def _membership(subset: str) -> Callable[[str], bool]:
    """Whether a unit's subset, ``half/task``, belongs to `subset`."""
    parts = set(() if subset == ALL else subset.split("/"))
    return lambda name: parts <= set(name.split("/"))
