"""What rounds of vLLM take: from the beginning of one to that of the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from paceline.policies.round_cost import RoundCost
from paceline.policies.round_split import RoundTime

LEAST_ANSWERING: Final = 0.5
"""A round of which prompts take more than the rest says nothing of the rest on its own."""


@dataclass(slots=True)
class _Round:
    """A step of vLLM.

    Attributes:
        began_at: in the clock's seconds.
        num_requests: that are answered in it.
        num_tokens: that the target reads of these.
        num_context: tokens that stand before them.
        num_prompt: tokens of prompts that the target reads in it as well.
        is_odd: it is drafted for as none would be.
        goes_on: some request of it was in work before: the engine has not waited for it.
        drafting_seconds: that a model took for its drafts.
    """

    began_at: float
    num_requests: int
    num_tokens: int
    num_context: int
    num_prompt: int
    is_odd: bool
    goes_on: bool
    drafting_seconds: float


class RoundClock:
    """Teaches a `RoundCost` what rounds take without a model's drafting.

    Scheduling, sampling and vLLM's own books count, as they are part of each round. Nothing is
    learned of rounds in which nobody is answered, and where the engine may have waited for
    something to do: no request went on.

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
        round_ = self._round
        return round_ is not None and round_.num_requests > 0 and not round_.num_prompt

    def begin(self, scheduler_output: Any) -> None:
        """A step begins; vLLM's `scheduler_output` says what the target reads in it."""
        now, ended = self._clock(), self._round
        self.ended = None
        began = _round_of(
            scheduler_output, now, is_odd=self.is_odd, drafting_seconds=self.model_seconds
        )
        if ended is not None and ended.num_requests and began.goes_on:
            self._learn(ended, now - ended.began_at - self.model_seconds)
        self._round = began
        self.is_odd = False
        self.model_seconds = 0.0

    def spent(self) -> tuple[float, float]:
        """Expected seconds of the round, drafting its drafts included, and without drafts.

        What it reads of prompts beside does not count. Zeros where nobody is answered, or while
        nothing is known.
        """
        now = self._round
        if now is None or not now.num_requests or not self._cost.is_known:
            return 0.0, 0.0
        ladder = self._cost.ladder(now.num_requests, now.num_context)
        seconds = ladder.at(now.num_tokens - now.num_requests)
        return seconds + now.drafting_seconds, ladder.at(0)

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Around a model's passes."""
        began_at = self._clock()
        try:
            yield
        finally:
            self.model_seconds += self._clock() - began_at

    def _learn(self, ended: _Round, seconds: float) -> None:
        if not ended.is_odd:
            self._cost.learn(
                ended.num_requests,
                ended.num_tokens,
                seconds,
                num_context=ended.num_context,
                num_prompt=ended.num_prompt,
            )
        without = seconds - self._cost.prompt_seconds * ended.num_prompt
        if without >= LEAST_ANSWERING * seconds:
            self.ended = RoundTime(ended.num_requests, ended.num_tokens, without)


def _round_of(
    scheduler_output: Any, now: float, *, is_odd: bool, drafting_seconds: float
) -> _Round:
    """The step that begins; more tokens than one and the drafted ones are of a prompt."""
    drafted = scheduler_output.scheduled_spec_decode_tokens
    cached = scheduler_output.scheduled_cached_reqs
    context = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    goes_on = bool(cached.req_ids)
    began = _Round(
        now, 0, 0, 0, 0, is_odd=is_odd, goes_on=goes_on, drafting_seconds=drafting_seconds
    )
    for request_id, num in scheduler_output.num_scheduled_tokens.items():
        if request_id in context and num <= 1 + len(drafted.get(request_id, ())):
            began.num_requests += 1
            began.num_tokens += num
            began.num_context += context[request_id]
        else:
            began.num_prompt += num
    return began
