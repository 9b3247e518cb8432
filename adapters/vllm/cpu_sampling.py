"""What vLLM's CPU build (0.32) does wrong where it samples beside drafts.

Its rejection sampler repeats each request's temperature, ``top_k`` and ``top_p`` for each drafted
token by a kernel that writes into a copy of its output unless that holds 64-bit integers: what
comes out is whatever the memory held. Drafts are then verified at any temperature, and a ``top_k``
of chance ends the engine. And where nothing was drafted, the largest ``top_k`` of no tokens is
taken, which ends it too: one client's request would take everybody down.
"""

from __future__ import annotations

from types import ModuleType

import torch


def mend(rejection_sampler: ModuleType, masking: ModuleType) -> None:
    """Put right functions of vLLM in the places of the wrong ones; harmless if repeated.

    Args:
        rejection_sampler: `vllm.v1.sample.rejection_sampler`.
        masking: `vllm.v1.sample.ops.topk_topp_sampler`; one without `apply_top_k_only` has no fault
            to mend.
    """
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens  # type: ignore[attr-defined]
    unguarded = getattr(masking, "apply_top_k_only", None)
    if unguarded is None or hasattr(unguarded, "allows_no_rows"):
        return

    def apply_top_k_only(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = unguarded(logits, k) if len(logits) else logits
        return masked

    apply_top_k_only.allows_no_rows = True  # type: ignore[attr-defined]  # a function's own note
    masking.apply_top_k_only = apply_top_k_only  # type: ignore[attr-defined]


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: float = 0,
    replace_to: float = 0,
) -> torch.Tensor:
    """Each request's value, as often as it has tokens; stands in for vLLM's function of the name.

    Args:
        x: (requests,), of any type.
        cu_num_tokens: (requests,), integers. Tokens of all requests up to each, itself included.
        num_tokens: of all of them.
        replace_from: where `x` holds this,
        replace_to: this is given instead.

    Returns:
        (num_tokens,), of the type of `x`.
    """
    lengths = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = x.masked_fill(x == replace_from, replace_to)
    return values.repeat_interleave(lengths.long(), output_size=num_tokens)
