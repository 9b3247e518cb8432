"""Which drafted tokens are worth verifying, over the whole batch of a round.

Tokens a second decide (`paceline.policies.draft_budget`); what a round of the target takes is
learned from its rounds. The choice is the batch's, as the time of its passes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.caches import TreeBatch, choose_nodes, count_likelier
from paceline.policies.round_cost import RoundCost


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What a round would be.

    Attributes:
        tokens: that it is expected to yield.
        seconds: that it takes; 0 while they are not known.
        expected: float64, (requests,). Tokens of each draft that would be accepted, all verified.
    """

    tokens: float
    seconds: float
    expected: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DraftingFigures:
    """What an engine's drafting tells whoever watches it.

    Attributes:
        events: counters, by kind.
        price: chance below which a drafted token was not worth verifying, in the last round.
        costs: what rounds of the ``target``, and passes of the ``model`` where there is one, take.
        arms: rounds of requests by the arm that they drafted with, where arms are chosen.
    """

    events: Mapping[str, int]
    price: float
    costs: Mapping[str, RoundCost]
    arms: Mapping[str, int] = field(default_factory=dict)


class VerifyBudget:
    """Decides for each round: `begin`, then `cut`.

    Not thread-safe. Each call is O(n log n) in drafted tokens.

    Args:
        always_draft: nothing is cut, whatever it costs.

    Attributes:
        target: what its rounds take, without a model's drafting; for the engine to teach.
        price: chance below which a drafted token was not worth verifying, in the last round.
        num_cut: drafted tokens that were not worth it, since the start.
        is_free: nothing is cut in this round, as it is to be seen what it takes.
    """

    def __init__(self, *, always_draft: bool = False) -> None:
        self.target = RoundCost()
        self.price = 0.0
        self.num_cut = 0
        self.is_free = False
        self.always_draft = always_draft
        self._num_requests = 0
        self._num_context = 0

    def begin(self, num_requests: int, *, num_context: int = 0) -> None:
        """A round begins, of so many requests that are being answered, behind so many tokens."""
        self._num_requests = num_requests
        self._num_context = num_context

    def learn(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """The target's pass of the round that has begun took that long."""
        self.target.learn(num_requests, num_tokens, seconds, num_context=self._num_context)

    def spent(self, num_tokens: int, *, drafting_seconds: float = 0.0) -> tuple[float, float]:
        """What the round that has begun is expected to take; zeros while that is not known.

        Args:
            num_tokens: that are verified in it.
            drafting_seconds: what a model has taken in it.

        Returns:
            Its seconds, and those of a round of the same requests without drafts.
        """
        whole = self._seconds(num_tokens, drafting_seconds)
        return whole, self._seconds(self._num_requests, 0.0)

    def outlook(self, drafts: TreeBatch, *, drafting_seconds: float = 0.0) -> Outlook:
        """The round, if of these drafts what is worth it is verified.

        Args:
            drafts: so far; paths come likeliest first.
            drafting_seconds: what a model has taken in this round so far.
        """
        num_kept, expected, _, tokens = self._chosen(drafts, drafting_seconds)
        num_tokens = self._num_requests + int(num_kept.sum())
        return Outlook(tokens, self._seconds(num_tokens, drafting_seconds), expected)

    def cut(self, drafts: TreeBatch, *, drafting_seconds: float = 0.0) -> npt.NDArray[np.int64]:
        """How many of each draft's nodes to verify, its first ones, int64 (requests,).

        Args:
            drafts: of the batch; paths come likeliest first.
            drafting_seconds: what a model has taken in this round.
        """
        num_kept, _, self.price, _ = self._chosen(drafts, drafting_seconds)
        self.num_cut += len(drafts.prob) - int(num_kept.sum())
        return num_kept

    def num_worth(self, drafts: TreeBatch) -> npt.NDArray[np.int64]:
        """Nodes of each draft that are worth the last round's price, int64 (requests,). O(n)."""
        if self.price <= 0.0:
            return np.diff(drafts.offsets)
        return count_likelier(drafts.offsets, drafts.parent, drafts.prob, self.price)

    def _chosen(
        self, drafts: TreeBatch, drafting_seconds: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float, float]:
        seconds = 0.0
        if not (self.always_draft or self.is_free):
            seconds = self._seconds(self._num_requests, drafting_seconds)
        return choose_nodes(
            drafts.offsets,
            drafts.parent,
            drafts.prob,
            base_tokens=float(self._num_requests),
            base_seconds=seconds,
            token_seconds=self.target.token_seconds,
        )

    def _seconds(self, num_tokens: int, drafting_seconds: float) -> float:
        """Of the round, so many tokens verified; 0 if unknown."""
        if not self.target.is_known:
            return 0.0
        seconds = self.target.seconds(self._num_requests, num_tokens, self._num_context)
        return drafting_seconds + seconds
