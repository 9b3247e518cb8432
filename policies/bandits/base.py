"""The one seam between whoever drafts and whatever chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.outcome import Outcome
from paceline.policies.bandits.state import PolicyState


class Policy(Protocol):
    """Chooses an arm for each request and learns from what came of it.

    Nothing of one context's key reaches another's. Not thread-safe, and without clock, network or
    randomness of its own: what is injected makes it deterministic.
    """

    @property
    def kind(self) -> str:
        """Name of the algorithm: states of different kinds do not mix."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is chosen from; the first is `NO_DRAFTS`."""

    def pull(self, context: PolicyContext) -> Arm:
        """The arm to draft with."""

    def update(
        self,
        context: PolicyContext,
        arm: Arm,
        outcome: Outcome,
        aside: Mapping[Arm, Outcome] | None = None,
    ) -> None:
        """Learn what came of an arm, pulled or not.

        Args:
            context: where.
            arm: which.
            outcome: what; one that cannot be used (no time, no number) is counted and left.
            aside: what other arms would have given in the same rounds, where that is known: shorter
                drafts of the same sources are (`Arm.reveals`), for no time of the target.

        Raises:
            ConfigError: `arm` is none of `arms`.
        """

    def state(self) -> bytes:
        """All evidence of its own, to be kept or given to other replicas; see `PolicyState`."""

    def load(self, state: bytes) -> None:
        """Add evidence of its own from before, as after a restart.

        Raises:
            ConfigError: the state is broken, of a newer version or of another kind; nothing was
                taken from it.
        """

    def merge(self, others: Mapping[str, PolicyState]) -> None:
        """Take what other replicas have seen in place of what they had seen before.

        Evidence that has not grown since the last time goes on ageing.

        Args:
            others: replica to its state, without this one; one of another kind is left out.
        """

    def reset(self, drafter: str) -> None:
        """Another drafter drafts from now on: forget all arms that have a model.

        Args:
            drafter: its id, the same in all replicas; evidence of theirs with another is left out.
        """

    def forget(self, key: int | str) -> None:
        """Drop everything of a key, what others have seen of it too."""
