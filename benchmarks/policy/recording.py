"""Rewards from recorded agent traces: memory's drafts replayed with each cap.

No model runs: how many rounds a reply takes, how much was drafted and how much accepted is what
`paceline bench replay` counts, and what a round takes is a cost model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from paceline.benchmarks.policy.rewards import RewardRow, Triple
from paceline.benchmarks.replay.base import num_accepted
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.benchmarks.replay.episodes import Scope
from paceline.benchmarks.replay.run import Request, requests_of
from paceline.errors import ConfigError
from paceline.policies.bandits import NO_DRAFTS, Arm, default_arms, shorter_draft

MIN_PROBABILITY: Final = 0.1
KEY: Final = "tenant:recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTime:
    """What a round takes: a part for the round, one for each request, one for each token.

    Attributes:
        fixed_seconds: for the round.
        request_seconds: for each request in it.
        token_seconds: for each token verified, a request's own first one included.
        batch: requests in each round, all alike.
    """

    fixed_seconds: float
    request_seconds: float
    token_seconds: float
    batch: int

    def __post_init__(self) -> None:
        parts = (self.fixed_seconds, self.request_seconds, self.token_seconds)
        if min(parts) < 0 or sum(parts) <= 0:
            raise ConfigError(f"a round's parts take {parts} seconds; give none below 0, one above")
        if self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}; give 1 or more")

    def seconds(self, num_rounds: float, num_drafted: float) -> float:
        """Rounds in each of which all requests draft as much as this one does."""
        by_request = self.batch * (self.request_seconds + self.token_seconds)
        drafted_seconds = self.batch * self.token_seconds * num_drafted
        return num_rounds * (self.fixed_seconds + by_request) + drafted_seconds


@dataclass(slots=True)
class Replayed:
    """One reply with one cap.

    Attributes:
        drafted: tokens drafted in each round.
        accepted: of these, accepted.
    """

    drafted: list[int]
    accepted: list[int]

    def outcome(self, time: RoundTime) -> Triple:
        """Tokens, seconds and rounds."""
        num_tokens, num_rounds = sum(self.accepted) + len(self.accepted), len(self.accepted)
        return float(num_tokens), time.seconds(num_rounds, sum(self.drafted)), float(num_rounds)

    def aside(self, time: RoundTime, cap: int) -> Triple:
        """The same with a shorter cap, as far as these rounds tell."""
        rounds = zip(self.drafted, self.accepted, strict=True)
        needed = [shorter_draft(drafted, accepted, cap) for drafted, accepted in rounds]
        num_rounds, num_drafted = map(sum, zip(*needed, strict=True))
        num_tokens = sum(self.accepted) + len(self.accepted)
        return float(num_tokens), time.seconds(num_rounds, num_drafted), float(num_rounds)


def record_scope(
    scope: Scope, time: RoundTime, *, advance: Callable[[int], None] = lambda _: None
) -> Iterator[RewardRow]:
    """Every reply of a scope of two tokens or more, memory starting cold. O(arms x tokens).

    Args:
        scope: what is replayed.
        time: what rounds take.
        advance: told how many output tokens have been replayed since the last call.
    """
    arms = default_arms()
    drafters = {
        arm: PacelineDrafter(min_probability=MIN_PROBABILITY) for arm in arms if arm.max_tokens
    }
    for request in requests_of(scope):
        seen = {arm: _replay(drafter, request, arm) for arm, drafter in drafters.items()}
        num_rounds = len(request.output_ids) - 1
        seen[NO_DRAFTS] = Replayed([0] * num_rounds, [0] * num_rounds)
        advance(len(request.output_ids))
        if num_rounds > 0:
            yield _row(request, scope, arms, seen, time)


def _replay(drafter: PacelineDrafter, request: Request, arm: Arm) -> Replayed:
    request_id, output_ids = request.request_id, request.output_ids
    drafter.start(request_id, request.session_id, request.scope, request.prompt_ids)
    drafter.commit(request_id, output_ids[:1])
    seen = Replayed([], [])
    position = 1
    while position < len(output_ids):
        draft = drafter.propose(request_id, arm.max_tokens)
        accepted = num_accepted(draft, output_ids, position)
        committed = output_ids[position : position + accepted + 1]
        drafter.commit(request_id, committed)
        position += len(committed)
        seen.drafted.append(len(draft.token_ids))
        # at the end of a reply the token behind the accepted ones is one of them
        seen.accepted.append(len(committed) - 1)
    drafter.finish(request_id)
    return seen


def _row(
    request: Request,
    scope: Scope,
    arms: Sequence[Arm],
    seen: dict[Arm, Replayed],
    time: RoundTime,
) -> RewardRow:
    return RewardRow(
        key=KEY,
        workload=request.workload,
        batch=time.batch,
        tokens=len(request.prompt_ids),
        segment=scope.name,
        half=request.subset.partition("/")[0],
        arms={arm.name: seen[arm].outcome(time) for arm in arms},
        aside={
            arm.name: {
                other.name: seen[arm].aside(time, other.max_tokens)
                for other in arms
                if other != arm and arm.reveals(other)
            }
            for arm in arms
        },
    )
