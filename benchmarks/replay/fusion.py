"""The ablation `paceline bench replay --fusion`: memory, a small model, and both in one draft."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from paceline.adapters import chain_fusing, embedded, model_chains
from paceline.benchmarks.replay.base import Drafter
from paceline.benchmarks.replay.registry import DrafterSpec, check_probability, code_of
from paceline.caches import _native
from paceline.errors import ConfigError

TREE_BRANCHES: Final = 4
SHAPES: Final = {"chain": 1, "tree": TREE_BRANCHES}
SOURCES: Final = ("retrieval", "drafter", "fused")
CHAINED: Final = ("vllm", "vllm-continued")
"""Chains as the vLLM worker fuses them, without and with memory behind the model's tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSettings:
    """Which model drafts, and how much.

    Attributes:
        folder: the model's, in Hugging Face format.
        num_nodes: most drafted tokens a step, whoever drafts them, in chains and trees alike.
        max_steps: most passes of the model a step.
        pass_cost: what a pass costs, in passes of the target.
    """

    folder: Path
    num_nodes: int = 16
    max_steps: int = 4
    pass_cost: float = 0.12

    def __post_init__(self) -> None:
        if not (self.folder / "config.json").is_file():
            raise ConfigError(f"{self.folder} is no folder of a model; give one with a config.json")
        if self.num_nodes < 1 or self.max_steps < 1:
            raise ConfigError(
                f"{self.num_nodes} nodes and {self.max_steps} steps: give at least 1 of each"
            )
        if not 0 <= self.pass_cost < float("inf"):
            raise ConfigError(f"a pass cannot cost {self.pass_cost:g}; give 0 or more")

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "drafter": self.folder.name,
            "nodes": self.num_nodes,
            "steps": self.max_steps,
            "pass_cost": self.pass_cost,
        }


def fusion_specs(
    settings: FusionSettings, min_probabilities: Iterable[float]
) -> tuple[DrafterSpec, ...]:
    """Memory, the model and both, as chains and as trees, at each threshold; and vLLM's chains.

    The model is loaded when the first drafter that needs it is made.
    """
    state = _fingerprint(settings)
    specs = []
    for probability in min_probabilities:
        check_probability(probability)
        for source in SOURCES:
            for shape, branches in SHAPES.items():
                name = f"{source}-{shape}-{probability:g}"
                make = _maker(settings, source, branches, probability)
                specs.append(DrafterSpec(name, make, f"{name} {state}"))
        for source in CHAINED:
            name = f"{source}-chain-{probability:g}"
            chained = partial(_chained, settings, probability, continues=source != CHAINED[0])
            specs.append(DrafterSpec(name, chained, f"{name} {state}"))
    return tuple(specs)


def _maker(
    settings: FusionSettings, source: str, branches: int, probability: float
) -> Callable[[], Drafter]:
    from paceline.benchmarks.replay.drafters.fused import BoundedMemory, FusedDrafter

    if source == "retrieval":
        return partial(
            BoundedMemory, settings.num_nodes, min_probability=probability, max_branches=branches
        )

    def make() -> Drafter:
        return FusedDrafter(
            _model(settings.folder),
            settings.num_nodes,
            memory=source == "fused",
            min_probability=probability,
            max_branches=branches,
            max_steps=settings.max_steps,
        )

    return make


def _chained(settings: FusionSettings, probability: float, *, continues: bool) -> Drafter:
    from paceline.benchmarks.replay.drafters.chained import ChainedDrafter

    return ChainedDrafter(
        _model(settings.folder),
        settings.num_nodes,
        min_probability=probability,
        max_steps=settings.max_steps,
        continues=continues,
    )


@cache
def _model(folder: Path) -> Any:
    from paceline.adapters.embedded.target import Target

    return Target.load_drafter(folder)


def _fingerprint(settings: FusionSettings) -> str:
    """Hash of the model, of the limits and of the code that drafts. O(bytes of the model)."""
    state = hashlib.sha256(f"{settings.num_nodes} {settings.max_steps}".encode())
    code = [
        *sorted(Path(embedded.__path__[0]).glob("*.py")),
        *map(_file, (chain_fusing, model_chains)),
    ]
    weights = sorted(p for p in settings.folder.iterdir() if p.is_file())
    for file in (*code, *weights, Path(_native.__file__)):
        with file.open("rb") as content:
            state.update(hashlib.file_digest(content, "sha256").digest())
    return f"{state.hexdigest()} {code_of('paceline')} {code_of('fused')} {code_of('chained')}"


def _file(module: ModuleType) -> Path:
    return Path(str(module.__file__))
