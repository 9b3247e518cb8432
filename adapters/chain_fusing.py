"""Chains from memory and from a model drafter, fused for engines that verify chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.decisions import DecisionLog
from paceline.adapters.model_chains import Continued, ModelChains, Supposed, joined, suppose
from paceline.adapters.model_gate import Candidates, ModelGate
from paceline.adapters.verify_budget import Outlook, VerifyBudget
from paceline.caches import FusedBatch, Fusion, Source, TreeBatch

COUNTERS: Final = (
    "rounds_with_model",
    "rounds_without_model",
    "rows_memory",
    "rows_model",
    "rows_both",
    "drafted_memory",
    "drafted_model",
    "accepted_memory",
    "accepted_model",
    "drafted_behind",
    "accepted_behind",
    "tokens_cut",
)
"""What `ChainFuser.stats` counts: rounds, drafts by who drafted them, and their tokens.

Those "behind" are memory's tokens that follow one of the model's; those "cut" were not worth
verifying.
"""


OnJudged = Callable[[str, float, Sequence[int], Sequence[int]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """Memory's side of a round.

    Attributes:
        request_ids: of the batch.
        keys: int64, (requests,). Requests of one key share what is learned.
        limits: int32, (requests,). Most tokens for each.
        trees: what memory drafted, branches and all.
        chains: the best chain of each tree.
        outlook: on the round with these chains alone.
    """

    request_ids: Sequence[str]
    keys: npt.NDArray[np.int64]
    limits: npt.NDArray[np.int32]
    trees: TreeBatch
    chains: TreeBatch
    outlook: Outlook


@dataclass(frozen=True, slots=True)
class Reading:
    """What the model has to read of a request to draft for it: as in `Candidates`."""

    num_read: int
    num_late: int
    num_left: int


@dataclass(frozen=True, slots=True)
class _Issued:
    """A chain that was handed out, until it is known what became of it.

    Memory's own would have been cut at the same price.
    """

    key: int
    token_ids: list[int]
    is_model: list[bool]
    recalled: list[int]
    num_expected: float
    had_model: bool
    guess: list[int]
    """The model's own chain, empty where it is not counted."""


class ChainFuser:
    """Drafts chains from both, and learns from what is accepted.

    A round is `learn`, `recall`, `asked`, `suppose`, `fuse`. Not thread-safe.

    Args:
        min_probability: chains less likely than this are not drafted, in [0, 1].
        always_draft: the model drafts in every round, and nothing is cut, whatever it costs.
        on_judged: told of each chain of the model's that was judged: the request, tokens that
            memory expected accepted, the chain, and what the target said.
        decisions: counts what is decided for each request, None for nobody.

    Attributes:
        gate: decides for whom the model drafts.
        budget: decides which drafted tokens are verified.
        alone: by request for which the model had drafted in the round learned from last: how many
            tokens memory alone would have had verified, and how many of them accepted.
    """

    def __init__(
        self,
        *,
        min_probability: float = 0.1,
        always_draft: bool = False,
        on_judged: OnJudged = lambda *_: None,
        decisions: DecisionLog | None = None,
    ) -> None:
        self._decisions = decisions
        self.gate = ModelGate(most_late=MOST_LATE, takes_all=True, always_draft=always_draft)
        self.budget = VerifyBudget(always_draft=always_draft)
        self._min_probability = min_probability
        self._on_judged = on_judged
        self._fusion = Fusion(min_probability=min_probability)
        self.alone: dict[str, tuple[int, int]] = {}
        self._issued: dict[str, _Issued] = {}
        self._pending: tuple[FusedBatch, Sequence[str]] | None = None
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    def recall(
        self,
        request_ids: Sequence[str],
        keys: Sequence[int],
        limits: Sequence[int],
        trees: TreeBatch,
    ) -> Recalled:
        """What memory alone would draft: `trees` cut to chains."""
        recalled = Recalled(
            request_ids,
            np.array(keys, np.int64),
            np.array(limits, np.int32),
            trees,
            trees,
            NO_OUTLOOK,
        )
        chains, _ = self._fuse(recalled, None)
        return replace(recalled, chains=chains, outlook=self.budget.outlook(chains))

    def asked(self, recalled: Recalled, readings: Sequence[Reading | None]) -> list[int]:
        """For whom the model is to draft in this round; for nobody if it is to rest.

        Args:
            recalled: memory's side.
            readings: of its requests, then of requests of the batch that memory does not draft for;
                None where the model may not.
        """
        num_others = len(readings) - len(recalled.request_ids)
        keys = [*recalled.keys.tolist(), *([NOBODY] * num_others)]
        expected = [*recalled.outlook.expected.tolist(), *([0.0] * num_others)]
        places = [i for i, each in enumerate(readings) if each is not None]
        known = [each for each in readings if each is not None]
        chosen = self.gate.asked(
            Candidates(
                [keys[i] for i in places],
                [expected[i] for i in places],
                [each.num_read for each in known],
                [each.num_late for each in known],
                [each.num_left for each in known],
            ),
            base_tokens=recalled.outlook.tokens,
            base_seconds=recalled.outlook.seconds,
        )
        return [places[i] for i in chosen]

    def suppose(self, recalled: Recalled, model: ModelChains) -> Supposed:
        """The model's tokens behind which memory is to be asked."""
        return suppose(model, recalled.limits, min_probability=self._min_probability)

    def fuse(
        self,
        recalled: Recalled,
        model: ModelChains | None,
        continued: Continued | None = None,
        *,
        drafting_seconds: float = 0.0,
        is_counted: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The chains to verify, one for each request.

        Args:
            recalled: memory's side.
            model: the model's, with a row for each request; None where it has not run.
            continued: what memory drafts behind the model's tokens; None where it was not asked.
            drafting_seconds: what the model has taken.
            is_counted: for each request, whether its chain says how well the model drafts; None:
                all do.
        """
        self._counts["rounds_without_model" if model is None else "rounds_with_model"] += 1
        chains = recalled.chains
        if model is not None:
            if continued is not None:
                recalled = replace(recalled, trees=joined(recalled.trees, continued))
            chains, batch = self._fuse(recalled, model)
            self._pending = batch, recalled.request_ids
        num_kept = self.budget.cut(chains, drafting_seconds=drafting_seconds)
        self._counts["tokens_cut"] = self.budget.num_cut
        drafted, chains = chains, chains.first(num_kept)
        by_memory = recalled.chains.first(self.budget.num_worth(recalled.chains)).token_lists()
        is_sound = [False] * len(recalled.request_ids) if model is None else model.is_sound.tolist()
        is_model = (chains.source == Source.MODEL).tolist()
        token_ids = chains.token_lists()
        keys, expected = recalled.keys.tolist(), recalled.outlook.expected.tolist()
        guesses = _guesses(model, is_sound if is_counted is None else is_counted)
        for i, (start, stop) in enumerate(pairwise(chains.offsets.tolist())):
            issued = _Issued(
                *(keys[i], token_ids[i], is_model[start:stop], by_memory[i], expected[i]),
                *(is_sound[i], guesses[i] if guesses else []),
            )
            self._count_drafted(issued)
            self._issued[recalled.request_ids[i]] = issued
        if self._decisions is not None:
            self._decisions.issue(recalled.request_ids, drafted, num_kept.tolist(), is_sound)
        return token_ids

    def learn(self, committed: Mapping[str, Sequence[int]]) -> None:
        """Learn what became of the last round's chains.

        Args:
            committed: tokens that the target committed to each request since; requests that are not
                in it teach nothing.
        """
        if self._pending is not None:
            batch, request_ids = self._pending
            self._pending = None
            rows = [committed.get(request_id, ()) for request_id in request_ids]
            self._fusion.learn(
                batch,
                np.array(list(chain.from_iterable(rows)), np.int32),
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
            )
        self.alone = {}
        for request_id, issued in self._issued.items():
            if request_id in committed:
                self._learn_from(request_id, issued, committed[request_id])
                if issued.guess and committed[request_id]:
                    said = committed[request_id]
                    self._on_judged(request_id, issued.num_expected, issued.guess, said)
        self._issued = {}

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._fusion.forget(key)
        self.gate.forget(key)

    def renew(self) -> None:
        """Another model drafts from now on; what was learned of the one before is dropped."""
        self._fusion = Fusion(min_probability=self._min_probability)
        self.gate.renew()
        self._pending = None
        self._issued = {}

    def stats(self) -> dict[str, int]:
        """What `COUNTERS` names."""
        return dict(self._counts)

    def _fuse(self, recalled: Recalled, model: ModelChains | None) -> tuple[TreeBatch, FusedBatch]:
        trees = recalled.trees
        offsets, token_ids, parent, prob, source, batch = self._fusion.fuse(
            trees.offsets,
            trees.token_ids,
            trees.parent,
            trees.prob,
            trees.source,
            *_places(model, len(recalled.request_ids)),
            keys=recalled.keys,
            max_tokens=recalled.limits,
            max_branches=1,
        )
        return TreeBatch(offsets, token_ids, parent, prob, source), batch

    def _count_drafted(self, issued: _Issued) -> None:
        num_model = sum(issued.is_model)
        num_memory = len(issued.is_model) - num_model
        self._counts["drafted_model"] += num_model
        self._counts["drafted_memory"] += num_memory
        self._counts["drafted_behind"] += num_behind(issued.is_model)
        if num_model or num_memory:
            who = "both" if num_model and num_memory else "model" if num_model else "memory"
            self._counts[f"rows_{who}"] += 1

    def _learn_from(self, request_id: str, issued: _Issued, committed: Sequence[int]) -> None:
        num_accepted = num_leading(issued.token_ids, committed)
        num_model = sum(issued.is_model[:num_accepted])
        self._counts["accepted_model"] += num_model
        self._counts["accepted_memory"] += num_accepted - num_model
        self._counts["accepted_behind"] += num_behind(issued.is_model[:num_accepted])
        if issued.had_model and committed:
            num_more = len(issued.token_ids) - len(issued.recalled)
            num_alone = num_leading(issued.recalled, committed)
            self.alone[request_id] = len(issued.recalled), num_alone
            num_gained: float = num_accepted - num_alone
            num_gained -= self.budget.worth(num_more)
            self.gate.learn(issued.key, issued.num_expected, num_gained)


MOST_LATE: Final = 512
"""Tokens missed in earlier rounds that a round reads at most, one request's apart."""
NO_OUTLOOK: Final = Outlook(0.0, 0.0, np.zeros(0))
NOBODY: Final = 0
"""Key of requests that memory cannot draft for; nothing is learned for it."""


def _places(
    model: ModelChains | None, num_requests: int
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
]:
    """The model's chains as the places that `Fusion` knows: each extends the one before it."""
    if model is None:
        nothing = np.zeros(0, np.int32)
        offsets = np.zeros(num_requests + 1, np.int64)
        return offsets, nothing, nothing, nothing, np.zeros(0, np.float32)
    sound = model.is_sound
    num_sound, num_steps = int(sound.sum()), model.token_ids.shape[1]
    token = np.zeros((num_sound, num_steps), np.int32)
    token[:, 1:] = model.token_ids[sound, :-1]
    return (
        np.cumsum([0, *(sound * num_steps)], dtype=np.int64),
        np.tile(np.arange(-1, num_steps - 1, dtype=np.int32), num_sound),
        token.reshape(-1),
        np.ascontiguousarray(model.top_token[sound], np.int32).reshape(-1),
        np.clip(model.top_prob[sound], 0.0, 1.0).astype(np.float32).reshape(-1),
    )


def _guesses(model: ModelChains | None, is_counted: Sequence[bool]) -> list[list[int]]:
    """The model's own chain for each request, by what it finds likeliest; empty if not counted."""
    if model is None:
        return []
    first = model.top_token[:, 0, 0].tolist()
    chains = model.token_ids.tolist()
    counted = (model.is_sound & np.asarray(is_counted, np.bool_)).tolist()
    return [
        [top, *chain_ids[1:]] if counts else []
        for top, chain_ids, counts in zip(first, chains, counted, strict=True)
    ]


def num_behind(is_model: Sequence[bool]) -> int:
    """Tokens of memory's that follow one of the model's in a chain."""
    return len(is_model) - is_model.index(True) - sum(is_model) if True in is_model else 0


def num_leading(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return min(len(one), len(other))
