"""The requests of vLLM's running batch in the terms of a `Speculator`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.arm_choice import ArmChoice
from paceline.adapters.decisions import FAILURE, LENGTH, DecisionLog
from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import DraftLimits, draft_limits, request_info_from_xargs
from paceline.adapters.prediction import PredictionTally, predicted_text
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches.records import SHARED_GROUP

LEAST_TEMPERATURE: Final = 1e-5
"""vLLM's: below it nothing is sampled."""


class OpenRequests:
    """Opens requests in a speculator as they appear, and closes them with what their client got.

    Args:
        runner: vLLM's model runner, read only.
        speculator: drafts from memory.
        failures: counts what goes wrong with one request.
        decisions: counts what is decided for each.
        num_draft_tokens: most tokens that vLLM verifies for a request and step.
        max_model_len: most tokens of a request.
        drafter_group: whose drafter the engine's model is.
        arms: is told which requests are open; None where no arms are chosen.
    """

    def __init__(
        self,
        runner: Any,
        speculator: Speculator,
        failures: FailureLog,
        decisions: DecisionLog,
        *,
        num_draft_tokens: int,
        max_model_len: int,
        drafter_group: str = SHARED_GROUP,
        arms: ArmChoice | None = None,
    ) -> None:
        self._runner = runner
        self._speculator = speculator
        self._failures = failures
        self._decisions = decisions
        self._num_draft_tokens = num_draft_tokens
        self._max_model_len = max_model_len
        self._drafter_group = drafter_group
        self._arms = arms
        self._limits: dict[str, DraftLimits] = {}

    def is_open(self, request_id: str, token_ids: npt.NDArray[np.int32]) -> bool:
        """Whether a request can be drafted for; opens it the first time it is seen.

        A prompt of embeddings has nothing to index. A request that cannot be opened goes undrafted
        without taking the others of its batch with it.

        Args:
            request_id: vLLM's.
            token_ids: int32, (>= tokens,). vLLM's buffer of its tokens.
        """
        if request_id in self._speculator:
            return True
        prompt_token_ids = self._runner.requests[request_id].prompt_token_ids
        if prompt_token_ids is None:
            return False
        tally = self._decisions.open(
            request_id, self._narrowed(request_id).limited_by(self._num_draft_tokens)
        )
        try:
            info = self.info(request_id)
            tally.who = info.tenant, info.workload
            predicted = self._predicted(request_id)
            # a token has a byte of its text at least
            most = len(predicted.encode())
            self._speculator.begin(info, token_ids[: len(prompt_token_ids)], max_predicted=most)
            if predicted:
                tally.prediction = PredictionTally()
                self._speculator.predictions.tell_text(request_id, predicted, tally.prediction)
            if self._arms is not None:
                self._arms.open(info, self._narrowed(request_id))
        except Exception as error:  # noqa: BLE001  counted: the request is answered without drafts
            self._failures.record(error)
            self._decisions.limit(request_id, FAILURE)
            return False
        return True

    def info(self, request_id: str) -> RequestInfo:
        """Who asks."""
        state = self._runner.requests[request_id]
        info = request_info_from_xargs(request_id, state.sampling_params.extra_args)
        info = replace(info, temperature=self._temperature(request_id))
        if state.lora_request is not None:
            info = replace(info, adapter=state.lora_request.lora_name)
        return info

    def is_greedy(self, request_id: str) -> bool:
        """Whether vLLM takes the likeliest token each time."""
        return self._temperature(request_id) < LEAST_TEMPERATURE

    def _temperature(self, request_id: str) -> float:
        temperature: float = self._runner.requests[request_id].sampling_params.temperature
        return temperature

    def num_left(self, request_id: str, num_tokens: int) -> int:
        """Most tokens that a request still gets behind `num_tokens` accepted ones."""
        state = self._runner.requests[request_id]
        params = state.sampling_params
        room = self._max_model_len - num_tokens
        if params.max_tokens is not None:
            room = min(room, params.max_tokens - (num_tokens - state.num_prompt_tokens))
        return max(0, room)

    def draft_limit(self, request_id: str, source: str, num_tokens: int) -> int:
        """Most tokens that ``memory`` or ``model`` may draft behind `num_tokens` accepted ones.

        Each round also yields one token that needs no draft.
        """
        most = self._narrowed(request_id).most(source, self._num_draft_tokens)
        room = max(0, self.num_left(request_id, num_tokens) - 1)
        if room >= most:
            return most
        self._decisions.limit(request_id, LENGTH)
        return room

    def finish(self, request_id: str) -> None:
        """Close a request that left vLLM; call before the runner forgets it."""
        self._limits.pop(request_id, None)
        if self._arms is not None:
            self._decisions.choose(request_id, self._arms.reason(request_id))
            self._arms.finish(request_id)
        try:
            self._remember(request_id)
        finally:
            self._decisions.close(request_id)

    def _remember(self, request_id: str) -> None:
        """Close it in memory, with what its client got."""
        state = self._runner.requests.get(request_id)
        if request_id not in self._speculator or state is None:
            self._speculator.finish(request_id)
            return
        said = num_said(state.output_token_ids, state.sampling_params)
        token_ids = [*state.prompt_token_ids, *state.output_token_ids[:said]]
        self._speculator.observe([request_id], [token_ids], [len(token_ids)])
        self._speculator.finish(request_id)

    def _predicted(self, request_id: str) -> str:
        """The text that its client expects, "" for none or where memory does not draft."""
        if self._speculator.predictions.encode is None:
            return ""
        if not self._narrowed(request_id).most("memory", self._num_draft_tokens):
            return ""
        return predicted_text(self._runner.requests[request_id].sampling_params.extra_args)

    def _narrowed(self, request_id: str) -> DraftLimits:
        """What its policy, its client and its drafter group let be drafted."""
        limits = self._limits.get(request_id)
        if limits is None:
            xargs = self._runner.requests[request_id].sampling_params.extra_args
            limits = self._limits[request_id] = draft_limits(
                xargs, drafter_group=self._drafter_group
            )
        return limits


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
