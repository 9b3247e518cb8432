"""What rounds of a batch tell of arms: those they were drafted with, and shorter ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.policies.bandits import Arm, Outcome

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RoundRows:
    """One round's requests that somebody learns from; each array has an entry for each.

    Attributes:
        places: int64. Whose sums they belong to.
        drafted: int64. Drafted tokens that were verified.
        committed: int64. Tokens that came of the round, at least 1.
        memory_drafted: int64. Tokens that memory alone would have had verified.
        memory_committed: int64. Tokens that would have come of that.
        base_seconds: of the round without drafts.
        token_seconds: what a drafted token of one request took, times the requests of the round.
        model_seconds: float64. What the model's drafting took, likewise; None for none.
    """

    places: Ints
    drafted: Ints
    committed: Ints
    memory_drafted: Ints
    memory_committed: Ints
    base_seconds: float
    token_seconds: float
    model_seconds: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class ArmSums:
    """Sums over rounds, as outcomes of arms.

    Attributes:
        caps: in the order of the first axis of what follows, rising, 0 first.
        memory: float64, (3, caps, places). Tokens, seconds and rounds with memory alone.
        fused: float64, (3, caps, places). The same with whoever drafted.
    """

    caps: Sequence[int]
    memory: Floats
    fused: Floats

    def outcome(self, arm: Arm, place: int) -> Outcome:
        """What came of an arm in one place; only for arms that what was pulled there reveals."""
        sums = self.fused if arm.has_model else self.memory
        tokens, seconds, rounds = sums[:, self.caps.index(arm.max_tokens), place].tolist()
        return Outcome(tokens, seconds, rounds)


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

    def __len__(self) -> int:
        return len(self._rounds)

    def add(self, rows: RoundRows) -> None:
        """Keep a round."""
        self._rounds.append(rows)

    def clear(self) -> None:
        """Drop all rounds."""
        self._rounds = []

    def take(self, num_places: int, caps: Sequence[int]) -> ArmSums:
        """Sum up all rounds, and drop them.

        A request's seconds are those that the round would have taken if all requests had drafted as
        it did: what a draft takes is its own, whoever else drafts, and no drafts take nothing.
        """
        rounds, self._rounds = self._rounds, []
        places = np.concatenate([each.places for each in rounds])
        sizes = [len(each.places) for each in rounds]
        base = np.repeat([each.base_seconds for each in rounds], sizes)
        token = np.repeat([each.token_seconds for each in rounds], sizes)
        at = places + num_places * np.arange(len(caps))[:, np.newaxis]

        def summed(drafted: Ints, committed: Ints, model: Floats | None) -> Floats:
            num_rounds, num_drafted = shorter_drafts(drafted, committed, caps)
            seconds = num_rounds * (base if model is None else base + model) + num_drafted * token
            tokens = np.broadcast_to(committed, num_rounds.shape)
            return np.stack([
                np.bincount(at.ravel(), values.ravel(), len(caps) * num_places)
                for values in (tokens, seconds, num_rounds)
            ]).reshape(3, len(caps), num_places)  # fmt: skip

        memory_drafted = np.concatenate([each.memory_drafted for each in rounds])
        memory_committed = np.concatenate([each.memory_committed for each in rounds])
        memory = summed(memory_drafted, memory_committed, None)
        if all(each.model_seconds is None for each in rounds):
            return ArmSums(caps, memory, memory)
        fused = summed(
            np.concatenate([each.drafted for each in rounds]),
            np.concatenate([each.committed for each in rounds]),
            np.concatenate([
                np.zeros(len(each.places)) if each.model_seconds is None else each.model_seconds
                for each in rounds
            ]),
        )  # fmt: skip
        return ArmSums(caps, memory, fused)


def shorter_drafts(drafted: Ints, committed: Ints, caps: Sequence[int]) -> tuple[Ints, Ints]:
    """`shorter_draft` of many rounds: rounds and drafted tokens, each (caps, rounds)."""
    most = np.array(caps, np.int64)[:, np.newaxis]
    num_rounds = -(-committed // (most + 1))
    before = num_rounds - 1
    left = np.clip(drafted - before * (most + 1), 0, most)
    return num_rounds, before * most + left


def told_aside(sums: ArmSums, arms: Sequence[Arm], pulled: Arm, place: int) -> dict[Arm, Outcome]:
    """What other arms would have given; no drafts are always among them, or were pulled."""
    return {arm: sums.outcome(arm, place) for arm in arms if arm != pulled and reveals(pulled, arm)}
