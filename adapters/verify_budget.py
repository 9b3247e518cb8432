"""Which drafted tokens are worth verifying, over the whole batch of a round.

Tokens a second decide (`paceline.policies.draft_budget`); what a round of the target takes is
learned from its rounds. The choice is the batch's, as the time of its passes is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.policies.draft_budget import least_chance
from paceline.policies.round_cost import RoundCost

Chances = npt.NDArray[np.float64]
"""Of drafted tokens, those before them included; within a draft they never rise."""
Offsets = npt.NDArray[np.int64]
"""Where each request's drafted tokens begin, and where the last one's end."""


@dataclass(frozen=True, slots=True)
class DraftingFigures:
    """What an engine's drafting tells whoever watches it.

    Attributes:
        events: counters, by kind.
        price: chance below which a drafted token was not worth verifying, in the last round.
        costs: what rounds of the ``target``, and passes of the ``model`` where there is one, take.
    """

    events: Mapping[str, int]
    price: float
    costs: Mapping[str, RoundCost]


class VerifyBudget:
    """Decides for each round: `begin`, then `cut`.

    Not thread-safe. Each call is O(n log n) in drafted tokens.

    Args:
        always_draft: nothing is cut, whatever it costs.

    Attributes:
        target: what its rounds take, without a model's drafting; for the engine to teach.
        price: chance below which a drafted token was not worth verifying, in the last round.
        num_cut: drafted tokens that were not worth it, since the start.
    """

    def __init__(self, *, always_draft: bool = False) -> None:
        self.target = RoundCost()
        self.price = 0.0
        self.num_cut = 0
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

    def outlook(self, chances: Chances, *, drafting_seconds: float = 0.0) -> tuple[float, float]:
        """Tokens and seconds of the round, 0 while unknown, if what is worth it is verified.

        Args:
            chances: of all tokens drafted so far.
            drafting_seconds: what a model has taken in this round so far.
        """
        price = self._price_of(chances, drafting_seconds)
        is_kept = chances > price
        num_tokens = self._num_requests + float(chances[is_kept].sum())
        return num_tokens, self._seconds(int(is_kept.sum()), drafting_seconds)

    def cut(
        self, chances: Chances, offsets: Offsets, *, drafting_seconds: float = 0.0
    ) -> npt.NDArray[np.int64]:
        """How many of each draft's tokens to verify, int64 (requests,).

        Args:
            chances: float64, (drafted tokens,).
            offsets: int64, (requests + 1,).
            drafting_seconds: what a model has taken in this round.
        """
        if self.always_draft:
            return np.diff(offsets)
        self.price = self._price_of(chances, drafting_seconds)
        num_kept = self.num_worth(chances, offsets)
        self.num_cut += len(chances) - int(num_kept.sum())
        return num_kept

    def num_worth(self, chances: Chances, offsets: Offsets) -> npt.NDArray[np.int64]:
        """Tokens of each draft that are likelier than the last round's price, int64 (requests,)."""
        kept = np.concatenate([[0], np.cumsum(chances > self.price)])
        return np.diff(kept[offsets])

    def _price_of(self, chances: Chances, drafting_seconds: float) -> float:
        if self.always_draft:
            return 0.0
        return least_chance(
            chances,
            base_tokens=float(self._num_requests),
            base_seconds=self._seconds(0, drafting_seconds),
            token_seconds=self.target.token_seconds,
        )

    def _seconds(self, num_drafted: int, drafting_seconds: float) -> float:
        """Of the round, so many drafted tokens verified; 0 if unknown."""
        if not self.target.is_known:
            return 0.0
        num_tokens = self._num_requests + num_drafted
        seconds = self.target.seconds(self._num_requests, num_tokens, self._num_context)
        return drafting_seconds + seconds
