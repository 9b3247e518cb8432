"""Which drafted tokens are worth verifying, over the whole batch of a round.

Tokens a second decide (`paceline.policies.draft_budget`); what a round of the target takes is
learned from its rounds. The choice is the batch's, as the time of its passes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.caches import TreeBatch, choose_nodes, count_likelier
from paceline.policies.round_cost import Ladder, RoundCost

UNKNOWN: Final = Ladder(np.zeros(1), 0.0)
ONE_DRAFT: Final = 2
"""Length of the offsets of a batch of one request."""


@dataclass(frozen=True, slots=True, eq=False)
class Outlook:
    """What a round would be.

    Attributes:
        tokens: that it is expected to yield.
        seconds: that it takes; 0 while they are not known.
        expected: float64, (requests,). Tokens of each draft that would be accepted, all verified.
        num_verified: drafted tokens that would be.
        ladder: what it takes by how many are, drafting included.
    """

    tokens: float
    seconds: float
    expected: npt.NDArray[np.float64]
    num_verified: int = 0
    ladder: Ladder = UNKNOWN

    def further_seconds(self, num_more: int) -> float:
        """What verifying each of so many tokens more would take, on average."""
        more = self.ladder.at(self.num_verified + num_more) - self.ladder.at(self.num_verified)
        return max(0.0, more / max(num_more, 1))


@dataclass(frozen=True, slots=True)
class DraftingFigures:
    """What an engine's drafting tells whoever watches it.

    Attributes:
        events: counters, by kind.
        price: tokens that the time of one more drafted token was worth, in the last round.
        costs: what rounds of the ``target``, and passes of the ``model`` where there is one, take.
        arms: rounds of requests by the arm that they drafted with, where arms are chosen.
    """

    events: Mapping[str, int]
    price: float
    costs: Mapping[str, RoundCost]
    arms: Mapping[str, int] = field(default_factory=dict)


class _Choice(NamedTuple):
    """A round's drafts, cut.

    Attributes:
        num_kept: int64 (requests,). Of each draft its first nodes.
        expected: float64 (requests,). As in `Outlook`.
        price: tokens that the time of one more is worth.
        tokens: expected of the round.
        ladder: what it takes, drafting included.
        num_verified: nodes that were kept, of all drafts.
    """

    num_kept: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float64]
    price: float
    tokens: float
    ladder: Ladder
    num_verified: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.ladder.at(self.num_verified) if self.ladder.is_known else 0.0


class VerifyBudget:
    """Decides for each round: `begin`, then `cut`.

    Not thread-safe. Each call is O(n log n) in drafted tokens.

    Args:
        always_draft: nothing is cut, whatever it costs.

    Attributes:
        target: what its rounds take, without a model's drafting; for the engine to teach.
        price: tokens that the time of one more drafted token was worth, in the last round; what is
            less likely was as a rule not worth verifying.
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
        self._ladder: Ladder | None = None
        """Of the round that has begun."""
        self._last: _Choice | None = None
        """Of the last round, while it is known what rounds take."""
        self._was_alone = False
        """Whether that round was one request's."""

    def begin(self, num_requests: int, *, num_context: int = 0) -> None:
        """A round begins, of so many requests that are being answered, behind so many tokens."""
        self._num_requests = num_requests
        self._num_context = num_context
        self._ladder = None

    def learn(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """The target's pass of the round that has begun took that long."""
        self.target.learn(num_requests, num_tokens, seconds, num_context=self._num_context)
        self._ladder = None

    def spent(self, num_tokens: int, *, drafting_seconds: float = 0.0) -> tuple[float, float]:
        """What the round that has begun is expected to take; zeros while that is not known.

        Args:
            num_tokens: that are verified in it.
            drafting_seconds: what a model has taken in it.

        Returns:
            Its seconds, and those of a round of the same requests without drafts.
        """
        ladder = self._known_ladder()
        if not ladder.is_known:
            return 0.0, 0.0
        whole = drafting_seconds + ladder.at(max(0, num_tokens - self._num_requests))
        return whole, ladder.at(0)

    def outlook(self, drafts: TreeBatch, *, drafting_seconds: float = 0.0) -> Outlook:
        """The round, if of these drafts what is worth it is verified.

        Args:
            drafts: so far; paths come likeliest first.
            drafting_seconds: what a model has taken in this round so far.
        """
        chosen = self._chosen(drafts, drafting_seconds)
        known = self._known_ladder().beside(drafting_seconds)
        seconds = known.at(chosen.num_verified) if known.is_known else 0.0
        return Outlook(chosen.tokens, seconds, chosen.expected, chosen.num_verified, known)

    def cut(self, drafts: TreeBatch, *, drafting_seconds: float = 0.0) -> npt.NDArray[np.int64]:
        """How many of each draft's nodes to verify, its first ones, int64 (requests,).

        Args:
            drafts: of the batch; paths come likeliest first.
            drafting_seconds: what a model has taken in this round.
        """
        chosen = self._chosen(drafts, drafting_seconds)
        self.price = chosen.price
        self.num_cut += len(drafts.prob) - chosen.num_verified
        self._last = chosen if chosen.ladder.is_known else None
        self._was_alone = self._num_requests == 1
        return chosen.num_kept

    def num_worth(self, drafts: TreeBatch) -> npt.NDArray[np.int64]:
        """Nodes of each draft that would have been worth verifying in the last round.

        Of a round of one request exactly; of others by the price that its tokens had. O(n log n).

        Returns:
            int64 (requests,).
        """
        if self._last is None:
            return np.diff(drafts.offsets)
        is_one = len(drafts.offsets) == ONE_DRAFT
        if self._was_alone and is_one:
            return _choose(drafts, 1, self._last.ladder).num_kept
        return count_likelier(drafts.offsets, drafts.parent, drafts.prob, self.price)

    def worth(self, num_more: int) -> float:
        """Tokens that the time of so many verified ones was worth, the last round's last ones.

        Args:
            num_more: that one way to draft has verified more than another; may be negative, then
                what as many more would have taken.
        """
        if self._last is None:
            return 0.0
        ladder, now = self._last.ladder, self._last.num_verified
        return self._last.rate * (ladder.at(now) - ladder.at(max(0, now - num_more)))

    def _chosen(self, drafts: TreeBatch, drafting_seconds: float) -> _Choice:
        ladder = UNKNOWN
        if not (self.always_draft or self.is_free):
            ladder = self._known_ladder().beside(drafting_seconds)
        return _choose(drafts, self._num_requests, ladder)

    def _known_ladder(self) -> Ladder:
        if self._ladder is None:
            self._ladder = self.target.ladder(self._num_requests, self._num_context)
        return self._ladder


def _choose(drafts: TreeBatch, num_requests: int, ladder: Ladder) -> _Choice:
    num_kept, expected, price, tokens = choose_nodes(
        drafts.offsets,
        drafts.parent,
        drafts.prob,
        base_tokens=float(num_requests),
        seconds=ladder.seconds,
        token_seconds=ladder.token_seconds,
    )
    return _Choice(num_kept, expected, price, tokens, ladder, int(num_kept.sum()))
