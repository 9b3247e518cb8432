"""Drafters by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Final

import paceline.benchmarks.replay as package
from paceline.adapters import speculator
from paceline.benchmarks.peers.arctic import VERSION as ARCTIC_VERSION
from paceline.benchmarks.peers.arctic import load_suffix_cache
from paceline.benchmarks.replay.base import Drafter
from paceline.benchmarks.replay.drafters.adjacency import AdjacencyDrafter
from paceline.benchmarks.replay.drafters.arctic import ArcticDrafter
from paceline.benchmarks.replay.drafters.hierarchy import HierarchyDrafter
from paceline.benchmarks.replay.drafters.ngram import NgramDrafter
from paceline.benchmarks.replay.drafters.none import NoDrafter
from paceline.benchmarks.replay.drafters.oracle import Oracle
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.benchmarks.replay.drafters.sam import SamDrafter
from paceline.benchmarks.replay.drafters.tiers import TiersDrafter
from paceline.caches import _native, tier_settings, tiers
from paceline.caches.tier_settings import MemorySettings, TierSettings
from paceline.errors import ConfigError, UnsupportedError

ARCTIC: Final = {
    f"arctic-{depth}x{factor}": (depth, float(factor)) for depth in (24, 64) for factor in (1, 2, 4)
}
PACELINE: Final = {"paceline": 1, "paceline-tree": 8}
"""Ours by name, and the most nodes that continue one node."""
TIERS: Final = {
    "paceline-apart": MemorySettings(tenant=TierSettings(enabled=False)),
    "paceline-tiers": MemorySettings(),
}
"""Ours by name with logs by workload: each to itself, and as engines have it by default."""
PYTHON_DRAFTERS: Final[Mapping[str, Callable[[], Drafter]]] = {
    "none": NoDrafter,
    "ngram-8": partial(NgramDrafter, 8),
    "ngram-32": partial(NgramDrafter, 32),
    "ngram-8-first": partial(NgramDrafter, 8, first=True),
    "ngram-32-first": partial(NgramDrafter, 32, first=True),
    "hierarchy": HierarchyDrafter,
    "sam-16": partial(SamDrafter, 16),
    "sam-32": partial(SamDrafter, 32),
    "adjacency": AdjacencyDrafter,
}
ORACLES: Final[Mapping[str, Callable[[], Drafter]]] = {
    "oracle": Oracle,
    "oracle-own-episode": partial(Oracle, own_episode=True),
    "oracle-anchor4": partial(Oracle, anchor=4),
}
NAMES: Final = (*PYTHON_DRAFTERS, *ARCTIC, *PACELINE, *TIERS, *ORACLES)


REPLAYING: Final = ("base.py", "counts.py", "run.py")
SHARED: Final = ("automaton", "branches", "context", "novelty")


@dataclass(frozen=True, slots=True)
class DrafterSpec:
    """A drafter that can be made anew for each scope.

    Attributes:
        name: what the report calls it.
        make: makes one, cold.
        fingerprint: changes with anything that could change what it drafts.
    """

    name: str
    make: Callable[[], Drafter]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which drafters can be run, and why others cannot.

    Attributes:
        specs: in the order of `NAMES`.
        missing: name to the reason.
    """

    specs: tuple[DrafterSpec, ...]
    missing: Mapping[str, str]


def select(names: Iterable[str], *, peers: Path, min_probabilities: Iterable[float]) -> Selection:
    """The drafters called `names`.

    Args:
        names: of `NAMES`.
        peers: folder where peers are kept, or built on first use.
        min_probabilities: Paceline is run once with each.

    Raises:
        ConfigError: an unknown name.
    """
    wanted = set(names)
    if unknown := sorted(wanted.difference(NAMES)):
        raise ConfigError(f"no drafter is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    made = [
        DrafterSpec(name, make, f"{name} {code_of(_module(make))}")
        for name, make in {**PYTHON_DRAFTERS, **ORACLES}.items()
        if name in wanted
    ]
    probabilities = list(min_probabilities)
    made += [
        _paceline(name, branches, p)
        for name, branches in PACELINE.items()
        if name in wanted
        for p in probabilities
    ]
    made += [_tiers(name, p) for name in TIERS if name in wanted for p in probabilities]
    missing: dict[str, str] = {}
    if arctic := [name for name in ARCTIC if name in wanted]:
        try:
            made += _arctic(arctic, peers)
        except UnsupportedError as error:
            missing = dict.fromkeys(arctic, str(error))
    order = {name: place for place, name in enumerate(NAMES)}
    made.sort(key=lambda spec: order.get(spec.name, order["paceline"]))
    return Selection(tuple(made), missing)


def _paceline(name: str, max_branches: int, min_probability: float) -> DrafterSpec:
    check_probability(min_probability)
    name = f"{name}-{min_probability:g}"
    core = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()
    make = partial(PacelineDrafter, min_probability=min_probability, max_branches=max_branches)
    return DrafterSpec(name, make, f"{name} {core} {code_of('paceline')}")


def _tiers(name: str, min_probability: float) -> DrafterSpec:
    check_probability(min_probability)
    memory = TIERS[name]
    called = f"{name}-{min_probability:g}"
    state = hashlib.sha256(Path(_native.__file__).read_bytes())
    for module in (tiers, tier_settings, speculator):
        state.update(Path(str(module.__file__)).read_bytes())
    make = partial(TiersDrafter.of_tiers, min_probability=min_probability, memory=memory)
    return DrafterSpec(called, make, f"{called} {memory} {state.hexdigest()} {code_of('tiers')}")


def check_probability(min_probability: float) -> None:
    """Raise `ConfigError` if drafts cannot stop there."""
    if not 0 < min_probability <= 1:
        raise ConfigError(f"--min-probability {min_probability}: give one above 0 and at most 1")


def _arctic(names: Iterable[str], peers: Path) -> list[DrafterSpec]:
    suffix_cache = load_suffix_cache(peers)
    return [
        DrafterSpec(
            name,
            partial(ArcticDrafter, suffix_cache, depth=ARCTIC[name][0], factor=ARCTIC[name][1]),
            f"{name} {ARCTIC_VERSION} {code_of('arctic')}",
        )
        for name in names
    ]


def _module(make: Callable[[], Drafter]) -> str:
    """Name of the module that defines what `make` makes."""
    drafter = make.func if isinstance(make, partial) else make
    return str(drafter.__module__).rpartition(".")[2]


@cache
def code_of(drafter: str) -> str:
    """Hash of what replays, of what drafters share and of one drafter's module.

    A result of other code is not taken for one of this.
    """
    folder = Path(package.__path__[0])
    state = hashlib.sha256()
    for file in (*REPLAYING, *(f"drafters/{name}.py" for name in (*SHARED, drafter))):
        state.update((folder / file).read_bytes())
    return state.hexdigest()
