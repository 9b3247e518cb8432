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
OUTLIER: Final = 3.0
"""A pass that took so many times as long as expected, or so little, says nothing of the next."""
MOST_OUTLIERS: Final = 8
"""So many of them in a row are the new truth."""
LEAST_SHARE: Final = 0.1
"""No pass is expected to take less than this part of the mean."""


@dataclass(slots=True)
class _Plane:
    """Discounted means and moments about them, and the plane of least squares through them."""

    weight: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    moments: tuple[float, ...] = (0.0,) * 5

    def add(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        held = DISCOUNT * self.weight
        self.weight = held + 1.0
        requests, tokens = num_requests - self.requests, num_tokens - self.tokens
        time = seconds - self.seconds
        self.requests += requests / self.weight
        self.tokens += tokens / self.weight
        self.seconds += time / self.weight
        part = held / self.weight  # West 1979, with discounts
        products = (requests**2, requests * tokens, tokens**2, requests * time, tokens * time)
        self.moments = tuple(
            DISCOUNT * moment + part * product
            for moment, product in zip(self.moments, products, strict=True)
        )

    def at(self, num_requests: float, num_tokens: float) -> float:
        by_request, by_token = self.slopes()
        expected = (
            self.seconds
            + by_request * (num_requests - self.requests)
            + by_token * (num_tokens - self.tokens)
        )
        return max(expected, LEAST_SHARE * self.seconds)

    def slopes(self) -> tuple[float, float]:
        """Seconds a request and a token, neither negative."""
        requests, both, tokens, by_request, by_token = self.moments
        requests, tokens = requests + RIDGE, tokens + RIDGE
        determinant = requests * tokens - both * both  # positive: the ridge sees to it
        slopes = (
            (by_request * tokens - by_token * both) / determinant,
            (by_token * requests - by_request * both) / determinant,
        )
        if min(slopes) >= 0:
            return slopes
        alone = max(0.0, by_request) / requests, max(0.0, by_token) / tokens
        if alone[0] * by_request > alone[1] * by_token:  # the one that explains more
            return alone[0], 0.0
        return 0.0, alone[1]


class RoundCost:
    """Seconds of a forward pass: a part for the pass, one for each request, one for each token.

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
            f"{1e3 * self.request_seconds:.3f} a request, {1e3 * self.token_seconds:.3f} a token)"
        )

    @property
    def is_known(self) -> bool:
        """Whether enough passes were seen; if not, everything is said to cost 0."""
        return self._plane.weight >= LEAST_PASSES

    @property
    def token_seconds(self) -> float:
        """What one more token takes."""
        return self._plane.slopes()[1] if self.is_known else 0.0

    @property
    def request_seconds(self) -> float:
        """What one more request takes, beside its tokens."""
        return self._plane.slopes()[0] if self.is_known else 0.0

    @property
    def fixed_seconds(self) -> float:
        """What a pass takes, beside its requests and tokens."""
        return self.seconds(0, 0)

    def seconds(self, num_requests: float, num_tokens: float) -> float:
        """What a pass of so many requests and tokens is expected to take."""
        return self._plane.at(num_requests, num_tokens) if self.is_known else 0.0

    def learn(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """A pass took that long. The very first sets things up, and is not learned from."""
        if not self._has_begun:
            self._has_begun = True
            return
        if self._is_odd(self.seconds(num_requests, num_tokens), seconds):
            self._num_odd += 1
            if self._num_odd < MOST_OUTLIERS:
                return
            self._plane = _Plane()
        self._num_odd = 0
        self._plane.add(num_requests, num_tokens, seconds)

    def _is_odd(self, expected: float, seconds: float) -> bool:
        return self.is_known and not expected / OUTLIER <= seconds <= expected * OUTLIER
