"""What rounds of vLLM take: from the beginning of one to that of the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from paceline.policies.round_cost import RoundCost
from paceline.policies.round_split import RoundTime


@dataclass(slots=True)
class _Round:
    began_at: float
    num_requests: int
    num_tokens: int
    num_context: int
    is_answering: bool
    is_odd: bool
    drafting_seconds: float


class RoundClock:
    """Teaches a `RoundCost` what rounds take without a model's drafting.

    Scheduling, sampling and vLLM's own books count, as they are part of each round. Rounds that
    read prompts say nothing of others, and nothing is learned where the engine may have waited
    for something to do.

    Args:
        cost: learns.
        clock: monotonic seconds.

    Attributes:
        model_seconds: what a model's drafting has taken in the round.
        ended: the round before, None where its time says nothing.
        is_odd: set where the next round is drafted for as none would be: it teaches nothing.
    """

    def __init__(self, cost: RoundCost, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.model_seconds = 0.0
        self.ended: RoundTime | None = None
        self.is_odd = False
        self._cost = cost
        self._clock = clock
        self._round: _Round | None = None

    @property
    def is_answering(self) -> bool:
        """Whether the round reads no prompt."""
        return self._round is not None and self._round.is_answering

    def begin(self, scheduler_output: Any) -> None:
        """A step begins; vLLM's `scheduler_output` says what the target reads in it."""
        now, ended = self._clock(), self._round
        num_tokens: dict[str, int] = scheduler_output.num_scheduled_tokens
        self.ended = None
        goes_on = bool(num_tokens) and not scheduler_output.scheduled_new_reqs
        if ended is not None and ended.is_answering and goes_on:
            seconds = now - ended.began_at - self.model_seconds
            if not ended.is_odd:
                self._cost.learn(
                    ended.num_requests, ended.num_tokens, seconds, num_context=ended.num_context
                )
            self.ended = RoundTime(ended.num_requests, ended.num_tokens, seconds)
        drafted = scheduler_output.scheduled_spec_decode_tokens
        is_answering = bool(num_tokens) and all(
            num <= 1 + len(drafted.get(request_id, ())) for request_id, num in num_tokens.items()
        )
        self._round = _Round(
            now,
            len(num_tokens),
            sum(num_tokens.values()),
            sum(scheduler_output.scheduled_cached_reqs.num_computed_tokens),
            is_answering,
            self.is_odd,
            self.model_seconds,
        )
        self.is_odd = False
        self.model_seconds = 0.0

    def spent(self) -> tuple[float, float]:
        """Expected seconds of the round, drafting its drafts included, and without drafts.

        Zeros where it reads a prompt, or while nothing is known.
        """
        now = self._round
        if now is None or not now.is_answering or not self._cost.is_known:
            return 0.0, 0.0
        seconds = self._cost.seconds(now.num_requests, now.num_tokens, now.num_context)
        undrafted = self._cost.seconds(now.num_requests, now.num_requests, now.num_context)
        return seconds + now.drafting_seconds, undrafted

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Around a model's passes."""
        began_at = self._clock()
        try:
            yield
        finally:
            self.model_seconds += self._clock() - began_at
