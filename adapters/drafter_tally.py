"""How often a model drafter is right on live traffic, by version and kind of work."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from typing import Final

from paceline.adapters.request_info import RequestInfo
from paceline.policies.canary import Seen

MAX_STRATA: Final = 512
"""Kinds of work that are told apart for each version; later ones count together."""
MAX_VERSIONS: Final = 4
"""Versions of which anything is kept, the latest ones."""
WINDOW_ROUNDS: Final = 8192.0
"""Rounds of a stratum after which all of them count for half: what was long ago matters less."""
EXPECTATIONS: Final = (0.5, 2.0)
"""Borders between strata, by how many tokens memory expects accepted: where memory knows, the text
is easy for a model too, and which rounds it is asked for changes with what it has learned."""
OTHERS: Final = ("", "", False, 0)

Stratum = tuple[str, str, bool, int]
"""Sharing scope, workload, whether the likeliest token is taken, and how much memory knew."""


def stratum_of(info: RequestInfo, *, is_greedy: bool) -> Stratum:
    """Whose rounds are compared with each other, before it is known what memory expects."""
    return info.scope, info.workload, is_greedy, 0


class DrafterTally:
    """Counts rounds of requests; written by the engine's thread, read by any.

    Args:
        version: of the drafter that runs.
    """

    def __init__(self, version: int = 0) -> None:
        self._lock = threading.Lock()
        self._version = version
        self._strata: dict[int, dict[Hashable, Seen]] = {version: {}}
        self._totals: dict[int, Seen] = {version: Seen()}

    def begin(self, version: int) -> None:
        """What follows is of that version; what it did earlier, if anything, still counts."""
        with self._lock:
            self._version = version
            self._strata[version] = self._strata.pop(version, {})
            self._totals[version] = self._totals.pop(version, Seen())
            while len(self._totals) > MAX_VERSIONS:
                oldest = next(iter(self._totals))
                del self._totals[oldest], self._strata[oldest]

    def note(
        self, stratum: Stratum, num_expected: float, guess: Sequence[int], committed: Sequence[int]
    ) -> None:
        """A round of a request has ended.

        Args:
            stratum: as `stratum_of` says.
            num_expected: tokens of memory's draft that were expected to be accepted.
            guess: the model's own likeliest next tokens, one after the other, at least one.
            committed: what the target said, at least one token.
        """
        num_right = 0
        for guessed, said in zip(guess, committed, strict=False):
            if guessed != said:
                break
            num_right += 1
        seen = Seen(1.0, float(num_right > 0), float(num_right))
        key = (*stratum[:3], bisect_right(EXPECTATIONS, num_expected))
        with self._lock:
            strata = self._strata[self._version]
            if key not in strata and len(strata) >= MAX_STRATA:
                key = OTHERS
            held = strata.get(key, Seen())
            if held.num_rounds >= WINDOW_ROUNDS:
                held = held.times(0.5)
            strata[key] = held + seen
            self._totals[self._version] += seen

    def strata(self, version: int) -> dict[Hashable, Seen]:
        """What a version did, by stratum, its latest rounds."""
        with self._lock:
            return dict(self._strata.get(version, {}))

    def total(self, version: int) -> Seen:
        """All that a version did here."""
        with self._lock:
            return self._totals.get(version, Seen())

    def totals(self) -> dict[int, Seen]:
        """The same of each version that is remembered."""
        with self._lock:
            return dict(self._totals)
