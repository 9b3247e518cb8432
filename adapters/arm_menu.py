"""What requests can be drafted with, and the policies that choose from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from paceline.adapters.identity import DRAFT_SOURCES, DraftLimits
from paceline.policies.bandits import (
    Arm,
    PolicyContext,
    PolicyState,
    Steady,
    arm_set,
    default_policy,
)
from paceline.policies.bandits.arms import DEFAULT_CAPS, Sources

MOST_MENUS: Final = 16
"""Ways in which clients and policies narrow that are learned of; others draft by time alone."""
MOST_CELLS: Final = 1024
"""Contexts of a menu that are kept at hand; what is learned of them is the policy's."""
NOWHERE: Final = -1
"""No place: nothing is summed up there."""


class ArmCaps(NamedTuple):
    """An arm as limits: most tokens that memory and that the model may draft in a round."""

    memory: int
    model: int


@dataclass(slots=True, eq=False)
class Cell:
    """One context and what it drafts with.

    Attributes:
        context: where.
        menu: whose.
        arm: that is held; `hold` another.
        place: where its rounds are summed up.
        is_dropped: nothing more is learned for it.
        caps: its arm as limits.
        name: its arm's.
    """

    context: PolicyContext
    menu: Menu
    arm: Arm
    place: int = NOWHERE
    is_dropped: bool = False
    caps: ArmCaps = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.hold(self.arm)

    def hold(self, arm: Arm) -> None:
        """Draft with another arm from now on; its rounds have no place yet."""
        self.arm, self.place = arm, NOWHERE
        self.caps, self.name = caps_of(arm), arm.name


@dataclass(slots=True, eq=False)
class Menu:
    """A policy and the arms that some requests can be drafted with.

    Attributes:
        policy: chooses.
        most_by_memory: of its arms with memory alone, the most tokens; 0 without one.
        cells: contexts at hand.
        is_dropped: nothing more is learned for it.
    """

    policy: Steady
    most_by_memory: int
    cells: dict[tuple[str, str, int, int], Cell] = field(default_factory=dict)
    is_dropped: bool = False

    def cell(self, key: str, workload: str, batch: int, context: int) -> Cell:
        """The cell of a context, made where it is new."""
        name = (key, workload, batch, context)
        cell = self.cells.get(name)
        if cell is None:
            if len(self.cells) >= MOST_CELLS:
                self.cells.clear()
            where = PolicyContext(key, workload, batch, context)
            cell = self.cells[name] = Cell(where, self, self.policy.pull(where))
        return cell

    def forget(self, key: int | str) -> None:
        """Drop what was learned for a key. O(contexts)."""
        self.policy.forget(key)
        for name in [each for each in self.cells if each[0] == key]:
            del self.cells[name]

    def reset(self, drafter: str) -> None:
        """Another model drafts: every context chooses anew. O(contexts)."""
        self.policy.reset(drafter)
        for cell in self.cells.values():
            cell.hold(self.policy.pull(cell.context))


class Menus:
    """The menus of an engine: one for each way in which requests are narrowed.

    Args:
        max_tokens: most drafted tokens that the engine verifies for a request.
        drafter: id of the model that drafts beside memory, "" without one.
        rng: source of the policies' draws.

    Attributes:
        widest: the caps of whoever may draft all that the engine lets them.
        caps: tokens of all arms, rising, 0 first.
        main: of requests that nobody narrows.
    """

    def __init__(self, *, max_tokens: int, drafter: str, rng: random.Random) -> None:
        self.widest = ArmCaps(max_tokens, max_tokens if drafter else 0)
        self.caps: list[int] = []
        self._max_tokens = max_tokens
        self._drafter = drafter
        self._rng = rng
        self._known: dict[tuple[frozenset[str], int], Menu] = {}
        everybody = DRAFT_SOURCES if drafter else frozenset({"memory"})
        self.main = self._known[everybody, max_tokens] = self._made(everybody, max_tokens)

    def __iter__(self) -> Iterator[Menu]:
        return iter(self._known.values())

    def of(self, limits: DraftLimits, *, own: bool = False) -> Menu | None:
        """The menu of a request that is narrowed so; None where nothing is chosen.

        Args:
            limits: its client's and its policy's.
            own: it shares with no one, and gets a menu that nobody else has.
        """
        by_memory = limits.most("memory", self._max_tokens)
        by_model = limits.most("model", self._max_tokens) if self._drafter else 0
        most = max(by_memory, by_model)
        if not most:
            return None
        named = (("memory", by_memory), ("model", by_model))
        may = frozenset(name for name, num in named if num)
        if own:
            return self._made(may, most)
        menu = self._known.get((may, most))
        if menu is None and len(self._known) < MOST_MENUS:
            menu = self._known[may, most] = self._made(may, most)
        return menu

    def rename_drafter(self, name: str) -> None:
        """Menus that are made from now on are of another model."""
        self._drafter = name

    def _made(self, may: frozenset[str], most: int) -> Menu:
        arms = arms_within(may, most)
        self.caps = sorted({*self.caps, *(arm.max_tokens for arm in arms)})
        drafter = self._drafter if "model" in may else ""
        policy = default_policy(arms, rng=self._rng, drafter=drafter, is_told_aside=True)
        return Menu(policy, most if "memory" in may else 0)


class SharedArms:
    """The policy that replicas share, as a `PolicySync` wants it; see `Policy`.

    Args:
        policy: whose evidence it is.
        forget: drops a key, in what is not shared too.
    """

    def __init__(self, policy: Steady, forget: Callable[[int | str], None]) -> None:
        self._policy = policy
        self._forget = forget

    @property
    def kind(self) -> str:
        """Name of the algorithm."""
        return self._policy.kind

    def state(self) -> bytes:
        """Its own evidence."""
        return self._policy.state()

    def load(self, state: bytes) -> None:
        """Add own evidence from before."""
        self._policy.load(state)

    def merge(self, others: Mapping[str, PolicyState]) -> None:
        """Take others' evidence in place of what they had."""
        self._policy.merge(others)

    def forget(self, key: int | str) -> None:
        """Drop a key, in what is not shared too."""
        self._forget(key)


def arms_within(may: frozenset[str], most: int) -> tuple[Arm, ...]:
    """No drafts, and what those who may draft can do with so many tokens.

    A model beside memory is always together with it: who drafts what is better is fusion's.
    """
    caps = (*(cap for cap in DEFAULT_CAPS if cap < most), most)
    sources: tuple[Sources, ...] = ("memory",)
    if "model" in may:
        sources = ("memory", "both") if "memory" in may else ("model",)
    return arm_set(Arm(source, cap) for source in sources for cap in caps)


def caps_of(arm: Arm) -> ArmCaps:
    """An arm as limits."""
    by_memory = arm.max_tokens if arm.sources in {"memory", "both"} else 0
    return ArmCaps(by_memory, arm.max_tokens if arm.has_model else 0)
