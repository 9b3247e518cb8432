"""The proposer that vLLM calls after each step (speculative method ``custom_class``).

vLLM hands `propose` the step's sampled tokens and its own token buffers, no request ids; the worker
attaches the model runner, whose input batch has them. Tokens are always taken from the buffers up
to ``num_tokens_no_spec``, never from the deltas: a step in which vLLM skips drafting would lose
some, and a preempted request is absent for a while and comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import request_info_from_xargs, speculation_is_off
from paceline.adapters.speculator import Speculator

logger = logging.getLogger("paceline.vllm")


class DraftProposer:
    """Drafts for vLLM's running batch from a `Speculator`.

    Until `attach` is called it drafts nothing, as on ranks whose drafts vLLM does not use.

    Args:
        vllm_config: vLLM's configuration, as vLLM passes it to a custom proposer.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.num_speculative_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.failures = FailureLog(logger, "drafting")
        self._runner: Any = None
        self._speculator: Speculator | None = None

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing to load; vLLM calls this on every proposer."""

    def attach(self, runner: Any, speculator: Speculator) -> None:
        """Draft from `speculator` for the requests in `runner`'s input batch from now on."""
        self._runner = runner
        self._speculator = speculator

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
        if self._speculator is None:
            return [[] for _ in range(num_rows)]
        try:
            return self._draft(
                self._speculator, sampled_token_ids, num_tokens_no_spec, token_ids_cpu
            )
        except Exception as error:  # noqa: BLE001  counted: whatever drafting does, the target must answer
            self.failures.record(error)
            return [[] for _ in range(num_rows)]

    def finish(self, request_ids: Iterable[str]) -> None:
        """Close requests that left vLLM (finished or aborted).

        Call before the runner forgets them.
        """
        if self._speculator is None:
            return
        for request_id in request_ids:
            try:
                self._finish(self._speculator, request_id)
            except Exception as error:  # noqa: BLE001  counted, as in propose
                self.failures.record(error)

    def _draft(
        self,
        speculator: Speculator,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
    ) -> list[list[int]]:
        batch = self._runner.input_batch
        rows = [
            row
            for row in range(len(sampled_token_ids))
            if self._is_open(speculator, batch.req_ids[row], token_ids_cpu[row])
        ]
        request_ids = [batch.req_ids[row] for row in rows]
        lengths = [int(num_tokens_no_spec[row]) for row in rows]
        speculator.observe(request_ids, [token_ids_cpu[row] for row in rows], lengths)

        limits = {
            request_id: self._draft_limit(request_id, length)
            for row, request_id, length in zip(rows, request_ids, lengths, strict=True)
            if sampled_token_ids[row]  # a partial prefill has nothing to verify a draft with
        }
        wanted = [request_id for request_id, limit in limits.items() if limit > 0]
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        row_of = dict(zip(request_ids, rows, strict=True))
        proposed = speculator.propose_batch(wanted, max_tokens=limits).token_lists()
        for request_id, tokens in zip(wanted, proposed, strict=True):
            drafts[row_of[request_id]] = tokens
        return drafts

    def _is_open(
        self, speculator: Speculator, request_id: str, token_ids: npt.NDArray[np.int32]
    ) -> bool:
        """Whether a row can be drafted for; opens its request the first time it is seen.

        A prompt of embeddings has nothing to index. A request that cannot be opened goes undrafted
        without taking the others of its batch with it.
        """
        if request_id in speculator:
            return True
        if self._runner.requests[request_id].prompt_token_ids is None:
            return False
        try:
            self._begin(speculator, request_id, token_ids)
        except Exception as error:  # noqa: BLE001  counted, as in propose
            self.failures.record(error)
            return False
        return True

    def _begin(
        self, speculator: Speculator, request_id: str, token_ids: npt.NDArray[np.int32]
    ) -> None:
        state = self._runner.requests[request_id]
        info = request_info_from_xargs(request_id, state.sampling_params.extra_args)
        if state.lora_request is not None:
            info = replace(info, adapter=state.lora_request.lora_name)
        speculator.begin(info, token_ids[: len(state.prompt_token_ids)])

    def _draft_limit(self, request_id: str, num_tokens: int) -> int:
        """Most tokens worth drafting: each round also yields one token that needs no draft."""
        state = self._runner.requests[request_id]
        params = state.sampling_params
        if speculation_is_off(params.extra_args):
            return 0
        num_output = num_tokens - len(state.prompt_token_ids)
        room = self.max_model_len - num_tokens
        if params.max_tokens is not None:
            room = min(room, params.max_tokens - num_output)
        return max(0, min(self.num_speculative_tokens, room - 1))

    def _finish(self, speculator: Speculator, request_id: str) -> None:
        state = self._runner.requests.get(request_id)
        if request_id not in speculator or state is None:
            speculator.finish(request_id)
            return
        said = num_said(state.output_token_ids, state.sampling_params)
        token_ids = [*state.prompt_token_ids, *state.output_token_ids[:said]]
        speculator.observe([request_id], [token_ids], [len(token_ids)])
        speculator.finish(request_id)


def num_said(output_token_ids: Sequence[int], sampling_params: Any) -> int:
    """How many of a finished request's tokens its client was given. O(len(output_token_ids)).

    The runner keeps all that a round accepted; the scheduler stops at the first end token and at
    ``max_tokens``.
    """
    stop_token_ids = (
        set() if sampling_params.ignore_eos else set(sampling_params.all_stop_token_ids)
    )
    stop_token_ids.update(sampling_params.stop_token_ids or ())
    limit = len(output_token_ids)
    if sampling_params.max_tokens is not None:
        limit = min(limit, sampling_params.max_tokens)
    for position in range(limit):
        if output_token_ids[position] in stop_token_ids:
            return position + 1
    return limit
