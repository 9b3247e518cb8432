"""Memory and vLLM's own model drafter in one draft (``draft_model``, and EAGLE where configured).

Takes the place of the runner's ``propose_draft_token_ids``: memory drafts first, which takes
microseconds; the model drafts where it is expected to be worth its passes; both become one chain
for each request. The drafts carry no probabilities: vLLM's rejection sampler then takes them for
certain guesses, which keeps the target's distribution whoever drafted them and wherever a chain was
cut. With the model's probabilities it would not: whether a sampled token is kept here depends on
that token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.arm_choice import ArmChoice, with_arms
from paceline.adapters.chain_fusing import NOBODY, ChainFuser, Recalled
from paceline.adapters.decisions import DecisionLog
from paceline.adapters.drafter_swap import Swap, SwapSlot
from paceline.adapters.drafter_tally import DrafterTally, Stratum, stratum_of
from paceline.adapters.failures import FailureLog
from paceline.adapters.model_chains import Continued, ModelChains
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures, VerifyBudget
from paceline.adapters.vllm.model_drafter import VllmModelDrafter
from paceline.adapters.vllm.open_requests import OpenRequests
from paceline.adapters.vllm.round_clock import RoundClock
from paceline.adapters.vllm.step import DraftingStep, read_step
from paceline.caches.records import SHARED_GROUP

logger = logging.getLogger("paceline.vllm")

BRANCHES: Final = 4
"""Branches that memory drafts for the model to judge."""
SPARE_NODES: Final = 2
"""Nodes of memory's tree for each token of the chain that is cut from it."""
MOST_UNREAD: Final = 256
"""Tokens of a request that a model which is in use leaves unread: they have to fit into a pass."""
TYPICAL_TOKENS: Final = 64
"""Late tokens up to which a pass tells what others take: reading is cheaper."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Who wants drafts in a step.

    Attributes:
        rows: that memory knows.
        by_memory: most tokens that memory may draft for each of them.
        by_model: most tokens that the model may.
        others: rows that memory does not know, and what the model may draft for them.
    """

    rows: list[int]
    by_memory: list[int]
    by_model: list[int]
    others: dict[int, int]

    @property
    def limits(self) -> list[int]:
        """Of whoever drafts, for each of `rows`."""
        return list(map(max, self.by_memory, self.by_model))


class FusedProposer:
    """Drafts for vLLM's running batch from a `Speculator` and from vLLM's model drafter.

    On a rank whose drafts vLLM does not use there is no speculator, and the model drafts as vLLM
    lets it, so that all ranks run the same passes.

    Args:
        runner: vLLM's V1 model runner, its drafter loaded.
        speculator: drafts from memory; None where drafts do not count.
        num_model_tokens: most tokens that the model drafts for a request and step.
        min_probability: chains less likely than this are not drafted.
        always_draft: all that may be drafted, whether or not it is worth its time.
        drafter_group: whose drafter the model is.
        on_swap: told of the version of the model that drafts from now on, on the worker's thread.
        arms: narrows who may draft and how far; None for nobody.

    Attributes:
        failures: what went wrong.
        decisions: what was decided for each request that memory knows.
        fuser: learns and counts.
        model: vLLM's drafter.
        tally: how often the model is right.
        swaps: takes weights for the model from other threads, before a step.
        num_rounds: steps that were drafted for.
    """

    def __init__(
        self,
        runner: Any,
        speculator: Speculator | None,
        *,
        num_model_tokens: int,
        min_probability: float = 0.1,
        always_draft: bool = False,
        drafter_group: str = SHARED_GROUP,
        on_swap: Callable[[int], None] | None = None,
        arms: ArmChoice | None = None,
    ) -> None:
        self.failures = FailureLog(logger, "drafting")
        self.tally = DrafterTally()
        self.num_rounds = 0
        self.decisions = DecisionLog()
        self.fuser = ChainFuser(
            min_probability=min_probability,
            always_draft=always_draft,
            on_judged=self._note_judged,
            decisions=self.decisions,
        )
        self.swaps = SwapSlot(self._swap, self.tally, on_swap=self._swapped)
        self._on_swap = on_swap
        self._strata: dict[str, Stratum] = {}
        """Of each open request, whose rounds its own are counted with."""
        self._drafter_group = drafter_group
        self._rounds = RoundClock(self.fuser.budget.target)
        self.model = VllmModelDrafter(runner, num_steps=num_model_tokens)
        self._runner = runner
        self._speculator = speculator
        self._keys: dict[str, tuple[int, bool]] = {}
        """Of each open request: the key of what it may learn from, and whether it is its own."""
        self._guessed: tuple[ModelChains | None] | None = None
        """What the model has said in this step; None before it was asked."""
        self._is_unasked = False
        """Whether a step has begun in which vLLM has not asked for drafts yet."""
        self._arms = arms
        self._opened: OpenRequests | None = None
        if speculator is not None:
            self._opened = OpenRequests(
                runner,
                speculator,
                self.failures,
                self.decisions,
                num_draft_tokens=runner.num_spec_tokens,
                max_model_len=runner.max_model_len,
                drafter_group=drafter_group,
                arms=arms,
            )
        runner.propose_draft_token_ids = self.propose

    @property
    def budget(self) -> VerifyBudget:
        """Says which drafted tokens are worth verifying."""
        return self.fuser.budget

    def begin_step(self, scheduler_output: Any) -> None:
        """The runner begins the step that vLLM has scheduled so."""
        self.swaps.take()
        try:
            self._rounds.begin(scheduler_output)
            if self._arms is not None:
                self._arms.took(self._rounds.ended)
            if scheduler_output.total_num_scheduled_tokens:
                if self._is_unasked:  # vLLM did not ask for drafts in the step before
                    self.model.lose_account()
                self._is_unasked = True
        except Exception as error:  # noqa: BLE001  counted, as in propose
            self.failures.record(error)

    def propose(self, *arguments: Any) -> Any:
        """Drafts for the step's requests: lists of their own lengths, or what vLLM drafted alone.

        Args:
            arguments: those of vLLM's ``propose_draft_token_ids``.
        """
        self._is_unasked = False
        self._guessed = None
        named = self.model.bind(arguments)
        step: DraftingStep | None = None
        try:
            step = read_step(
                self._runner,
                named["scheduler_output"],
                named["sampled_token_ids"],
                named["common_attn_metadata"],
                self.model.kv_cache_group,
            )
            if self._speculator is not None and self._opened is not None:
                return self._draft(self._speculator, self._opened, step, arguments)
        except Exception as error:  # noqa: BLE001  counted: whatever drafting does, the target must answer
            self.failures.record(error)
            self.decisions.failed()
        return self._fall_back(step, named, arguments)

    def finish(self, request_ids: Iterable[str]) -> None:
        """Close requests that left vLLM (finished or aborted).

        Call before the runner forgets them.
        """
        if self._opened is None:
            return
        for request_id in request_ids:
            try:
                key, is_own = self._keys.pop(request_id, (0, False))
                self._strata.pop(request_id, None)
                if is_own:
                    self.fuser.forget(key)
                self._opened.finish(request_id)
            except Exception as error:  # noqa: BLE001  counted, as in propose
                self.failures.record(error)

    def _swapped(self, version: int) -> None:
        """Records say from now on which version drafted; what arms know of the last one goes."""
        if self._speculator is not None:
            self._speculator.drafter_version = version
        if self._arms is not None:
            self._arms.reset_drafter(f"version {version}")
        if self._on_swap is not None:
            self._on_swap(version)

    def stats(self) -> dict[str, int]:
        """Counters: `ChainFuser.stats`, what the model read late or not at all, and failures."""
        return self.fuser.stats() | {
            "tokens_caught_up": self.model.num_caught_up,
            "rows_unread": self.model.num_unsound,
            "failures": self.failures.count,
        }

    def figures(self) -> DraftingFigures:
        """`stats`, and what rounds take."""
        costs = {"target": self.budget.target, "model": self.fuser.gate.cost}
        return with_arms(DraftingFigures(self.stats(), self.budget.price, costs), self._arms)

    def _swap(self, swap: Swap) -> None:
        """Put the model's new weights into place."""
        self.model.swap(swap.model, swap.before)
        self.fuser.renew()

    def judge(self, *, is_judging: bool) -> None:
        """Whether a new version of the model is judged: it must not rest for long then."""
        self.fuser.gate.is_judging = is_judging
        if self._arms is not None:
            self._arms.is_judging = is_judging

    def _note_judged(
        self, request_id: str, num_expected: float, guess: Sequence[int], said: Sequence[int]
    ) -> None:
        stratum = self._strata.get(request_id)
        if stratum is not None:
            self.tally.note(stratum, num_expected, guess, said)

    def _fall_back(
        self, step: DraftingStep | None, named: Mapping[str, Any], arguments: Sequence[Any]
    ) -> Any:
        """What vLLM's drafter drafts by itself, where that may be had by all.

        What a group's tenants have taught a model is for them, and here nobody asks who wants it:
        its passes are run, as other processes may run the same ones, and their drafts dropped.
        """
        drafts = self._alone(step, named, arguments)
        if self._drafter_group == SHARED_GROUP or self._speculator is None:
            return drafts
        return [[] for _ in range(len(named["sampled_token_ids"]))]

    def _alone(
        self, step: DraftingStep | None, named: Mapping[str, Any], arguments: Sequence[Any]
    ) -> Any:
        """What vLLM's drafter drafts by itself; nothing where it could not.

        A model that has been asked in this step is not asked again: other processes may run the
        same passes.
        """
        nothing: list[list[int]] = [[] for _ in range(len(named["sampled_token_ids"]))]
        if self._guessed is not None:
            (chains,) = self._guessed
            return nothing if chains is None else chains.token_ids.tolist()
        if not self.model.fits(int(named["common_attn_metadata"].max_seq_len)):
            self.model.lose_account()
            return nothing
        if step is None:
            return self.model.draft_alone(arguments)
        everyone = np.ones(len(step.rows), np.bool_)
        chains = self._ask(step, arguments, num_steps=self.model.num_steps, catching_up=everyone)
        return nothing if chains is None else chains.token_ids.tolist()

    def _draft(
        self,
        speculator: Speculator,
        opened: OpenRequests,
        step: DraftingStep,
        arguments: Sequence[Any],
    ) -> list[list[int]]:
        asked = self._observe(speculator, opened, step)
        num_context = sum(step.num_before[row] for row in step.answered)
        self.budget.begin(len(step.answered), num_context=num_context)
        recalled = self._recall(speculator, step, asked)
        chains = self._guess(opened, step, asked, recalled, arguments)
        drafts: list[list[int]] = [[] for _ in step.request_ids]
        model, continued = None, None
        if chains is not None:
            model = chains.rows(asked.rows).only([limit > 0 for limit in asked.by_model])
            continued = self._continue(speculator, asked, recalled, model)
        mixed = self.model.mixed
        fused = self.fuser.fuse(
            recalled,
            model,
            continued,
            drafting_seconds=self._rounds.model_seconds,
            is_counted=[step.request_ids[row] not in mixed for row in asked.rows],
        )
        self.num_rounds += 1
        for row, tokens in zip(asked.rows, fused, strict=True):
            drafts[row] = tokens
        if chains is not None:
            is_worth = chains.path_probabilities() >= self.budget.price
            for row, limit in asked.others.items():
                num_kept = min(limit, int(is_worth[row].sum()))
                drafts[row] = chains.token_ids[row, :num_kept].tolist()
        self._issue(step, asked, drafts, model)
        # a runner that holds the model's probabilities would verify with them
        self._runner._draft_probs = None
        self._runner._draft_prob_req_ids = None
        return drafts

    def _observe(self, speculator: Speculator, opened: OpenRequests, step: DraftingStep) -> _Asked:
        """Tell the memory and the fuser what was accepted."""
        is_open = [
            opened.is_open(request_id, step.token_ids[row])
            for row, request_id in enumerate(step.request_ids)
        ]
        rows = [row for row, is_one in enumerate(is_open) if is_one]
        ids = [step.request_ids[row] for row in rows]
        before = [step.num_before[row] for row in rows]
        speculator.observe(ids, [step.token_ids[row] for row in rows], before)
        news = [row for row in rows if step.accepted[row]]
        speculator.commit_batch(
            [step.request_ids[row] for row in news], [step.accepted[row] for row in news]
        )
        committed = {step.request_ids[row]: step.accepted[row] for row in news}
        self.decisions.settle(committed, self._rounds.spent())
        self.fuser.learn(committed)
        for row in rows:
            if step.request_ids[row] not in self._keys:
                info = opened.info(step.request_ids[row])
                is_greedy = opened.is_greedy(info.request_id)
                key = info.learning_key(is_greedy=is_greedy)
                self._keys[info.request_id] = key, not info.scope
                self._strata[info.request_id] = stratum_of(info, is_greedy=is_greedy)
        memory, model = (
            [
                opened.draft_limit(request_id, source, before + len(accepted)) if accepted else 0
                for request_id, before, accepted in zip(
                    step.request_ids, step.num_before, step.accepted, strict=True
                )
            ]
            for source in ("memory", "model")
        )
        if self._arms is not None:
            answered = step.answered
            num_tokens = step.num_tokens(answered)
            request_ids = [step.request_ids[row] for row in answered]
            self._arms.seen(
                request_ids,
                num_tokens,
                lambda: dict(zip(step.request_ids, step.accepted, strict=True)),
                self.fuser.alone,
            )
            caps = self._arms.begin(request_ids, num_tokens)
            self._arms.suppose(speculator, self.budget)
            self._rounds.is_odd = self._arms.is_odd
            self.budget.is_free = self._arms.is_free
            for row, cap in zip(answered, caps, strict=True):
                memory[row] = min(memory[row], cap.memory)
                model[row] = min(model[row], cap.model)
        wanting = [row for row in rows if memory[row] or model[row]]
        others = {row: limit for row, limit in enumerate(model) if limit and not is_open[row]}
        return _Asked(
            wanting, [memory[row] for row in wanting], [model[row] for row in wanting], others
        )

    def _issue(
        self,
        step: DraftingStep,
        asked: _Asked,
        drafts: Sequence[Sequence[int]],
        model: ModelChains | None,
    ) -> None:
        """Tell the arms what is going to be verified, and for whom the model has drafted."""
        if self._arms is None:
            return
        answered, with_model = step.answered, None
        if model is not None:
            drafted = zip(asked.rows, model.is_sound.tolist(), strict=True)
            had_model = {row for row, is_sound in drafted if is_sound}.union(asked.others)
            with_model = [row in had_model for row in answered]
        self._arms.issued(
            step.num_tokens(answered),
            [len(drafts[row]) for row in answered],
            with_model=with_model,
            model_seconds=self._rounds.model_seconds,
        )

    def _recall(self, speculator: Speculator, step: DraftingStep, asked: _Asked) -> Recalled:
        ids = [step.request_ids[row] for row in asked.rows]
        trees = speculator.propose_batch(
            ids,
            max_tokens={
                request_id: SPARE_NODES * limit
                for request_id, limit in zip(ids, asked.by_memory, strict=True)
            },
            max_branches=BRANCHES,
        )
        return self.fuser.recall(ids, [self._keys[i][0] for i in ids], asked.limits, trees)

    def _guess(
        self,
        opened: OpenRequests,
        step: DraftingStep,
        asked: _Asked,
        recalled: Recalled,
        arguments: Sequence[Any],
    ) -> ModelChains | None:
        """The model's chains for all rows; None where it has not drafted."""
        unread = self.model.num_unread(step)
        rows = [*asked.rows, *asked.others]
        is_allowed = [*map(bool, asked.by_model), *(True for _ in asked.others)]
        readings = [
            step.reading(row, int(unread[row]), opened.num_left) if allowed else None
            for row, allowed in zip(rows, is_allowed, strict=True)
        ]
        fits = self.model.fits(step.longest)
        chosen = self.fuser.asked(recalled, readings)
        catching_up = np.zeros(len(step.rows), np.bool_)
        catching_up[[rows[i] for i in chosen]] = True
        urgent = self._urgent(step, unread)
        if not fits or (self.model.abilities.skips and not (chosen or urgent.any())):
            self._guessed = (None,)
            self.model.skip(step)
            return None
        # What must run all the same, reads with the shortest draft.
        is_short = not chosen and self.model.abilities.shortens
        num_steps = 1 if is_short else self.model.num_steps
        num_late = self.model.num_caught_up
        chains = self._ask(step, arguments, num_steps=num_steps, catching_up=catching_up | urgent)
        num_late = self.model.num_caught_up - num_late
        if chains is None or is_short:
            return None
        if self._rounds.is_answering and num_late <= TYPICAL_TOKENS:
            num_tokens = sum(row.num_scheduled for row in step.rows) + num_late
            self.fuser.gate.cost.learn(len(step.rows), num_tokens, self._rounds.model_seconds)
        return chains

    def _urgent(self, step: DraftingStep, unread: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Rows that a model which is in use must read now, or not in one pass later."""
        num_unread = unread + np.array([row.num_kept for row in step.rows], np.int64)
        keys = [self._keys.get(request_id, NO_KEY)[0] for request_id in step.request_ids]
        in_use = [not self.fuser.gate.has_rested(key) for key in keys]
        return (num_unread > MOST_UNREAD) & np.array(in_use, np.bool_)

    def _continue(
        self, speculator: Speculator, asked: _Asked, recalled: Recalled, model: ModelChains
    ) -> Continued | None:
        """What memory drafts behind the model's tokens."""
        supposed = self.fuser.suppose(recalled, model)
        if any(not limit for limit in asked.by_memory):
            supposed = supposed.of([i for i, limit in enumerate(asked.by_memory) if limit])
        if not supposed.rows:
            return None
        request_ids = [recalled.request_ids[row] for row in supposed.rows]
        trees = speculator.propose_behind(
            request_ids, supposed.token_ids, max_tokens=supposed.max_tokens
        )
        return Continued(supposed, trees)

    def _ask(
        self,
        step: DraftingStep,
        arguments: Sequence[Any],
        *,
        num_steps: int,
        catching_up: npt.NDArray[np.bool_],
    ) -> ModelChains | None:
        """Let the model draft; None if it fails."""
        self._guessed = (None,)
        try:
            with self._rounds.drafting():
                chains = self.model.draft(
                    step, arguments, num_steps=num_steps, catching_up=catching_up
                )
        except Exception as error:  # noqa: BLE001  counted: memory's drafts need no model
            self.failures.record(error)
            self.decisions.failed()
            self.model.stop_skipping()
            return None
        self._guessed = (chains,)
        return chains


NO_KEY: Final = (NOBODY, False)
"""Of requests that memory cannot draft for."""
