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

import numpy as np
import numpy.typing as npt

from paceline.adapters.embedded.target import PREFILL_TOKENS
from paceline.adapters.model_gain import ModelGain, Patience
from paceline.caches import TokenTree
from paceline.policies.draft_budget import least_chance, worth_their_time
from paceline.policies.round_cost import RoundCost

Chances = npt.NDArray[np.float64]
"""Of a tree's nodes, those before them included."""
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
class Candidate:
    """A request that the model might draft for in this round.

    Attributes:
        request_id: whose.
        key: of those that may share what is learned.
        recalled: the draft of memory alone.
        num_read: tokens that the model would read in any case, committed and drafted ones.
        num_late: tokens that it has missed in earlier rounds, the prompt at first.
        num_left: most tokens that the request will still say.
    """

    request_id: str
    key: int
    recalled: TokenTree
    num_read: int
    num_late: int
    num_left: int


@dataclass(frozen=True, slots=True)
class _Issued:
    """What the model made of a draft, until it is known what became of it."""

    key: int
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
        target: what its passes take.
        drafter: what its passes take.
        counts: of what was decided.
    """

    def __init__(
        self, *, always_draft: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.target = RoundCost()
        self.drafter = RoundCost()
        self.counts = DraftCounts()
        self._clock = clock
        self._always_draft = always_draft
        self._gain = ModelGain()
        self._patience = Patience()
        self._issued: dict[str, _Issued] = {}
        self._price = 0.0
        """Chance below which a drafted token was not worth verifying, in the last round."""
        self._num_requests = 0
        self._drafting_seconds = 0.0
        self._further_seconds = 0.0
        self._further_each = 0.0
        """What further passes take in a round, for each request that is in the first."""
        self._num_asked = 0

    def begin(self, num_requests: int) -> None:
        """A round begins, of so many requests that are being answered."""
        self._num_requests = num_requests
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
                gained = self._worth(issued.drafted, tokens) - self._worth(issued.recalled, tokens)
                self._gain.learn(issued.key, _expected(issued.recalled), gained)
        self._issued = {}

    def asked(self, candidates: Sequence[Candidate]) -> list[int]:
        """Which of them the model drafts for, in rising order.

        A key that has gone without the model for long has it tried, on the request that it has
        missed least of.
        """
        if self._always_draft:
            chosen = list(range(len(candidates)))
        else:
            chosen = self._within_reading(candidates, self._worth_asking(candidates))
            chosen = sorted({*chosen, *self._tried(candidates, chosen)})
        if candidates:
            self.counts.rounds_with_model += bool(chosen)
            self.counts.rounds_without_model += not chosen
        self._num_asked = len(chosen)
        self.counts.model_requests += len(chosen)
        self.counts.model_late_tokens += sum(candidates[i].num_late for i in chosen)
        return chosen

    def going_on(self, going: Sequence[TokenTree], trees: Sequence[TokenTree]) -> list[int]:
        """Which chains the model goes on from with another pass, in rising order.

        It is taken to be as sure of the next token as the draft is of its last one.

        Args:
            going: chains whose end it has not read.
            trees: all drafts of the round as they are now.
        """
        if self._always_draft:
            return list(range(len(going)))
        chances = [tree.path_probabilities() for tree in trees]
        gains = [float(tree.path_probabilities()[-1] * tree.prob[-1]) for tree in going]
        tokens, seconds = self._round(chances, self._price_of(chances))
        each = self.drafter.request_seconds + self.drafter.token_seconds + self.target.token_seconds
        return worth_their_time(
            gains,
            [each] * len(going),
            fixed_seconds=self.drafter.fixed_seconds,
            base_tokens=tokens,
            base_seconds=seconds,
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

    def issue(self, candidate: Candidate, drafted: TokenTree) -> None:
        """The model has made that of a request's draft."""
        self._issued[candidate.request_id] = _Issued(candidate.key, candidate.recalled, drafted)

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """Drafts without what is not worth verifying; their nodes come likeliest path first."""
        if self._always_draft:
            return list(trees)
        chances = [tree.path_probabilities() for tree in trees]
        self._price = self._price_of(chances)
        kept = [
            tree.first(_num_worth(each, self._price))
            for tree, each in zip(trees, chances, strict=True)
        ]
        self.counts.cut_tokens += sum(map(len, trees)) - sum(map(len, kept))
        return kept

    def note_target(self, num_requests: int, num_tokens: int, seconds: float) -> None:
        """The target's pass, of answers alone, and what was made of it took that long."""
        self.target.learn(num_requests, num_tokens, seconds)

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._gain.forget(key)
        self._patience.forget(key)

    def _worth_asking(self, candidates: Sequence[Candidate]) -> list[int]:
        chances = [candidate.recalled.path_probabilities() for candidate in candidates]
        tokens, seconds = self._round(chances, self._price_of(chances))
        expected = [_expected(candidate.recalled) for candidate in candidates]
        gains = [
            self._gain.expected(candidate.key, num_tokens)
            for candidate, num_tokens in zip(candidates, expected, strict=True)
        ]
        return worth_their_time(
            gains,
            [
                self._asking_seconds(candidate, 1.0 + num_tokens + gain)
                for candidate, num_tokens, gain in zip(candidates, expected, gains, strict=True)
            ],
            fixed_seconds=self.drafter.fixed_seconds,
            base_tokens=tokens,
            base_seconds=seconds,
        )

    def _asking_seconds(self, candidate: Candidate, tokens_a_round: float) -> float:
        """What one request adds to the drafter's passes of a round.

        What was missed is read once, for all rounds that the request still has.
        """
        num_rounds = max(1.0, candidate.num_left / tokens_a_round)
        num_tokens = candidate.num_read + candidate.num_late / num_rounds
        return (
            self.drafter.request_seconds
            + num_tokens * self.drafter.token_seconds
            + self._further_each
        )

    def _within_reading(self, candidates: Sequence[Candidate], chosen: list[int]) -> list[int]:
        """As many as have missed no more than a pass reads, together; one at least.

        Those that have missed least go first: the others wait, as replies do not.
        """
        room = PREFILL_TOKENS
        kept: list[int] = []
        for i in sorted(chosen, key=lambda i: candidates[i].num_late):
            room -= candidates[i].num_late
            if room < 0 and kept:
                break
            kept.append(i)
        return kept

    def _tried(self, candidates: Sequence[Candidate], chosen: Sequence[int]) -> list[int]:
        """For each key that has waited for long enough, one request."""
        with_model = {candidates[i].key for i in chosen}
        by_key: dict[int, int] = {}
        for i, candidate in enumerate(candidates):
            least = by_key.setdefault(candidate.key, i)
            if candidate.num_late < candidates[least].num_late:
                by_key[candidate.key] = i
        tried = [
            i for key, i in by_key.items() if key not in with_model and self._patience.is_over(key)
        ]
        with_model |= {candidates[i].key for i in tried}
        for key in by_key:
            self._patience.note(key, has_run=key in with_model)
        return tried

    def _price_of(self, chances: Sequence[Chances]) -> float:
        return least_chance(
            (chance for each in chances for chance in each.tolist()),
            base_tokens=float(self._num_requests),
            base_seconds=self._seconds(0),
            token_seconds=self.target.token_seconds,
        )

    def _round(self, chances: Sequence[Chances], price: float) -> tuple[float, float]:
        """Tokens and seconds of the round, if what is worth it is verified."""
        kept = [each[: _num_worth(each, price)] for each in chances]
        num_tokens = self._num_requests + sum(float(each.sum()) for each in kept)
        return num_tokens, self._seconds(sum(map(len, kept)))

    def _seconds(self, num_drafted: int) -> float:
        """Of the round, so many drafted tokens verified; 0 if unknown."""
        if not self.target.is_known:
            return 0.0
        num_tokens = self._num_requests + num_drafted
        return self._drafting_seconds + self.target.seconds(self._num_requests, num_tokens)

    def _worth(self, tree: TokenTree, committed: Sequence[int]) -> float:
        """Tokens that a draft has brought, less what verifying it was worth."""
        num_nodes = _num_worth(tree.path_probabilities(), self._price)
        return tree.first(num_nodes).num_followed(committed) - self._price * num_nodes


def _expected(tree: TokenTree) -> float:
    return float(tree.path_probabilities().sum())


def _num_worth(chances: Chances, price: float) -> int:
    """Nodes before the first that is not likelier than that."""
    unlikely = chances <= price
    return int(unlikely.argmax()) if unlikely.any() else len(chances)
