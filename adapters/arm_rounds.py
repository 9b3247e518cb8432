"""What rounds of a batch tell of arms: those they were drafted with, and shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from paceline.caches import sum_rounds
from paceline.policies.bandits import Arm, Outcome

Sums = list[list[list[float]]]
"""By place and cap: tokens, seconds and rounds."""


class RoundRows(msgspec.Struct, frozen=True, eq=False):
    """One round's requests; each sequence has an entry for each.

    Attributes:
        places: whose sums they belong to, below 0 for nobody's.
        drafted: drafted tokens that were verified.
        committed: tokens that came of the round; nobody learns from less than 1.
        memory_drafted: tokens that memory alone would have had verified.
        memory_committed: tokens that would have come of that; nobody learns from less than 1.
        base_seconds: of the round without drafts.
        token_seconds: what a drafted token of one request took, times the requests of the round.
        model_seconds: what the model's drafting took, likewise; empty for nothing.
    """

    places: Sequence[int]
    drafted: Sequence[int]
    committed: Sequence[int]
    memory_drafted: Sequence[int]
    memory_committed: Sequence[int]
    base_seconds: float
    token_seconds: float
    model_seconds: Sequence[float]


class Supposed(msgspec.Struct, frozen=True):
    """A draft of memory's that nobody verified, and what would have come of it.

    Attributes:
        place: whose sums it belongs to.
        drafted: its tokens.
        committed: those that the target said as well, and one more.
        base_seconds: of a round without drafts.
        token_seconds: what each of its tokens would have taken.
    """

    place: int
    drafted: int
    committed: int
    base_seconds: float
    token_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class ArmSums:
    """Sums over rounds, as outcomes of arms.

    Attributes:
        caps: rising, 0 first.
        memory: by place and cap: tokens, seconds and rounds with memory alone.
        fused: the same with whoever drafted.
        supposed: the same of drafts that nobody verified; none where there were none.
    """

    caps: Sequence[int]
    memory: Sums
    fused: Sums
    supposed: Sums

    def has_rounds(self, place: int) -> bool:
        """Whether anything was seen in a place."""
        return self.memory[place][0][2] > 0.0

    def has_supposed(self, place: int) -> bool:
        """Whether drafts were supposed in a place."""
        return bool(self.supposed) and self.supposed[place][0][2] > 0.0

    def outcome(self, arm: Arm, place: int) -> Outcome:
        """What came of an arm in one place; only for arms that what was pulled there reveals."""
        return self._read(self.fused if arm.has_model else self.memory, arm, place)

    def as_supposed(self, arm: Arm, place: int) -> Outcome:
        """What would have come of memory's arm; no rounds where nothing was supposed.

        It counts for as many rounds as were watched for it, one for each token: few long drafts
        that are right must not count for less than many wrong ones.
        """
        found = self._read(self.supposed, arm, place)
        share = found.num_tokens / found.num_rounds if found.num_rounds else 1.0
        return Outcome(found.num_tokens * share, found.seconds * share, found.num_tokens)

    def _read(self, sums: Sums, arm: Arm, place: int) -> Outcome:
        return Outcome(*sums[place][self.caps.index(arm.max_tokens)])


def reveals(pulled: Arm, other: Arm) -> bool:
    """Whether rounds with an arm tell what another would have given, as `RoundRows` has them.

    Beside a model's draft it is known what memory's alone would have been.
    """
    return pulled.reveals(other) or (
        pulled.sources == "both"
        and other.sources == "memory"
        and pulled.max_tokens >= other.max_tokens
    )


class ArmRounds:
    """Rounds until they are summed up. Adding one is O(1), summing O(requests of all * caps)."""

    def __init__(self) -> None:
        self._rounds: list[RoundRows] = []
        self._supposed: list[Supposed] = []

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, rows: RoundRows) -> None:
        """Keep a round."""
        self._rounds.append(rows)

    def suppose(self, supposed: Supposed) -> None:
        """Keep what would have come of a draft."""
        self._supposed.append(supposed)

    def clear(self) -> None:
        """Drop all rounds."""
        self._rounds, self._supposed = [], []

    def take(self, num_places: int, caps: Sequence[int]) -> ArmSums:
        """Sum up all rounds, and drop them.

        A request's seconds are those that the round would have taken if all requests had drafted as
        it did: what a draft takes is its own, whoever else drafts, and no drafts take nothing.
        """
        rounds, self._rounds = self._rounds, []
        supposed, self._supposed = self._supposed, []
        by_memory = [
            (r.places, r.memory_drafted, r.memory_committed, (), r.base_seconds, r.token_seconds)
            for r in rounds
        ]
        memory = fused = sum_rounds(by_memory, num_places, caps)
        if any(each.model_seconds for each in rounds):
            fused = sum_rounds(
                [
                    (
                        r.places,
                        r.drafted,
                        r.committed,
                        r.model_seconds,
                        r.base_seconds,
                        r.token_seconds,
                    )
                    for r in rounds
                ],
                num_places,
                caps,
            )
        not_verified: Sums = []
        if supposed:
            alone = [
                ((s.place,), (s.drafted,), (s.committed,), (), s.base_seconds, s.token_seconds)
                for s in supposed
            ]
            not_verified = sum_rounds(alone, num_places, caps)
        return ArmSums(caps, memory, fused, not_verified)


def told_aside(sums: ArmSums, arms: Sequence[Arm], pulled: Arm, place: int) -> dict[Arm, Outcome]:
    """What other arms would have given; no drafts are always among them, or were pulled.

    What longer drafts of memory's would have given is among them where they were supposed.
    """
    told = {}
    if not pulled.has_model and sums.has_supposed(place):
        told = {
            arm: sums.as_supposed(arm, place)
            for arm in arms
            if arm.sources == "memory" and arm.max_tokens > pulled.max_tokens
        }
    return told | {
        arm: sums.outcome(arm, place) for arm in arms if arm != pulled and reveals(pulled, arm)
    }
