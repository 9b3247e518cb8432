"""Drafting for the engine's requests, so that nothing that goes wrong in it reaches the target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.arm_choice import ArmChoice
from paceline.adapters.arm_menu import ArmCaps
from paceline.adapters.drafter_tally import stratum_of
from paceline.adapters.embedded.draft_places import DraftWish
from paceline.adapters.embedded.model_drafter import ModelDrafter
from paceline.adapters.embedded.prefixes import owner_of
from paceline.adapters.embedded.requests import ALL_SOURCES, DraftSource
from paceline.adapters.embedded.round_budget import RoundBudget
from paceline.adapters.embedded.sampling import NextDraws
from paceline.adapters.embedded.target import Target
from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import DraftLimits
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import TokenTree
from paceline.policies.round_split import RoundTime

logger = logging.getLogger("paceline.embedded")


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next.

    Attributes:
        token_ids: of a tree's nodes.
        parents: index of each node's parent, or `ROOT`; a parent comes before its children.
        sources: `Source` of each node, a byte each.
        num_cut: further tokens that were not worth verifying.
        has_model: whether a model drafted for it.
    """

    token_ids: Sequence[int] = ()
    parents: Sequence[int] = ()
    sources: bytes = b""
    num_cut: int = 0
    has_model: bool = False


NO_DRAFT: Final = Draft()
FUSED_BRANCHES: Final = 4
"""Branches that memory drafts for a model drafter to judge, also where a chain is wanted."""
SPARE_NODES: Final = 2
"""Nodes of such a tree for each token of the chain that is cut from it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What an open request wants drafted.

    Attributes:
        info: whose request it is.
        tokens: its prompt and reply so far, int32 (tokens,).
        max_tokens: most tokens to draft.
        draws: how the target draws those tokens.
        sources: who may draft them.
        num_left: most tokens that it will still say.
    """

    info: RequestInfo
    tokens: npt.NDArray[np.int32]
    max_tokens: int
    draws: NextDraws
    sources: frozenset[DraftSource] = ALL_SOURCES
    num_left: int = 1

    def limit(self, source: DraftSource) -> int:
        """Most tokens that a source may draft."""
        return self.max_tokens if source in self.sources else 0

    def within(self, caps: ArmCaps) -> Wish:
        """The same within an arm."""
        may = {source for source in self.sources if getattr(caps, source)}
        most = min(self.max_tokens, max(caps))
        if most == self.max_tokens and may == self.sources:
            return self
        return replace(self, max_tokens=most, sources=frozenset(may))


class Drafts:
    """A `Speculator` and a model drafter, each of which may be missing and may fail.

    Args:
        speculator: what drafts from memory, None for nothing.
        drafter: the model that drafts beside it, None for none.
        max_branches: most drafted tokens that continue one.
        budget: what drafts may cost; the drafter's too.
        make_drafter: what drafts with a model that comes later, where none was there at first.
        arms: narrows who may draft and how far; None for nobody.

    Attributes:
        failures: what went wrong.
    """

    def __init__(
        self,
        speculator: Speculator | None,
        drafter: ModelDrafter | None,
        *,
        max_branches: int,
        budget: RoundBudget,
        make_drafter: Callable[[Target], ModelDrafter] | None = None,
        arms: ArmChoice | None = None,
    ) -> None:
        self.failures = FailureLog(logger, "drafting")
        self.budget = budget
        self._speculator = speculator
        self._drafter = drafter
        self._make_drafter = make_drafter
        self._max_branches = max_branches
        self._arms = arms
        self._num_tokens: dict[str, int] = {}
        """Of the round's requests, when they were drafted for."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that drafts."""
        return self._speculator is None and self._drafter is None

    def begin(
        self,
        info: RequestInfo,
        prompt_ids: Sequence[int],
        limits: DraftLimits | None = None,
        predicted_ids: Sequence[int] = (),
    ) -> bool:
        """Open a request, narrowed so by its client; False if it goes undrafted."""
        is_open = False
        if self._arms is not None:
            self._arms.open(info, limits)
        if self._speculator is not None:
            with self._failing_open():
                self._speculator.begin(info, prompt_ids, max_predicted=len(predicted_ids))
                is_open = True
                if predicted_ids:
                    self._speculator.predictions.tell(info.request_id, predicted_ids)
        if self._drafter is not None:
            with self._failing_open():
                self._drafter.begin(info.request_id, owner_of(info))
                is_open = True
        return is_open

    def propose(self, wishes: Sequence[Wish]) -> list[Draft]:
        """A draft for each wish, in one call."""
        if self._speculator is not None:
            with self._failing_open():
                self._observe(self._speculator, wishes)
        if self._arms is not None:
            wishes = self._narrowed(self._arms, wishes)
        trees = [TokenTree.empty()] * len(wishes)
        if self._speculator is not None:
            with self._failing_open():
                trees = self._remember(self._speculator, wishes)
        if self._drafter is not None:
            retrieved = trees
            trees = [
                tree.first(wish.limit("memory"))
                for tree, wish in zip(retrieved, wishes, strict=True)
            ]
            with self._failing_open():
                trees = self._guess(self._drafter, wishes, retrieved)
        drafted = trees
        with self._failing_open():
            trees = self.budget.cut(trees)
        self._tell_arms(trees)
        return [
            Draft(
                tree.token_ids.tolist(),
                tree.parent.tolist(),
                tree.source.tobytes(),
                num_cut=len(whole) - len(tree),
                has_model=self.budget.has_issued(wish.info.request_id),
            )
            for wish, whole, tree in zip(wishes, drafted, trees, strict=True)
        ]

    def swap(self, model: Target | None) -> None:
        """Draft with another model from the next round on, or with none."""
        if self._drafter is not None and model is not None:
            self._drafter.swap(model)
            return
        self.budget.renew(costs_same=False)
        make = self._make_drafter
        self._drafter = None if model is None or make is None else make(model)

    def _tell_arms(self, trees: Sequence[TokenTree]) -> None:
        """What was drafted for the round's requests."""
        if self._arms is not None:
            asked = self.budget.with_model()
            self._arms.issued(
                list(self._num_tokens.values()),
                [len(tree.token_ids) for tree in trees],
                with_model=[i in asked for i in self._num_tokens] if asked else None,
                model_seconds=self.budget.drafting_seconds,
            )

    def note_round(self, committed: Mapping[str, Sequence[int]], time: RoundTime | None) -> None:
        """The target has verified the round's drafts.

        Args:
            committed: what came of it, by request.
            time: what it took; None where that says nothing of others.
        """
        if self._arms is None:
            return
        before = self._num_tokens
        num_tokens = {i: before[i] + len(new) for i, new in committed.items() if i in before}
        alone: dict[str, tuple[int, int]] = {}
        with self._failing_open():
            alone = self.budget.alone(committed)
        self._arms.seen(list(num_tokens), list(num_tokens.values()), lambda: committed, alone)
        self._arms.took(time)

    def _narrowed(self, arms: ArmChoice, wishes: Sequence[Wish]) -> list[Wish]:
        """Wishes within the arms of their requests."""
        self._num_tokens = {wish.info.request_id: len(wish.tokens) for wish in wishes}
        caps = arms.begin(list(self._num_tokens), list(self._num_tokens.values()))
        self.budget.verify.is_free = arms.is_free
        if self._speculator is not None:
            arms.suppose(self._speculator, self.budget.verify)
        return [wish.within(cap) for wish, cap in zip(wishes, caps, strict=True)]

    def finish(self, info: RequestInfo, tokens: npt.NDArray[np.int32]) -> None:
        """Close an open request, whose prompt and reply are `tokens`."""
        if self._speculator is not None and info.request_id in self._speculator:
            with self._failing_open():
                self._speculator.observe([info.request_id], [tokens], [len(tokens)])
                self._speculator.finish(info.request_id)
        if self._arms is not None:
            self._arms.finish(info.request_id)
        if self._drafter is not None:
            self._drafter.finish(info.request_id)
            if not info.scope:
                for is_greedy in (True, False):
                    self._drafter.forget(info.learning_key(is_greedy=is_greedy))

    def _observe(self, speculator: Speculator, wishes: Sequence[Wish]) -> None:
        known = [wish for wish in wishes if wish.info.request_id in speculator]
        tokens = [wish.tokens for wish in known]
        request_ids = [wish.info.request_id for wish in known]
        speculator.observe(request_ids, tokens, [len(row) for row in tokens])

    def _remember(self, speculator: Speculator, wishes: Sequence[Wish]) -> list[TokenTree]:
        known = [wish for wish in wishes if wish.info.request_id in speculator]
        drafted: dict[str, TokenTree] = {}
        for is_judged in (True, False):
            spare = SPARE_NODES if is_judged else 1
            limits = {
                wish.info.request_id: spare * wish.limit("memory")
                for wish in known
                if self._is_judged(wish) == is_judged
            }
            branches = max(self._max_branches, FUSED_BRANCHES) if is_judged else self._max_branches
            if not limits:
                continue
            ids = list(limits)
            trees = speculator.propose(ids, max_tokens=limits, max_branches=branches)
            drafted |= dict(zip(ids, trees, strict=True))
        return [drafted.get(wish.info.request_id, TokenTree.empty()) for wish in wishes]

    def _is_judged(self, wish: Wish) -> bool:
        """Whether a model reads what memory drafts."""
        return self._drafter is not None and wish.limit("model") > 0

    def _guess(
        self, drafter: ModelDrafter, wishes: Sequence[Wish], retrieved: Sequence[TokenTree]
    ) -> list[TokenTree]:
        """Fused drafts for those who want any."""
        trees = list(retrieved)
        wanting = [i for i, wish in enumerate(wishes) if self._is_judged(wish)]
        fused = drafter.propose([
            DraftWish(
                request_id=wishes[i].info.request_id,
                key=wishes[i].info.learning_key(is_greedy=wishes[i].draws.params.is_greedy),
                tokens=wishes[i].tokens,
                retrieved=retrieved[i],
                max_tokens=wishes[i].max_tokens,
                draws=wishes[i].draws,
                num_left=wishes[i].num_left,
                stratum=stratum_of(wishes[i].info, is_greedy=wishes[i].draws.params.is_greedy),
                max_recalled=wishes[i].limit("memory"),
            )
            for i in wanting
        ])  # fmt: skip
        for i, tree in zip(wanting, fused, strict=True):
            trees[i] = tree
        return trees

    @contextmanager
    def _failing_open(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.failures.record(error)
