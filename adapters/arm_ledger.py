"""Rounds on their way to `ArmRounds`: what was handed out, what came of it, how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import sub

import msgspec

from paceline.adapters.arm_menu import NOWHERE
from paceline.adapters.arm_rounds import ArmRounds, ArmSums, RoundRows, Supposed
from paceline.adapters.arm_shadows import Shadows
from paceline.policies.round_split import RoundSplit, RoundTime

News = Callable[[], Mapping[str, Sequence[int]]]
"""Gives the tokens that requests got, where somebody wants to know them."""


class Issued(msgspec.Struct, frozen=True, eq=False):
    """What a round's requests were handed.

    Attributes:
        request_ids: of the round.
        num_tokens: that each had before it.
        places: whose sums each belongs to; None where nobody learns from the round.
        drafted: tokens to verify.
        with_model: for whom the model has drafted; None for nobody.
        model_seconds: what that took.
    """

    request_ids: list[str]
    num_tokens: Sequence[int]
    places: Sequence[int] | None
    drafted: Sequence[int]
    with_model: Sequence[bool] | None
    model_seconds: float


class _Closed(msgspec.Struct, frozen=True, eq=False):
    """What came of it, until it is known how long it took."""

    issued: Issued
    committed: Sequence[int]
    memory_drafted: Sequence[int]
    memory_committed: Sequence[int]
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
        request_ids: Sequence[str],
        num_tokens: Sequence[int],
        news: News,
        memory: Mapping[str, tuple[int, int]] | None,
        place_of: Callable[[str], int],
    ) -> None:
        """What was issued last was verified.

        Args:
            request_ids: see `ArmChoice.seen`, like all else but the last.
            num_tokens: of each.
            news: of each.
            memory: of some.
            place_of: whose sums a request belongs to.
        """
        issued, self._issued, self._closed = self._issued, None, None
        if issued is None:
            return
        if issued.request_ids == request_ids:
            committed = list(map(sub, num_tokens, issued.num_tokens))
        else:
            now = dict(zip(request_ids, num_tokens, strict=True))
            before = zip(issued.request_ids, issued.num_tokens, strict=True)
            committed = [now.get(i, 0) - num for i, num in before]
        drafted_alone, came_alone = issued.drafted, committed
        if memory:
            drafted_alone, came_alone = _alone(issued, committed, memory)
        supposed: list[tuple[int, int, int]] = []
        if self.shadows:
            now = self.shadows.among(request_ids, num_tokens)
            supposed = [
                (place_of(i), drafted, came) for i, drafted, came in self.shadows.saw(now, news())
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
        if issued.places is None:
            return
        num_drafted = time.num_tokens - num
        model: list[float] = []
        if issued.with_model is not None and issued.model_seconds > 0.0:
            each = issued.model_seconds * num / max(1, sum(issued.with_model))
            model = [each if had_model else 0.0 for had_model in issued.with_model]
        self._rounds.add(
            RoundRows(
                issued.places,
                issued.drafted,
                closed.committed,
                closed.memory_drafted,
                closed.memory_committed,
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
    issued: Issued, committed: Sequence[int], memory: Mapping[str, tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Drafted and committed tokens of each request, had memory drafted alone."""
    drafted, came = list(issued.drafted), list(committed)
    for place, request_id in enumerate(issued.request_ids):
        known = memory.get(request_id)
        if known is not None and committed[place] > 0:
            drafted[place], came[place] = known[0], known[1] + 1
    return drafted, came
