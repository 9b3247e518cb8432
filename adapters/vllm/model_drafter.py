"""vLLM's own model drafter, run when it is wanted, and over what it has missed.

The one place that knows how vLLM's ``draft_model`` and EAGLE proposers work (read and run in 0.32;
what an older one lacks is noticed when the worker starts, and leaves vLLM as it is). Three methods
are wrapped: the runner's that proposes, so that it can be left out; the proposer's, to say how far
it drafts and to let it read what it has missed; and the drafter model's that computes logits, to
hear how sure it is.

What it has missed: a pass reads the tokens that the target read in the step. A step without it
leaves tokens unread (`ReadLedger`), and the next pass gets them in front of its own: the same pass
with longer queries, which writes the keys and values that the passes left out would have written.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from paceline.adapters.model_chains import ModelChains
from paceline.adapters.read_ledger import ReadLedger
from paceline.adapters.vllm.drafter_weights import DrafterWeights, RunningWeights
from paceline.adapters.vllm.step import DraftingStep

NEEDED: Final = {"scheduler_output", "sampled_token_ids", "common_attn_metadata"}
"""Arguments of the runner's ``propose_draft_token_ids`` that are read here."""
TOP: Final = 8
"""Likeliest next tokens that are looked at after each token."""
UNHEARD_PROBABILITY: Final = 0.7
"""Taken for each drafted token of a proposer that computes no logits; fusion learns what it is."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What can be done with a proposer.

    Attributes:
        skips: a round can go without it. Not where it needs the target's hidden states of every
            token (EAGLE), or where other processes wait for it.
        shortens: a pass can draft less than usual.
    """

    skips: bool
    shortens: bool


class VllmModelDrafter:
    """Drafts with the proposer of a runner; takes the place of its ``propose_draft_token_ids``.

    Args:
        runner: vLLM's V1 model runner, its drafter loaded.
        num_steps: most tokens to draft, at least 1.

    Attributes:
        num_caught_up: tokens read later than in their step.
        num_unsound: rows that were in a pass without the tokens that it had missed of them.
        is_usable: whether its weights are whole.
        mixed: requests of the last draft, of which it drafted some behind what other weights read.
    """

    def __init__(self, runner: Any, *, num_steps: int) -> None:
        self.num_caught_up = 0
        self.num_unsound = 0
        self.is_usable = True
        self.mixed: frozenset[str] = frozenset()
        self._runner = runner
        self._proposer = runner.drafter
        self._propose_all = runner.propose_draft_token_ids
        self._propose = self._proposer.propose
        self._signature = inspect.signature(self._propose_all)
        if missing := sorted(NEEDED - self._signature.parameters.keys()):
            raise TypeError(f"vLLM's propose_draft_token_ids takes no {missing[0]}")
        takes_number = "num_speculative_tokens" in inspect.signature(self._propose).parameters
        shortens = takes_number and not getattr(self._proposer, "parallel_drafting", False)
        self.num_steps = (
            min(num_steps, self._proposer.num_speculative_tokens)
            if shortens
            else self._proposer.num_speculative_tokens
        )
        self._shortens = shortens and is_alone(runner.vllm_config.parallel_config)
        self._abilities: Abilities | None = None
        self._ledger: ReadLedger | None = None
        self._room = 0
        self._is_swapped = False
        self._weights = RunningWeights(runner)
        self._steps = self.num_steps
        self._unread: npt.NDArray[np.int64] | None = None
        self._step: DraftingStep | None = None
        self._heard: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._listen()
        self._proposer.propose = self._propose_more
        self._max_model_len: int = runner.effective_drafter_max_model_len
        # vLLM stops drafting for a whole batch when one request comes near the end of the context.
        # Memory keeps each draft inside it by itself, and `fits` stops the model alone.
        runner.effective_drafter_max_model_len += runner.num_spec_tokens + 1

    @property
    def abilities(self) -> Abilities:
        """What can be done; known once vLLM has laid out its caches."""
        if self._abilities is None:
            skips = self._shortens and can_catch_up(self._runner)
            self._abilities = Abilities(skips=skips, shortens=self._shortens)
            table = self._runner.input_batch.block_table[self.kv_cache_group]
            self._ledger = ReadLedger(table.block_size)
            slots = getattr(self._proposer, "extra_slots_per_request", 1)
            batch = self._runner.max_num_reqs
            self._room = self._proposer.max_num_tokens - slots * batch
        return self._abilities

    @property
    def kv_cache_group(self) -> int:
        """Number of vLLM's cache group that the drafter's layers are in."""
        return max(0, int(getattr(self._proposer, "kv_cache_gid", 0)))

    def bind(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Arguments of a call of ``propose_draft_token_ids`` by name."""
        return dict(self._signature.bind(*arguments).arguments)

    def fits(self, longest: int) -> bool:
        """Whether the model can draft behind the longest context of a batch, or the end is near."""
        return self.is_usable and bool(longest + self.num_steps <= self._max_model_len)

    def num_unread(self, step: DraftingStep) -> npt.NDArray[np.int64]:
        """Tokens of each row before the step that the model has missed, int64 (rows,)."""
        if not self.abilities.skips:
            return np.zeros(len(step.rows), np.int64)
        assert self._ledger is not None
        unread = self._ledger.num_unread(step.rows)
        if self._is_swapped:
            # what no pass has room for is read no more: better a context of old readings than none
            for i in np.flatnonzero(unread > self._room):
                self._ledger.accept_old(step.rows[i])
            unread = self._ledger.num_unread(step.rows)
        return unread

    def swap(self, weights: DrafterWeights, before: DrafterWeights | None) -> None:
        """Draft with other weights of the same shapes from the next step on.

        What was read with the old ones counts as unread, and is read again as far as it fits into
        passes. If it fails, the weights before are put back; without them the model drafts no more
        until a swap succeeds.

        Args:
            weights: the new ones.
            before: those that are replaced; None if they are not at hand.
        """
        self.is_usable = False
        try:
            self._weights.put(weights, before)
        except Exception:
            if before is not None:
                self._weights.put(before)
                self.is_usable = True
            raise
        self.is_usable = self._is_swapped = True
        if self._ledger is not None:
            self._ledger.retire()

    def skip(self, step: DraftingStep) -> None:
        """The model does not run in this step."""
        if self.abilities.skips:
            assert self._ledger is not None
            self._ledger.note(step.rows, [False] * len(step.rows))

    def draft(
        self,
        step: DraftingStep,
        arguments: Sequence[Any],
        *,
        num_steps: int,
        catching_up: npt.NDArray[np.bool_],
    ) -> ModelChains:
        """Run the model over the step; its chains for all rows.

        Args:
            step: what the target did.
            arguments: those of vLLM's ``propose_draft_token_ids``.
            num_steps: tokens to draft.
            catching_up: bool, (rows,). Rows of which it also reads what it has missed, as far as
                that fits into the pass. Others that it has missed any of are drafted blindly, and
                their chains count for nothing.
        """
        is_sound = np.ones(len(step.rows), np.bool_)
        if self.abilities.skips:
            is_sound = self._plan(step, catching_up)
            self._note_mixed(step)
        self._step, self._steps, self._heard = step, num_steps, []
        try:
            drafted = self._propose_all(*arguments)
            heard = self._heard
        finally:
            self._step, self._unread, self._heard = None, None, None
            self._steps = self.num_steps
        if self.abilities.skips:
            assert self._ledger is not None
            self._ledger.note(step.rows, is_sound.tolist())
        return _chains(drafted, heard, is_sound)

    def draft_alone(self, arguments: Sequence[Any]) -> Any:
        """What vLLM would draft without us, as it returns it."""
        self.lose_account()
        return self._propose_all(*arguments)

    def lose_account(self) -> None:
        """What the model has read is not known any more: all of it is read anew."""
        if self._ledger is not None:
            self._ledger.clear()

    def stop_skipping(self) -> None:
        """From now on let the model run in every round, over what vLLM gives it."""
        self._abilities = Abilities(skips=False, shortens=self.abilities.shortens)

    def _note_mixed(self, step: DraftingStep) -> None:
        if self._is_swapped and self._ledger is not None:
            is_mixed = self._ledger.is_mixed
            self.mixed = frozenset(row.request_id for row in step.rows if is_mixed(row))

    def _plan(
        self, step: DraftingStep, catching_up: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Choose whose unread tokens are read in this pass: the first that fit."""
        unread = self.num_unread(step)
        free = self._room - sum(row.num_scheduled for row in step.rows)
        is_sound: npt.NDArray[np.bool_] = unread == 0
        for i in np.flatnonzero(catching_up & ~is_sound):
            is_sound[i] = unread[i] <= free
            free -= int(unread[i]) if is_sound[i] else 0
        self._unread = np.where(is_sound, unread, 0)
        self.num_caught_up += int(self._unread.sum())
        self.num_unsound += int((~is_sound).sum())
        return is_sound

    def _propose_more(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the proposer's own method."""
        if "num_speculative_tokens" in kwargs:
            kwargs["num_speculative_tokens"] = min(kwargs["num_speculative_tokens"], self._steps)
        if self._step is not None and self._unread is not None and self._unread.any():
            _widen(kwargs, self._step, self._unread)
        return self._propose(*args, **kwargs)

    def _listen(self) -> None:
        """Hear the logits that the drafter computes while it drafts for us."""
        model = self._proposer.model
        compute_logits = model.compute_logits

        def heard(*args: Any, **kwargs: Any) -> Any:
            logits = compute_logits(*args, **kwargs)
            if self._heard is not None and logits is not None:
                self._heard.append(_top(logits))
            return logits

        model.compute_logits = heard


def can_catch_up(runner: Any) -> bool:
    """Whether a proposer can read tokens later than in their step, from their ids alone."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    config, proposer = runner.vllm_config, runner.drafter
    group = max(0, int(getattr(proposer, "kv_cache_gid", 0)))
    spec = runner.kv_cache_config.kv_cache_groups[group].kv_cache_spec
    specs = getattr(spec, "kv_cache_specs", None)  # of a group that holds several
    each = list(specs.values()) if specs else [spec]
    return (
        config.speculative_config.method == "draft_model"
        and not proposer.pass_hidden_states_to_model
        and not runner.supports_mm_inputs
        and not runner.uses_mrope
        and config.kv_transfer_config is None
        and all(type(one) is FullAttentionSpec and not one.sliding_window for one in each)
    )


def is_alone(parallel: Any) -> bool:
    """Whether no other process runs passes of the drafter together with this one."""
    sizes = (
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
    )
    return all(getattr(parallel, size, 1) == 1 for size in sizes)


def _top(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Likeliest tokens of each row and their probabilities, (rows, TOP)."""
    values, tokens = logits.topk(TOP, dim=-1)
    return tokens, (values.float() - logits.float().logsumexp(-1, keepdim=True)).exp()


def _chains(
    drafted: Any,
    heard: list[tuple[torch.Tensor, torch.Tensor]] | None,
    is_sound: npt.NDArray[np.bool_],
) -> ModelChains:
    token_ids = np.asarray(
        drafted if isinstance(drafted, list) else drafted.cpu().numpy(), np.int32
    )
    num_rows, num_steps = token_ids.shape
    if heard and len(heard) == num_steps and all(len(top[0]) == num_rows for top in heard):
        top_token = torch.stack([tokens for tokens, _ in heard], dim=1).cpu().numpy()
        top_prob = torch.stack([probs for _, probs in heard], dim=1).cpu().numpy()
    else:
        top_token = token_ids[:, :, None]
        top_prob = np.full(top_token.shape, UNHEARD_PROBABILITY, np.float32)
    return ModelChains(token_ids, top_token.astype(np.int32), top_prob, is_sound)


def _widen(kwargs: dict[str, Any], step: DraftingStep, unread: npt.NDArray[np.int64]) -> None:
    """Put tokens that were not read in front of those that the target read in the step.

    Changes the arguments of vLLM's ``propose`` so that row i's query begins `unread[i]` tokens
    earlier. O(tokens of the pass).
    """
    attention = kwargs["common_attn_metadata"]
    own = kwargs["target_token_ids"]
    starts = attention.query_start_loc_cpu.numpy().astype(np.int64)
    lengths = np.diff(starts)
    new_starts = np.concatenate([[0], np.cumsum(lengths + unread)])
    first = np.array([row.start for row in step.rows]) - unread
    total = int(new_starts[-1])
    # Where the step's own tokens go, and where those before them.
    at_own = np.arange(starts[-1]) + np.repeat(np.cumsum(unread), lengths)
    at_missed = np.concatenate(
        [np.arange(n) + new for n, new in zip(unread, new_starts[:-1], strict=True)]
    )
    missed = np.concatenate(
        [step.token_ids[i, a : a + n] for i, (a, n) in enumerate(zip(first, unread, strict=True))]
    )
    before = np.concatenate([np.arange(a, a + n) for a, n in zip(first, unread, strict=True)])

    def joined(held: torch.Tensor, added: npt.NDArray[Any]) -> torch.Tensor:
        result = held.new_empty(total)
        result[torch.from_numpy(at_own).to(held.device)] = held
        result[torch.from_numpy(at_missed).to(held.device)] = torch.from_numpy(added).to(held)
        return result

    kwargs["target_token_ids"] = joined(own, missed)
    kwargs["target_positions"] = positions = joined(kwargs["target_positions"], before)
    starts_cpu = torch.from_numpy(new_starts).to(attention.query_start_loc_cpu)
    kwargs["common_attn_metadata"] = attention.replace(
        query_start_loc=starts_cpu.to(attention.query_start_loc.device),
        query_start_loc_cpu=starts_cpu,
        num_actual_tokens=total,
        max_query_len=int((lengths + unread).max()),
        # vLLM computes the slots anew from positions and block tables; -1 writes nothing
        slot_mapping=attention.slot_mapping.new_full((total,), -1),
        **_reset(attention, positions),
    )


def _reset(attention: Any, positions: torch.Tensor) -> dict[str, Any]:
    """Fields that vLLM derives from queries, as far as this version has them."""
    derived: dict[str, Any] = {
        "_num_computed_tokens_cache": None,
        "_token_to_req_indices_cache": None,
    }
    if getattr(attention, "positions", None) is not None:
        derived["positions"] = positions
    return {name: value for name, value in derived.items() if hasattr(attention, name)}
