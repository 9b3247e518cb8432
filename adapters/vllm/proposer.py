"""The proposer that vLLM calls after each step (speculative method ``custom_class``).

vLLM hands `propose` the step's sampled tokens and its own token buffers, no request ids; the worker
attaches the model runner, whose input batch has them. Tokens are always taken from the buffers up
to ``num_tokens_no_spec``, never from the deltas: a step in which vLLM skips drafting would lose
some, and a preempted request is absent for a while and comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.adapters.arm_choice import ArmChoice, with_arms
from paceline.adapters.decisions import DecisionLog
from paceline.adapters.failures import FailureLog
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures, VerifyBudget
from paceline.adapters.vllm.open_requests import OpenRequests
from paceline.adapters.vllm.round_clock import RoundClock

logger = logging.getLogger("paceline.vllm")


class DraftProposer:
    """Drafts for vLLM's running batch from a `Speculator`.

    Until `attach` is called it drafts nothing, as on ranks whose drafts vLLM does not use.

    Args:
        vllm_config: vLLM's configuration, as vLLM passes it to a custom proposer.

    Attributes:
        failures: what went wrong.
        budget: says which drafted tokens are worth verifying.
        decisions: what was decided for each request.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.num_speculative_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.failures = FailureLog(logger, "drafting")
        self.budget = VerifyBudget()
        self.decisions = DecisionLog()
        self._rounds = RoundClock(self.budget.target)
        self._runner: Any = None
        self._speculator: Speculator | None = None
        self._opened: OpenRequests | None = None
        self._arms: ArmChoice | None = None

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing to load; vLLM calls this on every proposer."""

    def attach(
        self,
        runner: Any,
        speculator: Speculator,
        *,
        always_draft: bool = False,
        arms: ArmChoice | None = None,
    ) -> None:
        """Draft from `speculator` for the requests in `runner`'s input batch from now on.

        Args:
            runner: vLLM's model runner.
            speculator: drafts from memory.
            always_draft: all that may be drafted, whether or not it is worth its time.
            arms: narrows who may draft and how far; None for nobody.
        """
        self.budget.always_draft = always_draft
        self._runner = runner
        self._speculator = speculator
        self._arms = arms
        self._opened = OpenRequests(
            runner,
            speculator,
            self.failures,
            self.decisions,
            num_draft_tokens=self.num_speculative_tokens,
            max_model_len=self.max_model_len,
            arms=arms,
        )

    def begin_step(self, scheduler_output: Any) -> None:
        """The runner begins the step that vLLM has scheduled so."""
        try:
            self._rounds.begin(scheduler_output)
            if self._arms is not None:
                self._arms.took(self._rounds.ended)
        except Exception as error:  # noqa: BLE001  counted, as in propose
            self.failures.record(error)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Drafts for the step's requests, a list each, at most `num_speculative_tokens` long.

        Args:
            sampled_token_ids: tokens the target accepted in this step; an empty row is a partial
                prefill.
            num_tokens_no_spec: int32, (>= rows,). Accepted tokens of each row, prompt included.
            token_ids_cpu: int32, (>= rows, max_model_len). Each row's tokens.
            slot_mappings: unused.
        """
        num_rows = len(sampled_token_ids)
        if self._speculator is None or self._opened is None:
            return [[] for _ in range(num_rows)]
        try:
            return self._draft(
                self._opened, self._speculator, sampled_token_ids, num_tokens_no_spec, token_ids_cpu
            )
        except Exception as error:  # noqa: BLE001  counted: whatever drafting does, the target must answer
            self.failures.record(error)
            self.decisions.failed()
            return [[] for _ in range(num_rows)]

    def finish(self, request_ids: Iterable[str]) -> None:
        """Close requests that left vLLM (finished or aborted).

        Call before the runner forgets them.
        """
        if self._opened is None:
            return
        for request_id in request_ids:
            try:
                self._opened.finish(request_id)
            except Exception as error:  # noqa: BLE001  counted, as in propose
                self.failures.record(error)

    def figures(self) -> DraftingFigures:
        """Counters of drafted tokens that were not worth verifying and of failures, and costs."""
        return with_arms(
            DraftingFigures(
                {"tokens_cut": self.budget.num_cut, "failures": self.failures.count},
                self.budget.price,
                {"target": self.budget.target},
            ),
            self._arms,
        )

    def _draft(
        self,
        opened: OpenRequests,
        speculator: Speculator,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
    ) -> list[list[int]]:
        ids = self._runner.input_batch.req_ids
        rows = [
            row
            for row in range(len(sampled_token_ids))
            if opened.is_open(ids[row], token_ids_cpu[row])
        ]
        request_ids = [ids[row] for row in rows]
        lengths = [int(num_tokens_no_spec[row]) for row in rows]
        speculator.observe(request_ids, [token_ids_cpu[row] for row in rows], lengths)
        committed = {ids[row]: sampled_token_ids[row] for row in rows}
        self.decisions.settle(committed, self._rounds.spent())

        known = [  # a partial prefill has nothing to verify a draft with
            (request_id, length)
            for row, request_id, length in zip(rows, request_ids, lengths, strict=True)
            if sampled_token_ids[row]
        ]
        limits = {
            request_id: opened.draft_limit(request_id, "memory", length)
            for request_id, length in known
        }
        answering, num_tokens = list(limits), [length for _, length in known]
        if self._arms is not None:
            self._arms.seen(
                answering,
                num_tokens,
                lambda: {ids[row]: sampled_token_ids[row] for row in rows},
            )
            caps = self._arms.begin(answering, num_tokens)
            self._arms.suppose(speculator, self.budget)
            self._rounds.is_odd = self._arms.is_odd
            self.budget.is_free = self._arms.is_free
            for request_id, cap in zip(answering, caps, strict=True):
                limits[request_id] = min(limits[request_id], cap.memory)
        wanted = [request_id for request_id, limit in limits.items() if limit > 0]
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        row_of = dict(zip(request_ids, rows, strict=True))
        proposed = speculator.propose_batch(wanted, max_tokens=limits)
        self.budget.begin(len(limits), num_context=sum(num_tokens))
        num_kept = self.budget.cut(proposed).tolist()
        if self._arms is not None:
            kept_of = dict(zip(wanted, num_kept, strict=True))
            self._arms.issued(num_tokens, [kept_of.get(i, 0) for i in answering])
        kept = zip(wanted, proposed.token_lists(), num_kept, strict=True)
        for request_id, tokens, num in kept:
            drafts[row_of[request_id]] = tokens[:num]
        self.decisions.issue(wanted, proposed, num_kept)
        return drafts
