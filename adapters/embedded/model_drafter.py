"""A small model that drafts beside memory, and reads what memory drafts.

It drafts for those requests for which that is worth its time (`RoundBudget`); what others commit it
reads when they are next chosen. Its first pass of a round reads that and memory's whole tree behind
it, so that it has an opinion on every retrieved branch, and branches of its own everywhere, at the
price of one pass. Further passes go on where the draft ends so far, a token each, while that is
likely enough and worth the pass: at the end of the best chain, or of all branches of a tree, whose
beginnings are read again (dynamic draft trees: Li et al., EAGLE-2, arXiv 2406.16858). Behind what
it drafts itself memory is asked once more, which may know how that goes on (`Continuing`).
Where the target samples, it drafts what the target would draw with its probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from paceline.adapters.drafter_tally import DrafterTally
from paceline.adapters.embedded.continuing import Continuing, Memory
from paceline.adapters.embedded.draft_places import DraftWish, Places, TokenPath, paths_of
from paceline.adapters.embedded.prefixes import PrefixStore, num_common
from paceline.adapters.embedded.readings import Reading, Readings
from paceline.adapters.embedded.round_budget import Asking, RoundBudget
from paceline.adapters.embedded.target import PREFILL_TOKENS, Row, Target
from paceline.caches import FusedBatch, Fusion, TokenTree
from paceline.caches.tree import ROOT
from paceline.errors import ConfigError

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class _Further:
    """Where a further pass would go on from for a request.

    Attributes:
        known: paths that have been read and lead there, each behind what it goes on from.
        unread: those that have not, in such an order.
        gain: tokens that are expected of the next one behind each of their ends.
    """

    known: list[TokenPath]
    unread: list[TokenPath]
    gain: float


@dataclass(frozen=True, slots=True)
class _Pending:
    """A round that the model drafted in, until it is known what became of it.

    Attributes:
        batch: what fusion learns from.
        wishes: of the requests that it drafted for.
        guesses: the model's own chain for each.
        num_expected: tokens of memory's draft for each that were expected to be accepted.
    """

    batch: FusedBatch
    wishes: list[DraftWish]
    guesses: list[list[int]]
    num_expected: list[float]


class ModelDrafter:
    """Drafts from a small model, fused with what memory drafts.

    Args:
        model: with the target's tokenizer.
        target: what verifies.
        max_steps: most passes a round.
        max_branches: most nodes that continue one; 1 gives chains.
        min_probability: paths less likely than this are not drafted.
        budget: decides whom it drafts for; None: for all.
        tally: counts how often it is right.
        memory: what is asked how its tokens go on; None for nothing.
        prefixes: keeps what it has read of requests that have ended, for those that begin alike;
            None keeps nothing.

    Raises:
        ConfigError: the two do not share a vocabulary.
    """

    def __init__(
        self,
        model: Target,
        target: Target,
        *,
        max_steps: int = 4,
        max_branches: int = 1,
        min_probability: float = 0.1,
        budget: RoundBudget | None = None,
        tally: DrafterTally | None = None,
        memory: Memory | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        require_same_tokens(model, target)
        self.tally = DrafterTally() if tally is None else tally
        self._budget = RoundBudget(always_draft=True) if budget is None else budget
        self._model = model
        self._memory = memory
        self._max_steps = max_steps
        self._max_branches = max_branches
        self._min_probability = min_probability
        self._fusion = Fusion(min_probability=min_probability)
        self._readings = Readings(model.sequence, prefixes)
        self._pending: _Pending | None = None

    @property
    def num_passes(self) -> int:
        """Forward passes so far."""
        return self._budget.counts.model_passes

    def begin(self, request_id: str, owner: str = "") -> None:
        """Open a request; its prompt is read when the model first drafts for it.

        Args:
            request_id: whose.
            owner: whose later requests may go on from what is read of it, "" for nobody's.
        """
        self._readings.begin(request_id, owner)

    def finish(self, request_id: str) -> None:
        """Close a request."""
        self._readings.finish(request_id)

    def swap(self, model: Target) -> None:
        """Draft with another model from the next round on, as if it had always been this one.

        What the one before has read of running requests is dropped, as keys and values of its
        weights are not this one's; it is read again like what was missed in a rest. So is what was
        learned of how it drafts, and the round that is not judged yet. O(1) but for what is freed.

        Args:
            model: with the target's tokens (`require_same_tokens`).
        """
        costs_same = (model.shape, model.num_head_rows) == (
            self._model.shape,
            self._model.num_head_rows,
        )
        self._readings.renew(model.sequence)
        self._model = model
        self._fusion = Fusion(min_probability=self._min_probability)
        self._budget.renew(costs_same=costs_same)
        self._pending = None

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._fusion.forget(key)
        self._budget.forget(key)

    def propose(self, wishes: Sequence[DraftWish]) -> list[TokenTree]:
        """Drafts, one for each wish: fused ones, and memory's where the model rests."""
        self._learn(wishes)
        if not wishes:
            return []
        trees, _ = self._fuse(wishes, None, [wish.retrieved for wish in wishes])
        asking = [self._asking(wish, tree) for wish, tree in zip(wishes, trees, strict=True)]
        asked = self._budget.asked(asking)
        if asked:
            drafted = self._draft(wishes, trees, asked)
            for i, tree in zip(asked, drafted, strict=True):
                self._budget.issue(asking[i], tree)
                trees[i] = tree
        return trees

    def _asking(self, wish: DraftWish, recalled: TokenTree) -> Asking:
        num_unread = len(wish.tokens) - self._readings.num_read(wish.request_id, wish.tokens)
        num_fresh = min(num_unread, wish.max_tokens + 1)  # what one round commits at most
        return Asking(
            request_id=wish.request_id,
            key=wish.key,
            recalled=recalled,
            num_read=num_fresh + len(wish.judged),
            num_late=num_unread - num_fresh,
            num_left=wish.num_left,
        )

    def _draft(
        self, everyone: Sequence[DraftWish], recalled: Sequence[TokenTree], asked: Sequence[int]
    ) -> list[TokenTree]:
        """Fused drafts of those that are asked."""
        wishes = [everyone[i] for i in asked]
        places = [Places(wish.draws) for wish in wishes]
        self._read_memory(wishes, places)
        now = dict(enumerate(recalled))
        behind = Continuing(self._memory, wishes)
        trees, batch = self._fuse_on(wishes, places, behind)
        for _ in range(self._max_steps - 1):
            now.update(zip(asked, trees, strict=True))
            further = [self._further(*of) for of in zip(wishes, places, trees, strict=True)]
            going = [i for i, its in enumerate(further) if its.unread]
            worth = self._budget.going_on(
                [further[i].gain for i in going],
                [self._num_further(further[i]) for i in going],
                list(now.values()),
            )
            if not worth:
                break
            going = [going[i] for i in worth]
            self._read_on(
                [wishes[i] for i in going], [places[i] for i in going], [further[i] for i in going]
            )
            trees, batch = self._fuse_on(wishes, places, behind)
        self._pending = _Pending(
            batch,
            wishes,
            [place.own_chain() for place in places],
            [float(recalled[i].path_probabilities().sum()) for i in asked],
        )
        return trees

    def _read_memory(self, wishes: Sequence[DraftWish], places: Sequence[Places]) -> None:
        """Read what was committed and memory's trees behind it."""
        rows: list[Row] = []
        num_late = 0
        for wish, place in zip(wishes, places, strict=True):
            reading = self._readings.resume(wish.request_id, wish.tokens)
            self._read_prompt(wish, reading)
            tree = wish.judged
            for path in paths_of(tree):
                place.add(path)
            unread = wish.tokens[len(reading.key_values) :].tolist()
            num_late += max(0, len(unread) - wish.max_tokens - 1)
            rows.append(
                Row(
                    request_id=wish.request_id,
                    key_values=reading.key_values,
                    token_ids=[*unread, *tree.token_ids.tolist()],
                    parents=tree.parent.tolist(),
                    num_logits=len(tree.token_ids) + 1,
                )
            )
        self._hear(rows, places, num_late=num_late)
        for wish in wishes:
            reading = self._readings.of(wish.request_id)
            reading.key_values.crop(len(wish.tokens))
            reading.tokens = wish.tokens.copy()

    def _read_prompt(self, wish: DraftWish, reading: Reading) -> None:
        """Read all but the last tokens, a part at a time."""
        while (held := len(reading.key_values)) < len(wish.tokens) - PREFILL_TOKENS:
            row = Row(
                request_id=wish.request_id,
                key_values=reading.key_values,
                token_ids=wish.tokens[held : held + PREFILL_TOKENS].tolist(),
                num_logits=0,
            )
            self._hear([row], [], num_late=PREFILL_TOKENS)

    def _further(self, wish: DraftWish, place: Places, tree: TokenTree) -> _Further:
        """The ends of a draft that it has not read, likely enough and with room behind them."""
        paths = paths_of(tree)
        has_children = set(tree.parent.tolist())
        chances = tree.path_probabilities()
        ends = [
            i for i, path in enumerate(paths)
            if i not in has_children and path not in place.paths
            and len(path) < wish.max_tokens and chances[i] >= self._min_probability
        ]  # fmt: skip
        there = sorted({paths[i][: n + 1] for i in ends for n in range(len(paths[i]))}, key=len)
        return _Further(
            [path for path in there if path in place.paths],
            [path for path in there if path not in place.paths],
            # taken to be as sure of the next token as the draft is of its last one
            float(sum(chances[i] * tree.prob[i] for i in ends)),
        )

    def _num_further(self, further: _Further) -> int:
        """Tokens that reading on takes: those of a tree are read again with the last one before."""
        if self._max_branches == 1:
            return len(further.unread)
        return 1 + len(further.known) + len(further.unread)

    def _read_on(
        self, wishes: Sequence[DraftWish], places: Sequence[Places], further: Sequence[_Further]
    ) -> None:
        """Read each request's draft to its ends."""
        chained = self._max_branches == 1
        rows: list[Row] = []
        for wish, place, its in zip(wishes, places, further, strict=True):
            rows.append(self._row_of_chain(wish, its) if chained else self._row_of_tree(wish, its))
            for path in its.unread:
                place.add(path)
        self._hear(rows, places, is_further=True)
        if not chained:
            for wish in wishes:
                self._readings.of(wish.request_id).key_values.crop(len(wish.tokens))

    def _row_of_chain(self, wish: DraftWish, further: _Further) -> Row:
        """What was read of the chain stays; memory's may be some tokens further."""
        reading = self._readings.of(wish.request_id)
        text = np.concatenate([wish.tokens, np.array(further.unread[-1], np.int32)])
        held = num_common(reading.tokens, text)
        reading.key_values.crop(held)
        reading.tokens = text
        return Row(
            request_id=wish.request_id,
            key_values=reading.key_values,
            token_ids=text[held:].tolist(),
            num_logits=len(further.unread),
        )

    def _row_of_tree(self, wish: DraftWish, further: _Further) -> Row:
        """Behind the last committed token, which is read again as well."""
        reading = self._readings.of(wish.request_id)
        reading.key_values.crop(len(wish.tokens) - 1)
        nodes = {path: i for i, path in enumerate([*further.known, *further.unread])}
        return Row(
            request_id=wish.request_id,
            key_values=reading.key_values,
            token_ids=[int(wish.tokens[-1]), *(path[-1] for path in nodes)],
            parents=[nodes.get(path[:-1], ROOT) for path in nodes],
            num_logits=len(further.unread),
        )

    def _hear(
        self,
        rows: Sequence[Row],
        places: Sequence[Places],
        *,
        num_late: int = 0,
        is_further: bool = False,
    ) -> None:
        """One pass; the places that have no opinion yet get theirs."""
        num_tokens = sum(len(row.token_ids) for row in rows)
        with self._budget.drafter_pass(
            len(rows), num_tokens, num_late=num_late, is_further=is_further
        ):
            logits = self._model.forward(rows)
            for place, of_row in zip(places, logits, strict=False):
                place.add_top(of_row, self._model.head_token_ids)

    def _fuse_on(
        self, wishes: Sequence[DraftWish], places: Sequence[Places], behind: Continuing
    ) -> tuple[list[TokenTree], FusedBatch]:
        """As `_fuse`, with what memory drafts behind the model's tokens."""
        fused = self._fuse(wishes, places, behind.retrieved)
        if behind.go_on(fused[0]):
            fused = self._fuse(wishes, places, behind.retrieved)
        return fused

    def _fuse(
        self,
        wishes: Sequence[DraftWish],
        places: Sequence[Places] | None,
        trees: Sequence[TokenTree],
    ) -> tuple[list[TokenTree], FusedBatch]:
        """Memory's drafts, `trees`, with what the model says, or by themselves."""
        if places is None:
            places = [Places(wish.draws, parent=[], token=[], paths={}) for wish in wishes]
        offsets, token_ids, parent, prob, source, batch = self._fusion.fuse(
            np.cumsum([0, *(len(tree.token_ids) for tree in trees)], dtype=np.int64),
            np.concatenate([tree.token_ids for tree in trees]),
            np.concatenate([tree.parent for tree in trees]),
            np.concatenate([tree.prob for tree in trees]),
            np.concatenate([tree.source for tree in trees]),
            np.cumsum([0, *(len(place.parent) for place in places)], dtype=np.int64),
            np.array([parent for place in places for parent in place.parent], np.int32),
            np.array([token for place in places for token in place.token], np.int32),
            _joined([top for place in places for top in place.top_token], np.int32),
            _joined([top for place in places for top in place.top_prob], np.float32),
            keys=np.array([wish.key for wish in wishes], np.int64),
            max_tokens=np.array([wish.max_tokens for wish in wishes], np.int32),
            max_branches=self._max_branches,
        )
        fused = [
            TokenTree(token_ids[a:b], parent[a:b], prob[a:b], source[a:b])
            for a, b in pairwise(offsets.tolist())
        ]
        return fused, batch

    def _learn(self, wishes: Sequence[DraftWish]) -> None:
        """Learn from what has become of the last round's drafts."""
        if self._pending is None:
            return
        pending = self._pending
        self._pending = None
        now = {wish.request_id: wish.tokens for wish in wishes}
        committed = {
            wish.request_id: now.get(wish.request_id, wish.tokens)[len(wish.tokens) :].tolist()
            for wish in pending.wishes
        }
        rows = list(committed.values())
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        said = np.array(list(chain.from_iterable(rows)), np.int32)
        self._fusion.learn(pending.batch, said, offsets)
        self._budget.learn(committed)
        for wish, guess, num_expected, row in zip(
            pending.wishes, pending.guesses, pending.num_expected, rows, strict=True
        ):
            if guess and row:
                self.tally.note(wish.stratum, num_expected, guess, row)


def require_same_tokens(model: Target, target: Target) -> None:
    """Check that a model can draft for a target.

    Raises:
        ConfigError: the two do not share a vocabulary.
    """
    sizes = [int(each.model.config.vocab_size) for each in (model, target)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the drafter has {sizes[0]} tokens and the target {sizes[1]}; give a drafter with "
            "the target's tokenizer"
        )


def _joined(rows: Sequence[npt.NDArray[T]], dtype: type[T]) -> npt.NDArray[T]:
    """One after the other; of the type also where there are none."""
    return np.concatenate(rows) if rows else np.zeros(0, dtype)
