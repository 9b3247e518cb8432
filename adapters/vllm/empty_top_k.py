"""`top_k` in a step without drafts, on the CPU.

vLLM's rejection sampler masks the logits of drafted tokens by the requests' ``top_k``. Where
nothing was drafted there are none, and vLLM's way of doing it on a CPU takes the largest ``top_k``
of no requests, which raises and ends the whole engine: one client's ``top_k`` would take everybody
down.
"""

from __future__ import annotations

from types import ModuleType

import torch


def allow_no_rows(sampler: ModuleType) -> None:
    """Have vLLM's `apply_top_k_only` leave logits without rows as they are; harmless if repeated.

    Args:
        sampler: `vllm.v1.sample.ops.topk_topp_sampler`; one without that function is left alone.
    """
    unguarded = getattr(sampler, "apply_top_k_only", None)
    if unguarded is None or hasattr(unguarded, "allows_no_rows"):
        return

    def apply_top_k_only(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        masked: torch.Tensor = unguarded(logits, k) if len(logits) else logits
        return masked

    apply_top_k_only.allows_no_rows = True  # type: ignore[attr-defined]  # a function's own note
    sampler.apply_top_k_only = apply_top_k_only  # type: ignore[attr-defined]
