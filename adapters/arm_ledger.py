"""Rounds on their way to `ArmRounds`: what was handed out, what came of it, how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paceline.adapters.arm_menu import NOWHERE
from paceline.adapters.arm_rounds import ArmRounds, ArmSums, Ints, RoundRows, Supposed
from paceline.adapters.arm_shadows import Shadows
from paceline.policies.round_split import RoundSplit, RoundTime


@dataclass(frozen=True, slots=True, eq=False)
class Issued:
    """What a round's requests were handed.

    Attributes:
        request_ids: of the round.
        num_tokens: int64. That each had before it.
        places: int64. Whose sums each belongs to; `NOWHERE` for nobody's.
        drafted: int64. Tokens to verify.
        with_model: for whom the model has drafted; None for nobody.
        model_seconds: what that took.
    """

    request_ids: list[str]
    num_tokens: Ints
    places: Ints
    drafted: Ints
    with_model: Sequence[bool] | None
    model_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Closed:
    """What came of it, until it is known how long it took."""

    issued: Issued
    committed: Ints
    memory_drafted: Ints
    memory_committed: Ints
    supposed: Sequence[tuple[int, int, int]]
    """Place, drafted and committed tokens of drafts that nobody verified."""


class ArmLedger:
    """Puts together what an engine tells of its rounds piece by piece.

    A round is `issue`, `close` and `time`; the next one may be issued before this one is timed.

    Attributes:
        split: learns what rounds take.
        shadows: drafts that nobody verifies.
    """

    def __init__(self) -> None:
        self.split = RoundSplit()
        self.shadows = Shadows()
        self._rounds = ArmRounds()
        self._issued: Issued | None = None
        self._closed: _Closed | None = None

    def issue(self, issued: Issued) -> None:
        """A round's requests were handed that."""
        self._issued = issued

    def close(
        self,
        num_tokens: Mapping[str, int],
        news: Mapping[str, Sequence[int]],
        memory: Mapping[str, tuple[int, int]] | None,
        place_of: Callable[[str], int],
    ) -> None:
        """What was issued last was verified.

        Args:
            num_tokens: of each request that is there now; others teach nothing.
            news: tokens that each of them got.
            memory: see `ArmChoice.seen`.
            place_of: whose sums a request belongs to.
        """
        issued, self._issued, self._closed = self._issued, None, None
        if issued is None:
            return
        if list(num_tokens) == issued.request_ids:
            now = np.fromiter(num_tokens.values(), np.int64, len(num_tokens))
            committed = now - issued.num_tokens
        else:
            before = zip(issued.request_ids, issued.num_tokens.tolist(), strict=True)
            committed = np.array([num_tokens.get(i, 0) - num for i, num in before], np.int64)
        drafted_alone, came_alone = issued.drafted, committed
        if memory:
            drafted_alone, came_alone = _alone(issued, committed, memory)
        supposed = [
            (place_of(request_id), drafted, came)
            for request_id, drafted, came in self.shadows.saw(num_tokens, news)
        ]
        self._closed = _Closed(issued, committed, drafted_alone, came_alone, supposed)

    def time(self, time: RoundTime | None) -> None:
        """The round that was closed last took that long; None if its time says nothing."""
        closed, self._closed = self._closed, None
        split = None if time is None else self.split.learn(time)
        if time is None or split is None or closed is None:
            return
        num = time.num_requests
        for place, drafted, came in closed.supposed:
            if place != NOWHERE:
                added = self.split.added(num, drafted) * split.base_seconds
                token = added / drafted if drafted else 0.0
                self._rounds.suppose(Supposed(place, drafted, came, split.base_seconds, token))
        issued = closed.issued
        kept = (issued.places >= 0) & (closed.committed > 0)
        if not kept.any():
            return
        num_drafted = time.num_tokens - num
        model = None
        if issued.with_model is not None and issued.model_seconds > 0.0:
            has_model = np.asarray(issued.with_model, np.float64)
            model = (issued.model_seconds * num / max(1.0, has_model.sum()) * has_model)[kept]
        self._rounds.add(
            RoundRows(
                issued.places[kept],
                issued.drafted[kept],
                closed.committed[kept],
                closed.memory_drafted[kept],
                closed.memory_committed[kept],
                split.base_seconds,
                split.draft_seconds * num / num_drafted if num_drafted > 0 else 0.0,
                model,
            )
        )

    def take(self, num_places: int, caps: Sequence[int]) -> ArmSums | None:
        """Sum up all rounds and drop them, half known ones too; None if there are none."""
        self._issued = self._closed = None
        return self._rounds.take(num_places, caps) if len(self._rounds) else None

    def clear(self) -> None:
        """Drop all rounds, and watch nobody; what rounds take stays known."""
        self._issued = self._closed = None
        self._rounds.clear()
        self.shadows.clear()


def _alone(
    issued: Issued, committed: Ints, memory: Mapping[str, tuple[int, int]]
) -> tuple[Ints, Ints]:
    """Drafted and committed tokens of each request, had memory drafted alone."""
    rows = zip(issued.request_ids, issued.drafted.tolist(), committed.tolist(), strict=True)
    pairs = [
        (known[0], known[1] + 1) if (known := memory.get(i)) is not None else (drafted, came)
        for i, drafted, came in rows
    ]
    drafted, came = np.array(pairs, np.int64).reshape(-1, 2).T
    return drafted, came
