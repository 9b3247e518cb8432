"""What a round's drafts may cost: whom the model drafts for, how long, and what is verified.

All by one rule, tokens a second (`paceline.policies.draft_budget`), from two things that are
learned: what passes of the target and of the drafter take, and what the drafter has added to
memory's drafts. The choice is the batch's, as the time of its passes is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from paceline.adapters.embedded.target import PREFILL_TOKENS
from paceline.adapters.model_gate import Candidates, ModelGate
from paceline.adapters.verify_budget import VerifyBudget
from paceline.caches import TokenTree, TreeBatch
from paceline.policies.draft_budget import worth_their_time
from paceline.policies.round_cost import RoundCost

TYPICAL_TOKENS: Final = 64
"""Late tokens up to which a pass of the drafter tells what others take: reading is cheaper."""
SHARE_OF_NEXT: Final = 0.1
"""What the next round counts for in the mean of what further passes take."""


@dataclass(slots=True)
class DraftCounts:
    """Totals since the start; written by the engine's thread only.

    Attributes:
        rounds_with_model: rounds in which the model drafted for some request.
        rounds_without_model: rounds in which it rested, though requests might have had it.
        model_requests: requests that it drafted for, counted in each round.
        model_passes: its forward passes, those that read prompts included.
        model_late_tokens: tokens that it read later than in the round after them.
        cut_tokens: drafted tokens that were not worth verifying.
    """

    rounds_with_model: int = 0
    rounds_without_model: int = 0
    model_requests: int = 0
    model_passes: int = 0
    model_late_tokens: int = 0
    cut_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Asking:
    """A request that the model might draft for in this round.

    Attributes:
        request_id: whose.
        recalled: the draft of memory alone.
        key: as in `Candidates`, like all that follows.
        num_read: tokens that the model would read in any case.
        num_late: tokens that it has missed in earlier rounds.
        num_left: most tokens that the request will still say.
    """

    request_id: str
    recalled: TokenTree
    key: int
    num_read: int
    num_late: int
    num_left: int


@dataclass(frozen=True, slots=True)
class _Issued:
    """What the model made of a draft, until it is known what became of it."""

    key: int
    num_expected: float
    recalled: TokenTree
    drafted: TokenTree


class RoundBudget:
    """Decides for each round, and learns from it.

    A round is `begin`, `learn`, `asked`, `drafter_pass` and `going_on` for each pass of the
    drafter, `issue`, `cut`, and `note_target`. Not thread-safe.

    Args:
        always_draft: the model drafts for all, as long as it can, and nothing is cut, whatever it
            costs.
        clock: monotonic seconds.

    Attributes:
        counts: of what was decided.
    """

    def __init__(
        self, *, always_draft: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.counts = DraftCounts()
        self._clock = clock
        self._always_draft = always_draft
        self._verify = VerifyBudget(always_draft=always_draft)
        self._gate = ModelGate(most_late=PREFILL_TOKENS, always_draft=always_draft)
        self._issued: dict[str, _Issued] = {}
        self._drafting_seconds = 0.0
        self._further_seconds = 0.0
        self._further_each = 0.0
        """What further passes take in a round, for each request that is in the first."""
        self._num_asked = 0

    @property
    def verify(self) -> VerifyBudget:
        """Decides which drafted tokens are verified."""
        return self._verify

    @property
    def drafting_seconds(self) -> float:
        """What the model has taken in this round so far."""
        return self._drafting_seconds

    @property
    def drafter(self) -> RoundCost:
        """What passes of the drafter take."""
        return self._gate.cost

    def begin(self, num_requests: int, *, num_context: int = 0) -> None:
        """A round begins, of so many requests that are being answered, behind so many tokens."""
        self._verify.begin(num_requests, num_context=num_context)
        if self._num_asked:
            each = self._further_seconds / self._num_asked
            self._further_each += SHARE_OF_NEXT * (each - self._further_each)
        self._num_asked = 0
        self._drafting_seconds = self._further_seconds = 0.0

    def learn(self, committed: Mapping[str, Sequence[int]]) -> None:
        """Learn what the model has added to the last round's drafts.

        Args:
            committed: tokens that the target committed since, by request; requests that are not in
                it teach nothing.
        """
        for request_id, issued in self._issued.items():
            tokens = committed.get(request_id)
            if tokens:
                drafted, recalled = self._verified(issued.drafted), self._verified(issued.recalled)
                gained = drafted.num_followed(tokens) - recalled.num_followed(tokens)
                cost = self._verify.worth(len(drafted) - len(recalled))
                self._gate.learn(issued.key, issued.num_expected, gained - cost)
        self._issued = {}

    def with_model(self) -> frozenset[str]:
        """Requests for which the model has drafted in this round."""
        return frozenset(self._issued)

    def alone(self, committed: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
        """What memory alone would have had of the round, for each request that the model was with.

        Args:
            committed: as for `learn`, which comes after it.

        Returns:
            Tokens that would have been verified, and how many of them accepted.
        """
        found = {}
        for request_id, issued in self._issued.items():
            if tokens := committed.get(request_id):
                recalled = self._verified(issued.recalled)
                found[request_id] = len(recalled), recalled.num_followed(tokens)
        return found

    def asked(self, asking: Sequence[Asking]) -> list[int]:
        """Which of them the model drafts for, in rising order (`ModelGate.asked`)."""
        outlook = self._verify.outlook(TreeBatch.of([each.recalled for each in asking]))
        chosen = self._gate.asked(
            Candidates(
                [each.key for each in asking],
                outlook.expected.tolist(),
                [each.num_read for each in asking],
                [each.num_late for each in asking],
                [each.num_left for each in asking],
            ),
            base_tokens=outlook.tokens,
            base_seconds=outlook.seconds,
            further_seconds=self._further_each,
        )
        if asking:
            self.counts.rounds_with_model += bool(chosen)
            self.counts.rounds_without_model += not chosen
        self._num_asked = len(chosen)
        self.counts.model_requests += len(chosen)
        self.counts.model_late_tokens += sum(asking[i].num_late for i in chosen)
        return chosen

    def going_on(
        self, gains: Sequence[float], num_tokens: Sequence[int], trees: Sequence[TokenTree]
    ) -> list[int]:
        """Which drafts the model goes on from with another pass, in rising order.

        Args:
            gains: tokens that are expected of that, of each draft whose ends it has not read.
            num_tokens: that it would read for each.
            trees: all drafts of the round as they are now.
        """
        if self._always_draft:
            return list(range(len(gains)))
        now = TreeBatch.of(trees)
        outlook = self._verify.outlook(now, drafting_seconds=self._drafting_seconds)
        each = self.drafter.request_seconds + outlook.further_seconds(len(gains))
        return worth_their_time(
            gains,
            [each + self.drafter.token_seconds * num for num in num_tokens],
            fixed_seconds=self.drafter.fixed_seconds,
            base_tokens=outlook.tokens,
            base_seconds=outlook.seconds,
        )

    @contextmanager
    def drafter_pass(
        self, num_requests: int, num_tokens: int, *, num_late: int = 0, is_further: bool = False
    ) -> Iterator[None]:
        """Around a pass of the drafter and what is made of it.

        Args:
            num_requests: in the pass.
            num_tokens: read by it.
            num_late: of those, read later than in the round after them.
            is_further: whether it goes on from the end of chains.
        """
        self.counts.model_passes += 1
        began_at = self._clock()
        yield
        seconds = self._clock() - began_at
        self._drafting_seconds += seconds
        if is_further:
            self._further_seconds += seconds
        if num_late <= TYPICAL_TOKENS:
            self.drafter.learn(num_requests, num_tokens, seconds)

    def issue(self, asking: Asking, drafted: TokenTree) -> None:
        """The model has made that of a request's draft."""
        self._issued[asking.request_id] = _Issued(
            asking.key, float(asking.recalled.path_probabilities().sum()), asking.recalled, drafted
        )

    def has_issued(self, request_id: str) -> bool:
        """Whether the model has drafted for a request in this round."""
        return request_id in self._issued

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """Drafts without what is not worth verifying; their nodes come likeliest path first."""
        kept = self._verify.cut(TreeBatch.of(trees), drafting_seconds=self._drafting_seconds)
        self.counts.cut_tokens = self._verify.num_cut
        return [tree.first(num) for tree, num in zip(trees, kept.tolist(), strict=True)]

    def spent(self, num_tokens: int) -> tuple[float, float]:
        """As `VerifyBudget.spent`, the model's drafting included."""
        return self._verify.spent(num_tokens, drafting_seconds=self._drafting_seconds)

    def note_target(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """The target's pass of the round, of answers alone, and what was made of it took that."""
        self._verify.learn(num_requests, num_tokens, seconds)

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._gate.forget(key)

    def renew(self, *, costs_same: bool) -> None:
        """Another model drafts from now on (`ModelGate.renew`)."""
        self._gate.renew(costs_same=costs_same)
        self._issued = {}
        self._num_asked = 0
        if not costs_same:
            self._further_each = 0.0

    @property
    def is_judging(self) -> bool:
        """Whether a new version of the model is judged, and tried more often where it rests."""
        return self._gate.is_judging

    @is_judging.setter
    def is_judging(self, is_judging: bool) -> None:
        self._gate.is_judging = is_judging

    def _verified(self, tree: TokenTree) -> TokenTree:
        """What of a draft was worth verifying in the last round."""
        (num_nodes,) = self._verify.num_worth(TreeBatch.of([tree])).tolist()
        return tree.first(num_nodes)
