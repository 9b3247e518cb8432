"""What all policies share: contexts, rewards, ageing, and states that merge."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import NO_DRAFTS, Arm, arm_set
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.evidence import Cell, Evidence
from paceline.policies.bandits.outcome import Outcome
from paceline.policies.bandits.state import (
    STATE_VERSION,
    PolicyState,
    TableName,
    decode_state,
    encode_state,
)

DISCOUNT: Final = 0.985
Seen = tuple[float, float]
"""A reward, and what it counts for."""


class Bandit(ABC):
    """A policy that chooses anew at each pull; `Steady` around it keeps it from jumping.

    Args:
        arms: what to choose from; `NO_DRAFTS` is added where it is missing.
        rng: source of its draws.
        discount: what an outcome of full weight leaves of the evidence before it, in (0, 1].
        drafter: id of the model that drafts, "" without one.

    Raises:
        ConfigError: a setting is outside its range.

    Attributes:
        num_unusable: outcomes that nothing could be learned from, since the start.
        num_trials: arms chosen because they had not been seen of late, since the start.
    """

    kind: ClassVar[str]
    width: ClassVar[int]

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        rng: random.Random,
        discount: float = DISCOUNT,
        drafter: str = "",
    ) -> None:
        if not 0.0 < discount <= 1.0:
            raise ConfigError(f"discount is {discount}; give more than 0 and at most 1")
        self._arms = arm_set(arms)
        self._number = {arm: number for number, arm in enumerate(self._arms)}
        self._with_model = frozenset(i for i, arm in enumerate(self._arms) if arm.has_model)
        self._rng = rng
        self._discount = discount
        self._drafter = drafter
        self._evidence = Evidence([arm.name for arm in self._arms], self.width, self._levels)
        self.num_unusable = 0
        self.num_trials = 0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self._arms)} arms, discount={self._discount}, "
            f"{len(self._evidence)} contexts)"
        )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is chosen from; the first is `NO_DRAFTS`."""
        return self._arms

    def pull(self, context: PolicyContext) -> Arm:
        """The arm to draft with. O(arms)."""
        return self.choose(context)

    def choose(self, context: PolicyContext, *staying: Arm | None, margin: float = 0.0) -> Arm:
        """The arm to draft with: the first of `staying` that none is better than by `margin`.

        The best one if all of them are beaten. O(arms).
        """
        numbers = [self._number[arm] for arm in staying if arm in self._number]
        return self._arms[self._chosen(self._evidence.cell(context), numbers, margin)]

    def loss(self, context: PolicyContext, arm: Arm) -> float:
        """How much longer an arm is taken to be than the best one for the same tokens, >= 0.

        O(arms). 0 where the kind of policy keeps no means.
        """
        self._numbered(arm)
        return 0.0

    def evidence(self, context: PolicyContext, arm: Arm) -> float:
        """How much is known of an arm in a context, in outcomes of full weight. O(1)."""
        return self._evidence.cell(context).tables[0].row(self._numbered(arm))[0]

    def update(
        self,
        context: PolicyContext,
        arm: Arm,
        outcome: Outcome,
        aside: Mapping[Arm, Outcome] | None = None,
    ) -> None:
        """See `Policy.update`. O(arms)."""
        pulled = self._numbered(arm)
        if not outcome.is_usable:
            self.num_unusable += 1
            return
        cell = self._evidence.cell(context)
        if pulled == 0:
            cell.baseline.learn(outcome)
        elif aside and (base := aside.get(NO_DRAFTS)) is not None and base.is_usable:
            cell.baseline.learn(base)
        self._age(cell, outcome.weight)
        rate = cell.base_rate
        told = {}
        for other, seen in (aside or {}).items():
            if other != arm and seen.is_usable:
                told[self._numbered(other)] = seen.reward(other, rate), seen.weight
        self._learn(context, cell, pulled, (outcome.reward(arm, rate), outcome.weight), told)

    def state(self) -> bytes:
        """See `Policy.state`. O(tables)."""
        exported = self._evidence.export()
        return encode_state(PolicyState(STATE_VERSION, self.kind, self._drafter, exported))

    def load(self, state: bytes) -> None:
        """See `Policy.load`. O(tables)."""
        decoded = decode_state(state)
        if decoded.kind != self.kind:
            raise ConfigError(
                f"the state is of a policy {decoded.kind!r}, this one is {self.kind!r}; start "
                "without it"
            )
        self._evidence.load(decoded.keys, self._foreign(decoded))

    def merge(self, others: Mapping[str, PolicyState]) -> None:
        """See `Policy.merge`. O(tables of all)."""
        ours = {name: state for name, state in others.items() if state.kind == self.kind}
        self._evidence.merge(
            {name: state.keys for name, state in ours.items()},
            {name: self._foreign(state) for name, state in ours.items()},
        )

    def reset(self, drafter: str) -> None:
        """See `Policy.reset`. O(tables)."""
        self._drafter = drafter
        self._evidence.clear(self._with_model)

    def forget(self, key: int | str) -> None:
        """See `Policy.forget`. O(1)."""
        self._evidence.forget(key)

    def num_changes(self, context: PolicyContext) -> int:
        """Times that a context's rewards were found to be others than they had been. O(1)."""
        return self._evidence.cell(context).num_changes

    def _age(self, cell: Cell, weight: float) -> None:
        """An outcome of such a weight is about to be learned."""
        factor = self._discount**weight
        for table in cell.tables:
            table.age(factor)
            table.num_updates += 1

    def _foreign(self, state: PolicyState) -> frozenset[int]:
        """Arms that a state says nothing of here: another drafter was seen."""
        return frozenset() if state.drafter == self._drafter else self._with_model

    def _numbered(self, arm: Arm) -> int:
        number = self._number.get(arm)
        if number is None:
            names = ", ".join(each.name for each in self._arms)
            raise ConfigError(f"{arm.name} is none of this policy's arms; they are {names}")
        return number

    def _levels(self, context: PolicyContext) -> tuple[TableName, ...]:
        """Tables that a context is learned in, the narrowest first."""
        return ((context.workload, context.batch_bucket, context.context_bucket),)

    @abstractmethod
    def _chosen(self, cell: Cell, staying: Sequence[int], margin: float) -> int:
        """Number of the arm to pull; see `choose`."""

    @abstractmethod
    def _learn(
        self, context: PolicyContext, cell: Cell, arm: int, seen: Seen, aside: Mapping[int, Seen]
    ) -> None:
        """A pulled arm's reward, and what others would have had; the tables have been aged."""


def best(scores: Sequence[float], staying: Sequence[int], margin: float) -> int:
    """Number of the highest score, or the first of `staying` that it does not beat by `margin`.

    Of equals the first.
    """
    most = max(scores)
    for number in staying:
        if most <= scores[number] + margin:
            return number
    return scores.index(most)
