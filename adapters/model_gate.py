"""For which requests a model drafts in a round: where that gives the batch more tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline.adapters.model_gain import PATIENCE, ModelGain, Patience
from paceline.policies.draft_budget import worth_their_time
from paceline.policies.round_cost import RoundCost

TRIAL_SHARE: Final = 0.01
"""Of the time, for trying a model that rests: what it adds can only be seen where it runs."""
JUDGING_SHARE: Final = 0.05
"""The same while a new version is judged, which takes some hundred rounds."""
JUDGING_PATIENCE: Final = 4
"""Rounds in a row without the model after which it is tried while it is judged."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The requests that the model might draft for in a round; each list has an entry for each.

    Attributes:
        keys: of those that may share what is learned.
        num_expected: tokens of memory's draft that are expected to be accepted.
        num_read: tokens that the model would read in any case, committed and drafted ones.
        num_late: tokens that it has missed in earlier rounds, the prompt at first.
        num_left: most tokens that the request will still say.
    """

    keys: Sequence[int]
    num_expected: Sequence[float]
    num_read: Sequence[int]
    num_late: Sequence[int]
    num_left: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)


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
        is_judging: whether a new version is judged: a model that rests is tried more often.
    """

    def __init__(
        self, *, most_late: int, takes_all: bool = False, always_draft: bool = False
    ) -> None:
        self.cost = RoundCost()
        self.is_judging = False
        self._most_late = most_late
        self._takes_all = takes_all
        self._always_draft = always_draft
        self._gain = ModelGain()
        self._patience = Patience()
        self._trial_seconds = 0.0
        """Saved for trials."""

    def asked(
        self,
        candidates: Candidates,
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
        share = JUDGING_SHARE if self.is_judging else TRIAL_SHARE
        self._trial_seconds += share * base_seconds
        fixed_seconds = self._fixed_seconds(candidates)
        expected_of = self._gain.expected
        gains = list(map(expected_of, candidates.keys, candidates.num_expected))
        chosen: list[int] = []
        # what nobody's gain can pay for needs no closer look: mostly a model that rests
        if base_seconds <= 0 or sum(gains) * base_seconds > base_tokens * fixed_seconds:
            each = self._each_seconds(candidates, gains)
            worth = worth_their_time(
                gains,
                [further_seconds + seconds for seconds in each] if further_seconds else each,
                fixed_seconds=fixed_seconds,
                base_tokens=base_tokens,
                base_seconds=base_seconds,
            )
            chosen = self._within_reading(candidates, worth)
        tried = self._tried(candidates, chosen, fixed_seconds)
        return sorted({*chosen, *tried}) if tried else chosen

    def has_rested(self, key: int) -> bool:
        """Whether the model was not asked in the key's last round."""
        return self._patience.has_rested(key)

    def learn(self, key: int, num_expected: float, num_gained: float) -> None:
        """A request with the model had so many more tokens than memory's draft would have had.

        Args:
            key: its key.
            num_expected: as in `Candidates`.
            num_gained: tokens, less what verifying the additional ones was worth.
        """
        self._gain.learn(key, num_expected, num_gained)

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._gain.forget(key)
        self._patience.forget(key)

    def renew(self, *, costs_same: bool = True) -> None:
        """Another model drafts from now on: nothing is known of what it adds.

        Args:
            costs_same: whether its passes take what those of the one before took.
        """
        self._gain = ModelGain()
        self._patience = Patience()
        if not costs_same:
            self.cost = RoundCost()

    def _fixed_seconds(self, candidates: Candidates) -> float:
        """What any pass takes, whoever is chosen."""
        if not self._takes_all:
            return self.cost.fixed_seconds
        return self.cost.seconds(len(candidates), sum(candidates.num_read))

    def _each_seconds(self, candidates: Candidates, gains: Sequence[float]) -> list[float]:
        """What each request adds to a pass; what was missed is read once for all its rounds."""
        token_seconds = self.cost.token_seconds
        request_seconds, of_read = (
            (0.0, 0.0) if self._takes_all else (self.cost.request_seconds, token_seconds)
        )
        if self._takes_all and not any(candidates.num_late):
            return [0.0] * len(candidates)
        rows = zip(
            *(candidates.num_read, candidates.num_late, candidates.num_left),
            *(candidates.num_expected, gains),
            strict=True,
        )
        return [
            request_seconds
            + of_read * num_read
            + token_seconds * num_late / max(1.0, num_left / (1.0 + num_expected + gain))
            for num_read, num_late, num_left, num_expected, gain in rows
        ]

    def _within_reading(self, candidates: Candidates, chosen: list[int]) -> list[int]:
        """As many as have missed no more than a round reads, together; one at least.

        Those that have missed least go first: the others wait, as replies do not.
        """
        late = candidates.num_late
        if sum(late[i] for i in chosen) <= self._most_late:
            return chosen
        room = self._most_late
        kept: list[int] = []
        for i in sorted(chosen, key=late.__getitem__):
            room -= late[i]
            if room < 0 and kept:
                break
            kept.append(i)
        return sorted(kept)

    def _tried(
        self, candidates: Candidates, chosen: Sequence[int], fixed_seconds: float
    ) -> list[int]:
        """For each key that has waited for long enough, one request, as far as time was saved."""
        with_model = {candidates.keys[i] for i in chosen}
        patience = JUDGING_PATIENCE if self.is_judging else PATIENCE
        tried: list[int] = []
        for key in dict.fromkeys(candidates.keys):
            if key not in with_model and self._patience.is_over(key, num_rounds=patience):
                least = min(
                    (i for i, each in enumerate(candidates.keys) if each == key),
                    key=candidates.num_late.__getitem__,
                )
                cost = self.cost
                seconds = fixed_seconds + cost.token_seconds * candidates.num_late[least]
                if not self._takes_all:
                    seconds += cost.request_seconds
                    seconds += cost.token_seconds * candidates.num_read[least]
                if seconds <= self._trial_seconds:
                    self._trial_seconds -= seconds
                    tried.append(least)
                    with_model.add(key)
            self._patience.note(key, has_run=key in with_model)
        return tried
