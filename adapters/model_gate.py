"""For which requests a model drafts in a round: where that gives the batch more tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline.adapters.model_gain import ModelGain, Patience
from paceline.policies.draft_budget import worth_their_time
from paceline.policies.round_cost import RoundCost

TRIAL_SHARE: Final = 0.01
"""Of the time, for trying a model that rests: what it adds can only be seen where it runs."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that the model might draft for in this round.

    Attributes:
        key: of those that may share what is learned.
        num_expected: tokens of memory's draft that are expected to be accepted.
        num_read: tokens that the model would read in any case, committed and drafted ones.
        num_late: tokens that it has missed in earlier rounds, the prompt at first.
        num_left: most tokens that the request will still say.
    """

    key: int
    num_expected: float
    num_read: int
    num_late: int
    num_left: int


class ModelGate:
    """Chooses, from what the model's passes take and what it has added to memory's drafts.

    Not thread-safe.

    Args:
        most_late: tokens missed in earlier rounds that a round reads at most, if more than one
            request has missed any.
        takes_all: a pass drafts for every request, chosen or not, so that only what was missed is
            read for the chosen alone.
        always_draft: the model drafts for all, whatever it costs.

    Attributes:
        cost: what its passes take; for the engine to teach.
    """

    def __init__(
        self, *, most_late: int, takes_all: bool = False, always_draft: bool = False
    ) -> None:
        self.cost = RoundCost()
        self._most_late = most_late
        self._takes_all = takes_all
        self._always_draft = always_draft
        self._gain = ModelGain()
        self._patience = Patience()
        self._trial_seconds = 0.0
        """Saved for trials."""

    def asked(
        self,
        candidates: Sequence[Candidate],
        *,
        base_tokens: float,
        base_seconds: float,
        further_seconds: float = 0.0,
    ) -> list[int]:
        """Which of them the model drafts for, in rising order.

        A key that has gone without the model for long has it tried, on the request that it has
        missed least of, once that costs no more than its share of the time. O(n log n).

        Args:
            candidates: each request at most once.
            base_tokens: that the round is expected to yield without the model.
            base_seconds: of that round; 0 if unknown.
            further_seconds: what passes after the first take for each request.
        """
        if self._always_draft:
            return list(range(len(candidates)))
        gains = [self._gain.expected(each.key, each.num_expected) for each in candidates]
        fixed_seconds = self._fixed_seconds(candidates)
        worth = worth_their_time(
            gains,
            [
                further_seconds
                + self._seconds(
                    candidate,
                    max(1.0, candidate.num_left / (1.0 + candidate.num_expected + gain)),
                )
                for candidate, gain in zip(candidates, gains, strict=True)
            ],
            fixed_seconds=fixed_seconds,
            base_tokens=base_tokens,
            base_seconds=base_seconds,
        )
        chosen = self._within_reading(candidates, worth)
        self._trial_seconds += TRIAL_SHARE * base_seconds
        return sorted({*chosen, *self._tried(candidates, chosen, fixed_seconds)})

    def has_rested(self, key: int) -> bool:
        """Whether the model was not asked in the key's last round."""
        return self._patience.has_rested(key)

    def learn(self, key: int, num_expected: float, num_gained: float) -> None:
        """A request with the model had so many more tokens than memory's draft would have had.

        Args:
            key: its key.
            num_expected: as in its `Candidate`.
            num_gained: tokens, less what verifying the additional ones was worth.
        """
        self._gain.learn(key, num_expected, num_gained)

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._gain.forget(key)
        self._patience.forget(key)

    def _fixed_seconds(self, candidates: Sequence[Candidate]) -> float:
        """What any pass takes, whoever is chosen."""
        if not self._takes_all:
            return self.cost.fixed_seconds
        return self.cost.seconds(len(candidates), sum(each.num_read for each in candidates))

    def _seconds(self, candidate: Candidate, num_rounds: float) -> float:
        """What one request adds to a pass; what was missed is read once for so many rounds."""
        late_seconds = candidate.num_late / num_rounds * self.cost.token_seconds
        if self._takes_all:
            return late_seconds
        fresh_seconds = candidate.num_read * self.cost.token_seconds
        return self.cost.request_seconds + fresh_seconds + late_seconds

    def _within_reading(self, candidates: Sequence[Candidate], chosen: list[int]) -> list[int]:
        """As many as have missed no more than a round reads, together; one at least.

        Those that have missed least go first: the others wait, as replies do not.
        """
        room = self._most_late
        kept: list[int] = []
        for i in sorted(chosen, key=lambda i: candidates[i].num_late):
            room -= candidates[i].num_late
            if room < 0 and kept:
                break
            kept.append(i)
        return kept

    def _tried(
        self, candidates: Sequence[Candidate], chosen: Sequence[int], fixed_seconds: float
    ) -> list[int]:
        """For each key that has waited for long enough, one request, as far as time was saved."""
        with_model = {candidates[i].key for i in chosen}
        by_key: dict[int, int] = {}
        for i, candidate in enumerate(candidates):
            least = by_key.setdefault(candidate.key, i)
            if candidate.num_late < candidates[least].num_late:
                by_key[candidate.key] = i
        tried: list[int] = []
        for key, i in by_key.items():
            if key not in with_model and self._patience.is_over(key):
                each = candidates[i]
                seconds = fixed_seconds + self._seconds(each, 1.0)
                if seconds > self._trial_seconds:
                    continue
                self._trial_seconds -= seconds
                tried.append(i)
        with_model |= {candidates[i].key for i in tried}
        for key in by_key:
            self._patience.note(key, has_run=key in with_model)
        return tried
