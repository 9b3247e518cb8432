"""What a forward pass costs, learned from the passes that were run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DISCOUNT: Final = 0.98
"""What a pass still counts for after the next one."""
LEAST_PASSES: Final = 8.0
"""Passes, discounted, before anything is said."""
RIDGE: Final = 1.0
"""Squared tokens (and requests) that speak for a slope of 0, so that noise makes none."""
CONTEXT_RIDGE: Final = 1e4
"""The same of a context, whose tokens come by the hundred."""
OUTLIER: Final = 3.0
"""A pass that took so many times as long as expected, or so little, says nothing of the next."""
MOST_OUTLIERS: Final = 8
"""So many of them in a row are the new truth."""
LEAST_SHARE: Final = 0.1
"""No pass is expected to take less than this part of the mean."""


Parts = tuple[float, float, float]
"""Of a pass: requests, tokens, context."""
NOTHING: Final[Parts] = (0.0, 0.0, 0.0)
PAIRS: Final = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
"""Places of the moments of `_Plane`."""
SUBSETS: Final = ((1,), (0,), (2,), (0, 1), (1, 2), (0, 2))
"""Parts that may cost something where all three together would make one negative."""


@dataclass(slots=True)
class _Plane:
    """Discounted means and moments about them, and the plane of least squares through them."""

    weight: float = 0.0
    means: Parts = NOTHING
    seconds: float = 0.0
    moments: tuple[float, ...] = (0.0,) * 6
    with_time: Parts = NOTHING
    slopes: Parts = NOTHING
    """Seconds of each part, none negative."""

    def add(self, parts: Parts, seconds: float) -> None:
        held = DISCOUNT * self.weight
        self.weight = held + 1.0
        off = (parts[0] - self.means[0], parts[1] - self.means[1], parts[2] - self.means[2])
        time = seconds - self.seconds
        share = 1.0 / self.weight
        self.means = (
            self.means[0] + off[0] * share,
            self.means[1] + off[1] * share,
            self.means[2] + off[2] * share,
        )
        self.seconds += time * share
        part = held * share  # West 1979, with discounts
        self.moments = tuple(
            DISCOUNT * moment + part * off[i] * off[j]
            for moment, (i, j) in zip(self.moments, PAIRS, strict=True)
        )
        self.with_time = (
            DISCOUNT * self.with_time[0] + part * off[0] * time,
            DISCOUNT * self.with_time[1] + part * off[1] * time,
            DISCOUNT * self.with_time[2] + part * off[2] * time,
        )
        self.slopes = self._solved()

    def at(self, parts: Parts) -> float:
        expected = self.seconds
        for slope, part, mean in zip(self.slopes, parts, self.means, strict=True):
            expected += slope * (part - mean)
        return max(expected, LEAST_SHARE * self.seconds)

    def _solved(self) -> Parts:
        """Least squares without negative slopes: of all sets of parts, the one that explains most.

        A ridge keeps every determinant positive.
        """
        aa, ab, ac, bb, bc, cc = self.moments
        aa, bb, cc = aa + RIDGE, bb + RIDGE, cc + CONTEXT_RIDGE
        a, b, c = self.with_time
        first, second, third = bb * cc - bc * bc, ac * bc - ab * cc, ab * bc - ac * bb
        determinant = aa * first + ab * second + ac * third
        if determinant > 0.0:
            slopes = (
                (a * first + b * second + c * third) / determinant,
                (a * second + b * (aa * cc - ac * ac) + c * (ab * ac - aa * bc)) / determinant,
                (a * third + b * (ab * ac - aa * bc) + c * (aa * bb - ab * ab)) / determinant,
            )
            if min(slopes) >= 0.0:
                return slopes
        best, most = NOTHING, 0.0
        square = {(0, 0): aa, (0, 1): ab, (0, 2): ac, (1, 1): bb, (1, 2): bc, (2, 2): cc}
        for chosen in SUBSETS:
            found = [0.0, 0.0, 0.0]
            if len(chosen) == 1:
                (i,) = chosen
                found[i] = self.with_time[i] / square[i, i]
            else:
                i, j = chosen
                both = square[i, j]
                scale = square[i, i] * square[j, j] - both * both
                found[i] = (self.with_time[i] * square[j, j] - self.with_time[j] * both) / scale
                found[j] = (self.with_time[j] * square[i, i] - self.with_time[i] * both) / scale
            if min(found) < 0.0:
                continue
            explained = found[0] * a + found[1] * b + found[2] * c
            if explained > most:
                best, most = (found[0], found[1], found[2]), explained
        return best


class RoundCost:
    """Seconds of a pass: a part for the pass, one for each request, token and token of context.

    Least squares over discounted passes, so that what counts is the slope where the engine works
    now. No part is negative. Where tokens have not varied for long, a token costs nothing again,
    and drafts come back to show what it costs. Some sums, whatever was seen; everything is O(1).
    """

    def __init__(self) -> None:
        self._plane = _Plane()
        self._has_begun = False
        self._num_odd = 0

    def __repr__(self) -> str:
        return (
            f"RoundCost({1e3 * self.fixed_seconds:.3f} ms a pass, "
            f"{1e3 * self.request_seconds:.3f} a request, {1e3 * self.token_seconds:.3f} a token, "
            f"{1e6 * self.context_seconds:.3f} for a thousand of context)"
        )

    @property
    def is_known(self) -> bool:
        """Whether enough passes were seen; if not, everything is said to cost 0."""
        return self._plane.weight >= LEAST_PASSES

    @property
    def token_seconds(self) -> float:
        """What one more token takes."""
        return self._plane.slopes[1] if self.is_known else 0.0

    @property
    def request_seconds(self) -> float:
        """What one more request takes, beside its tokens and its context."""
        return self._plane.slopes[0] if self.is_known else 0.0

    @property
    def context_seconds(self) -> float:
        """What one more token behind which a request's are read takes."""
        return self._plane.slopes[2] if self.is_known else 0.0

    @property
    def fixed_seconds(self) -> float:
        """What a pass takes, beside its requests, tokens and contexts."""
        return self.seconds(0, 0)

    def seconds(self, num_requests: float, num_tokens: float, num_context: float = 0.0) -> float:
        """What a pass is expected to take.

        Args:
            num_requests: in it.
            num_tokens: that it reads of all of them.
            num_context: tokens that stand before these, of all requests together.
        """
        if not self.is_known:
            return 0.0
        return self._plane.at((num_requests, num_tokens, num_context))

    def learn(
        self, num_requests: int, num_tokens: int, seconds: float, *, num_context: float = 0.0
    ) -> None:
        """A pass took that long. The very first sets things up, and is not learned from."""
        if not self._has_begun:
            self._has_begun = True
            return
        if self._is_odd(self.seconds(num_requests, num_tokens, num_context), seconds):
            self._num_odd += 1
            if self._num_odd < MOST_OUTLIERS:
                return
            self._plane = _Plane()
        self._num_odd = 0
        self._plane.add((num_requests, num_tokens, num_context), seconds)

    def _is_odd(self, expected: float, seconds: float) -> bool:
        return self.is_known and not expected / OUTLIER <= seconds <= expected * OUTLIER
