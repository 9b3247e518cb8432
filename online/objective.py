"""What a drafter is trained to do. Needs torch."""

from __future__ import annotations

import torch

TINY = 1e-6


def forward_kl(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """Kullback-Leibler divergence from the target to the drafter, on the target's likeliest tokens.

    All other tokens count as one, the tail, so that probability which the drafter wastes there is
    seen. Tokens that a trimmed head does not know are left out of the target's distribution, and a
    position counts by what is left of it. (Distillation for speculative decoding: DistillSpec,
    arXiv 2310.08461.)

    Args:
        logits: the drafter's, (positions, rows of its head).
        top_rows: row of each of the target's likeliest tokens, int64 (positions, k); -1 if the head
            does not know it.
        top_logprobs: the target's, float (positions, k).

    Returns:
        (positions,), each at least zero but for rounding.
    """
    is_known = top_rows >= 0
    p_all = top_logprobs.exp()
    p = p_all * is_known
    p_tail = (1 - p_all.sum(-1)).clamp_min(0)
    weight = (p.sum(-1) + p_tail).clamp_min(TINY)
    log_q = logits.log_softmax(-1).gather(-1, top_rows.clamp_min(0))
    q_tail = (1 - (log_q.exp() * is_known).sum(-1)).clamp_min(TINY)
    log_p = p.clamp_min(TINY).log()
    on_top = (p * (log_p - log_q)).sum(-1)
    on_tail = p_tail * (p_tail.clamp_min(TINY).log() - q_tail.log())
    return on_top + on_tail - (p.sum(-1) + p_tail) * weight.log()
