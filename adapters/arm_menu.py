"""What some requests can be drafted with, and the policy that chooses from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from paceline.policies.bandits import Arm, PolicyContext, Steady, arm_set
from paceline.policies.bandits.arms import DEFAULT_CAPS, Sources

NOWHERE: Final = -1
"""No place: nothing is summed up there."""


class ArmCaps(NamedTuple):
    """An arm as limits: most tokens that memory and that the model may draft in a round."""

    memory: int
    model: int


@dataclass(slots=True, eq=False)
class Menu:
    """A policy and the arms that some requests can be drafted with."""

    policy: Steady
    cells: dict[tuple[str, str, int, int], Cell] = field(default_factory=dict)
    is_dropped: bool = False


@dataclass(slots=True, eq=False)
class Cell:
    """One context and what it drafts with."""

    context: PolicyContext
    menu: Menu
    arm: Arm
    place: int = NOWHERE
    is_dropped: bool = False


def arms_within(may: frozenset[str], most: int) -> tuple[Arm, ...]:
    """No drafts, and what those who may draft can do with so many tokens, each alone and together.

    A model beside memory is always together with it: who drafts what is better is fusion's.
    """
    caps = (*(cap for cap in DEFAULT_CAPS if cap < most), most)
    everybody: tuple[Sources, ...] = ("memory", "both") if "memory" in may else ("model",)
    sources = everybody if "model" in may else ("memory",)
    return arm_set(Arm(source, cap) for source in sources for cap in caps)


def caps_of(arm: Arm) -> ArmCaps:
    """An arm as limits."""
    by_memory = arm.max_tokens if arm.sources in {"memory", "both"} else 0
    return ArmCaps(by_memory, arm.max_tokens if arm.has_model else 0)
