"""A step of vLLM's V1 model runner at the moment when it asks for drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.adapters.chain_fusing import Reading
from paceline.adapters.read_ledger import StepRow


@dataclass(frozen=True, slots=True, eq=False)
class DraftingStep:
    """What the target did in a step.

    Attributes:
        request_ids: of the batch's rows.
        accepted: tokens that each row got in the step; none where its prompt is still being read.
        num_before: tokens that each row had before it.
        token_ids: int32, (rows, max_model_len). The runner's buffer, valid up to `num_before`.
        rows: what the target read of each.
        longest: an upper bound on the tokens of any row.
    """

    request_ids: Sequence[str]
    accepted: Sequence[list[int]]
    num_before: Sequence[int]
    token_ids: npt.NDArray[np.int32]
    rows: Sequence[StepRow]
    longest: int

    @property
    def answered(self) -> list[int]:
        """Rows that got tokens in the step."""
        return [row for row, accepted in enumerate(self.accepted) if accepted]

    def num_tokens(self, rows: Sequence[int]) -> list[int]:
        """Tokens that some rows have by now."""
        return [self.num_before[row] + len(self.accepted[row]) for row in rows]

    @property
    def has_prefill(self) -> bool:
        """Whether a row read more than a decoding one would: a prompt, or a part of one."""
        return any(
            not accepted or (row.num_scheduled > 1 and row.start + row.num_scheduled <= before)
            for accepted, row, before in zip(self.accepted, self.rows, self.num_before, strict=True)
        )

    def reading(self, row: int, num_unread: int, num_left: Callable[[str, int], int]) -> Reading:
        """What a model drafter has to read of a row.

        Args:
            row: of the batch.
            num_unread: tokens that the model has not read in earlier steps.
            num_left: tokens that a request may still say when it has so many.
        """
        num_accepted = len(self.accepted[row])
        # what is read of a prompt in this step is read for the whole reply, as what was missed is
        num_prompt = max(0, self.rows[row].num_kept - num_accepted)
        return Reading(
            num_read=self.rows[row].num_scheduled - num_prompt,
            num_late=num_unread + num_prompt,
            num_left=num_left(self.request_ids[row], self.num_before[row] + num_accepted),
        )


def read_step(
    runner: Any,
    scheduler_output: Any,
    sampled_token_ids: Any,
    attention: Any,
    kv_cache_group: int,
) -> DraftingStep:
    """The step that the runner is in. Waits for the step's tokens where a device computes them.

    Args:
        runner: vLLM's.
        scheduler_output: of the step.
        sampled_token_ids: what the runner hands to its proposer: a tensor padded with -1 before its
            own books are brought up to date, or lists afterwards.
        attention: vLLM's common attention metadata of the drafter's group.
        kv_cache_group: the drafter's.
    """
    batch = runner.input_batch
    is_list = isinstance(sampled_token_ids, list)
    num_rows = len(sampled_token_ids)
    partial = runner.discard_request_mask.np
    sampled = sampled_token_ids if is_list else sampled_token_ids.cpu().tolist()
    blocks = batch.block_table[kv_cache_group].block_table.np
    request_ids = list(batch.req_ids[:num_rows])
    accepted, num_before, rows = [], [], []
    for i, request_id in enumerate(request_ids):
        real = [t for t in sampled[i] if 0 <= t < batch.vocab_size]
        tokens = [] if partial[i] else real
        before = int(batch.num_tokens_no_spec[i]) - (len(tokens) if is_list else 0)
        start = int(batch.num_computed_tokens_cpu[i])
        num_scheduled = int(scheduler_output.num_scheduled_tokens[request_id])
        # all but the newest token, which the target reads in the next step
        num_kept = before + len(tokens) - 1 - start if tokens else num_scheduled
        accepted.append(tokens)
        num_before.append(before)
        rows.append(StepRow(request_id, start, num_scheduled, num_kept, blocks[i]))
    return DraftingStep(
        request_ids, accepted, num_before, batch.token_ids_cpu, rows, int(attention.max_seq_len)
    )
