"""A run of requests for each of which it is known what every arm would have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from paceline.policies.bandits import Arm, Outcome, PolicyContext

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        context: where the policy decides.
        outcomes: of each arm, whole request.
        aside: arm that may be pulled to what its rounds tell of others; an estimate, where a
            shorter draft would have gone on from elsewhere.
    """

    context: PolicyContext
    outcomes: tuple[Outcome, ...]
    aside: dict[Arm, dict[Arm, Outcome]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests in order, in segments within which nothing changes at once.

    Attributes:
        name: what the report calls it.
        arms: in the order of outcomes.
        requests: at least one.
        segments: index of each segment's first request; the first is 0.
        expected: seconds a token that each arm is expected to take for each request, (requests,
            arms); None: the mean over requests of the segment in the same context.
    """

    name: str
    arms: tuple[Arm, ...]
    requests: tuple[Request, ...]
    segments: tuple[int, ...]
    expected: Seconds | None = None

    def told_as_by_engines(self) -> Scenario:
        """The same, where a model's draft also tells what memory alone would have brought.

        Memory is asked in any case; what of its draft would have been right is known afterwards.
        """
        number = {arm: i for i, arm in enumerate(self.arms)}

        def told(request: Request, arm: Arm) -> dict[Arm, Outcome]:
            found, memory = request.aside.get(arm, {}), Arm("memory", max(arm.max_tokens, 1))
            if arm.sources != "both" or memory not in number:
                return found
            return {memory: request.outcomes[number[memory]], **told(request, memory), **found}

        requests = tuple(
            replace(each, aside={arm: told(each, arm) for arm in self.arms})
            for each in self.requests
        )
        return replace(self, requests=requests)

    def seconds(self) -> Seconds:
        """Seconds that each request takes with each arm, (requests, arms)."""
        return np.array([[o.seconds for o in each.outcomes] for each in self.requests])

    def bounds(self) -> Sequence[tuple[int, int]]:
        """First request of each segment, and the one behind its last."""
        ends = (*self.segments[1:], len(self.requests))
        return list(zip(self.segments, ends, strict=True))

    def seconds_a_token(self) -> Seconds:
        """As `expected`, worked out where it is None."""
        if self.expected is not None:
            return self.expected
        seconds = self.seconds()
        tokens = np.array([[o.num_tokens for o in each.outcomes] for each in self.requests])
        found = np.empty_like(seconds)
        for begin, end in self.bounds():
            by_context: dict[PolicyContext, list[int]] = {}
            for i in range(begin, end):
                by_context.setdefault(self.requests[i].context, []).append(i)
            for rows in by_context.values():
                found[rows] = seconds[rows].sum(axis=0) / tokens[rows].sum(axis=0)
        return found
