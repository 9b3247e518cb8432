"""What passes take by how many tokens they read, where that is no straight line.

Kernels and graphs come in sizes: a matrix product of one row may take as long as one of three, and
a captured graph for eight tokens as long with five. So the time of a pass goes up in steps, and a
token may cost nothing or as much as four. Which sizes these are is not asked but seen, pass by
pass.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

MOST_TOKENS: Final = 64
"""Drafted tokens in a pass; of more the straight line is good enough."""
MOST_REQUESTS: Final = 16
"""In a pass; beside more a step is small."""
LEAST_SHARE: Final = 0.03
"""What the newest pass counts for in its size's mean at least."""
LEVEL_SHARE: Final = 0.1
"""What a pass counts for in how fast the machine is now."""
KEPT: Final = 0.998
"""What a size's passes still count for after the next pass of any size: all is tried again."""
DOUBT: Final = 8.0
"""So many passes of a size speak for the straight line."""
LEAST_TRUST: Final = 0.5
"""Trust in a size from which on fewer tokens are taken to cost no more than it."""

Floats = npt.NDArray[np.float64]


class TokenSteps:
    """Means by requests and drafted tokens, beside a straight line where little was seen.

    The machine may become slower or faster for all sizes: that is one number, so that a size that
    was not seen for long is still right beside the others.
    """

    def __init__(self) -> None:
        self._level = 1.0
        self._num_passes = 0
        size = MOST_REQUESTS + 1, MOST_TOKENS + 1
        self._seconds = np.zeros(size)
        """Means at level 1; requests by drafted tokens, like all that follow."""
        self._context = np.zeros(size)
        self._seen = np.zeros(size)
        """Passes of the size, discounted up to the last one of them."""
        self._last = np.zeros(size)
        """Number of the last pass of the size."""

    def learn(
        self, num_requests: int, num_drafted: int, num_context: float, seconds: float
    ) -> None:
        """A pass took that long. O(1); of what has no place here nothing is learned."""
        if not (0 < num_requests <= MOST_REQUESTS and 0 <= num_drafted <= MOST_TOKENS):
            return
        at = num_requests, num_drafted
        self._num_passes += 1
        seen = self._seen[at] * KEPT ** (self._num_passes - self._last[at])
        if seen:
            ratio = seconds / max(self._level * self._seconds[at], 1e-12)
            self._level *= 1.0 + LEVEL_SHARE * (min(max(ratio, 0.5), 2.0) - 1.0)
        share = max(1.0 / (seen + 1.0), LEAST_SHARE)
        self._seconds[at] += share * (seconds / self._level - self._seconds[at])
        self._context[at] += share * (num_context - self._context[at])
        self._seen[at] = seen + 1.0
        self._last[at] = self._num_passes

    def corrected(
        self, line: Floats, num_requests: int, num_context: float, context_seconds: float
    ) -> Floats:
        """What passes of 0, 1, 2... drafted tokens take.

        Args:
            line: float64 (at most `MOST_TOKENS` + 1,). What a straight line says of them.
            num_requests: of each pass.
            num_context: of each pass.
            context_seconds: of one token of context.

        Returns:
            float64, like `line`; seconds. O(its length).
        """
        if not 0 < num_requests <= MOST_REQUESTS:
            return line
        at = num_requests, slice(0, len(line))
        seen = self._seen[at] * KEPT ** (self._num_passes - self._last[at])
        trust = seen / (seen + DOUBT)
        means = self._level * self._seconds[at]
        means += context_seconds * (num_context - self._context[at])
        # fewer tokens take no longer than a size that is known well: the line may be above it
        bound = np.where(trust >= LEAST_TRUST, means, np.inf)
        bound = np.minimum.accumulate(bound[::-1])[::-1]
        seconds: Floats = trust * means + (1.0 - trust) * np.minimum(line, bound)
        return np.maximum(seconds, 0.0)
