"""What a forward pass costs, learned from the passes that were run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.policies.token_steps import MOST_TOKENS, TokenSteps

DISCOUNT: Final = 0.98
"""What a pass still counts for after the next one."""
LEAST_PASSES: Final = 8
"""Passes before anything is said."""
RIDGE: Final = 1.0
"""Squared tokens (and requests) that speak for a slope of 0, so that noise makes none."""
PROMPT_RIDGE: Final = 1e2
"""The same of prompts, whose tokens come by the ten."""
CONTEXT_RIDGE: Final = 1e4
"""The same of contexts, whose tokens come by the hundred."""
OUTLIER: Final = 3.0
"""A pass that took so many times as long as expected, or so little, says nothing of the next."""
MOST_OUTLIERS: Final = 8
"""So many of them in a row are the new truth."""
LEAST_SHARE: Final = 0.1
"""No pass is expected to take less than this part of the mean."""

EAGER_PASSES: Final = 32
SOLVE_INTERVAL: Final = 5
"""Passes after which slopes are found anew, once there are so many: it takes longer than sums."""
PARTS: Final = ("request", "token", "context", "prompt")
"""What a pass's time is made of, beside a fixed part; the order of the arrays below."""
RIDGE_OF_ALL: Final = np.diag([RIDGE, RIDGE, CONTEXT_RIDGE, PROMPT_RIDGE])
AGES: Final = DISCOUNT ** np.arange(SOLVE_INTERVAL - 1, -1, -1)
"""What each of the last passes counts for when slopes are found, the last one all."""

Parts = tuple[float, float, float, float]
"""Requests, tokens, context and prompt of a pass, or seconds of one of each."""
NO_PARTS: Final[Parts] = (0.0, 0.0, 0.0, 0.0)


class _Plane:
    """Discounted means and moments about them, and the plane of least squares through them.

    Means are plain numbers: arrays of four take longer to make than to add. Moments are only of use
    where slopes are found, and are summed up then.

    Attributes:
        num_passes: that it goes through, discounted ones too.
        num_with_prompts: of them.
        slopes: seconds of each part, none negative.
    """

    def __init__(self) -> None:
        self.num_passes = 0
        self.num_with_prompts = 0
        self.slopes: Parts = NO_PARTS
        self._weight = 0.0
        self._means: Parts = NO_PARTS
        self._seconds = 0.0
        self._moments = np.zeros((len(PARTS), len(PARTS) + 1))
        """Of parts with parts, and in the last column with seconds."""
        self._rows: list[tuple[float, ...]] = []
        """Passes that are not in the moments yet: parts and seconds off the means, and weight."""

    def add(self, parts: Parts, seconds: float, weight: float) -> None:
        self.num_passes += 1
        self.num_with_prompts += bool(parts[3])
        held = DISCOUNT * self._weight
        self._weight = held + weight
        share = weight / self._weight
        means, time = self._means, seconds - self._seconds
        off = (
            parts[0] - means[0],
            parts[1] - means[1],
            parts[2] - means[2],
            parts[3] - means[3],
        )
        self._means = (
            means[0] + share * off[0],
            means[1] + share * off[1],
            means[2] + share * off[2],
            means[3] + share * off[3],
        )
        self._seconds += share * time
        self._rows.append((*off, time, held * share))
        if self.num_passes < EAGER_PASSES or not self.num_passes % SOLVE_INTERVAL:
            self._sum_up()
            self.slopes = self._solved()

    def at(self, parts: Parts) -> float:
        slopes, means = self.slopes, self._means
        expected = (
            self._seconds
            + slopes[0] * (parts[0] - means[0])
            + slopes[1] * (parts[1] - means[1])
            + slopes[2] * (parts[2] - means[2])
            + slopes[3] * (parts[3] - means[3])
        )
        return max(expected, LEAST_SHARE * self._seconds)

    def _sum_up(self) -> None:
        """Take the passes since the last time into the moments (West 1979, with discounts)."""
        rows = np.array(self._rows)
        off = rows[:, :-1]
        weights = rows[:, -1] * AGES[-len(rows) :]
        self._moments *= DISCOUNT ** len(rows)
        self._moments += (off[:, : len(PARTS)].T * weights) @ off
        self._rows.clear()

    def _solved(self) -> Parts:
        """Least squares without negative slopes: the part that would be most negative goes first.

        The ridge keeps every determinant positive.
        """
        square, with_time = self._moments[:, :-1] + RIDGE_OF_ALL, self._moments[:, -1]
        slopes = np.linalg.solve(square, with_time)
        if slopes.min() >= 0.0:
            a, b, c, d = slopes.tolist()
            return a, b, c, d
        left = np.arange(len(PARTS))
        while slopes.size and slopes.min() < 0.0:
            scales = np.sqrt(square[left, left])
            left = np.delete(left, int((slopes * scales).argmin()))
            slopes = np.linalg.solve(square[np.ix_(left, left)], with_time[left])
        found = [0.0] * len(PARTS)
        for part, slope in zip(left.tolist(), slopes.tolist(), strict=True):
            found[part] = slope
        a, b, c, d = found
        return a, b, c, d


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """What passes of the same requests take, by how many drafted tokens they verify beside.

    Attributes:
        seconds: float64 (at least 1,), of 0, 1, 2... tokens; the first is 0 if nothing is known.
        token_seconds: of each token beyond those.
    """

    seconds: npt.NDArray[np.float64]
    token_seconds: float

    @property
    def is_known(self) -> bool:
        """Whether it says anything."""
        return float(self.seconds[0]) > 0.0

    def at(self, num_more: int) -> float:
        """Seconds of a pass that verifies so many."""
        last = len(self.seconds) - 1
        if num_more <= last:
            return float(self.seconds[num_more])
        return float(self.seconds[last]) + self.token_seconds * (num_more - last)

    def beside(self, seconds: float) -> Ladder:
        """The same with so much more time in each pass; nothing where nothing is known."""
        if not self.is_known or not seconds:
            return self
        return Ladder(self.seconds + seconds, self.token_seconds)


class RoundCost:
    """Seconds of a pass: a part for the pass, one for each request, token and token of context.

    Least squares over discounted passes, so that what counts is the slope where the engine works
    now. No part is negative. Where tokens have not varied for long, a token costs nothing again,
    and drafts come back to show what it costs. A pass may also read prompts: these have a part of
    their own, and it counts for the less in the others, the more of it is prompt. Some sums,
    whatever was seen; everything but `ladder` is O(1).

    Beside that line stands what passes of each number of drafted tokens took (`TokenSteps`), as
    time goes up in steps: `ladder` tells both.
    """

    def __init__(self) -> None:
        self._plane = _Plane()
        self._steps = TokenSteps()
        self._has_begun = False
        self._num_odd = 0

    def __repr__(self) -> str:
        return (
            f"RoundCost({1e3 * self.fixed_seconds:.3f} ms a pass, "
            f"{1e3 * self.request_seconds:.3f} a request, {1e3 * self.token_seconds:.3f} a token, "
            f"{1e6 * self.context_seconds:.3f} for a thousand of context, "
            f"{1e3 * self.prompt_seconds:.3f} a token of a prompt)"
        )

    @property
    def is_known(self) -> bool:
        """Whether enough passes were seen; if not, everything is said to cost 0."""
        return self._plane.num_passes > LEAST_PASSES

    @property
    def token_seconds(self) -> float:
        """What one more token takes, by the straight line."""
        return self._slope(1)

    @property
    def request_seconds(self) -> float:
        """What one more request takes, beside its tokens and its context."""
        return self._slope(0)

    @property
    def context_seconds(self) -> float:
        """What one more token behind which a request's are read takes."""
        return self._slope(2)

    @property
    def prompt_seconds(self) -> float:
        """What one more token takes of a prompt that is read beside the requests."""
        return self._slope(3)

    @property
    def fixed_seconds(self) -> float:
        """What a pass takes, beside its requests, tokens, contexts and prompts."""
        return self.seconds(0, 0)

    def seconds(
        self,
        num_requests: float,
        num_tokens: float,
        num_context: float = 0.0,
        *,
        num_prompt: float = 0.0,
    ) -> float:
        """What a pass is expected to take, by the straight line.

        Args:
            num_requests: that are answered in it.
            num_tokens: that it reads of all of them.
            num_context: tokens that stand before these, of all requests together.
            num_prompt: tokens of prompts that it reads beside them.
        """
        if not self.is_known:
            return 0.0
        return self._plane.at((num_requests, num_tokens, num_context, num_prompt))

    def ladder(self, num_requests: int, num_context: float = 0.0) -> Ladder:
        """What passes of so many requests and 0, 1, 2... drafted tokens take. O(MOST_TOKENS).

        Of as many as were seen together before it says what they took; of others, and of more than
        `MOST_TOKENS`, what the straight line says.

        Args:
            num_requests: that are answered, with a token each.
            num_context: as of `seconds`.
        """
        if not self.is_known:
            return Ladder(np.zeros(1), 0.0)
        at_first = self._plane.at((num_requests, num_requests, num_context, 0.0))
        line = at_first + self.token_seconds * np.arange(MOST_TOKENS + 1, dtype=np.float64)
        seconds = self._steps.corrected(line, num_requests, num_context, self.context_seconds)
        return Ladder(seconds, self.token_seconds)

    def learn(
        self,
        num_requests: int,
        num_tokens: int,
        seconds: float,
        *,
        num_context: float = 0.0,
        num_prompt: int = 0,
    ) -> None:
        """A pass took that long. The very first sets things up, and is not learned from.

        Args: as of `seconds`.
        """
        if not self._has_begun:
            self._has_begun = True
            return
        parts = (num_requests, num_tokens, num_context, num_prompt)
        if self._is_odd(parts, seconds):
            self._num_odd += 1
            if self._num_odd < MOST_OUTLIERS:
                return
            self._plane = _Plane()
            self._steps = TokenSteps()
        self._num_odd = 0
        self._plane.add(parts, seconds, num_tokens / (num_tokens + num_prompt))
        if not num_prompt:
            self._steps.learn(num_requests, num_tokens - num_requests, num_context, seconds)

    def _slope(self, part: int) -> float:
        return self._plane.slopes[part] if self.is_known else 0.0

    def _is_odd(self, parts: Parts, seconds: float) -> bool:
        """Out of all proportion; what prompts take must be known to say it of a pass with some."""
        if not self.is_known or (parts[3] and self._plane.num_with_prompts <= LEAST_PASSES):
            return False
        expected = self._plane.at(parts)
        return not expected / OUTLIER <= seconds <= expected * OUTLIER
