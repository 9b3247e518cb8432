"""What a drafter is trained to do. Needs torch.

All objectives see the target's likeliest tokens one by one and all others as one, the tail, so that
probability which the drafter wastes there is seen. Tokens that a trimmed head does not know are
left out of the target's distribution, and a position counts by what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch

from paceline.online.settings import Objective

TINY = 1e-6
KL_DECAY: Final = 3.0
"""How fast the divergence gives way to the acceptance in `hybrid`."""


def losses(
    objective: Objective,
    logits: torch.Tensor,
    top_rows: torch.Tensor,
    top_logprobs: torch.Tensor,
) -> torch.Tensor:
    """What each position contributes, float (positions,).

    Args:
        objective: its name.
        logits: the drafter's, (positions, rows of its head).
        top_rows: row of each of the target's likeliest tokens, the likeliest first, int64
            (positions, k); -1 if the head does not know it.
        top_logprobs: the target's, float (positions, k).
    """
    return _LOSSES[objective](logits, top_rows, top_logprobs)


def forward_kl(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """Kullback-Leibler divergence from the target to the drafter, at least zero but for rounding.

    Distillation for speculative decoding: DistillSpec, arXiv 2310.08461.
    """
    p, p_tail, weight = _target(top_rows, top_logprobs)
    log_q, q_tail = _drafter(logits, top_rows)
    on_top = (p * (p.clamp_min(TINY).log() - log_q)).sum(-1)
    on_tail = p_tail * (p_tail.clamp_min(TINY).log() - q_tail.log())
    return on_top + on_tail - (p.sum(-1) + p_tail) * weight.log()


def total_variation(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """One less the chance that rejection sampling accepts what the drafter draws."""
    *_, weight = _target(top_rows, top_logprobs)
    return weight * (1 - _acceptance(logits, top_rows, top_logprobs))


def log_acceptance(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """Minus the logarithm of that chance, whose gradient does not vanish where it is small.

    LK losses, arXiv 2602.23881.
    """
    *_, weight = _target(top_rows, top_logprobs)
    return -weight * _acceptance(logits, top_rows, top_logprobs).clamp_min(TINY).log()


def hybrid(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """The divergence where little is accepted, the variation where much is.

    Both are mixed by a share that falls with the chance of acceptance, which is no part of the
    gradient (LK losses, arXiv 2602.23881).
    """
    share = (-KL_DECAY * _acceptance(logits, top_rows, top_logprobs).detach()).exp()
    return share * forward_kl(logits, top_rows, top_logprobs) + (1 - share) * total_variation(
        logits, top_rows, top_logprobs
    )


def greedy(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy on the target's likeliest token alone: what greedy verification accepts.

    Where the head does not know that token, nothing.
    """
    log_q, _ = _drafter(logits, top_rows)
    return -log_q[:, 0] * (top_rows[:, 0] >= 0)


def expected_acceptance(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """One less the target's probability of a token that the drafter draws.

    What a target that samples accepts of drafts that are verified as certain guesses, softened so
    that it has a gradient: the drafter's likeliest token would be accepted with the target's
    probability of it.
    """
    p, *_ = _target(top_rows, top_logprobs)
    log_q, _ = _drafter(logits, top_rows)
    is_known = top_rows >= 0
    return 1 - (p * log_q.exp() * is_known).sum(-1)


_LOSSES: Final[
    Mapping[Objective, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]
] = MappingProxyType(
    {
        "forward_kl": forward_kl,
        "total_variation": total_variation,
        "log_acceptance": log_acceptance,
        "hybrid": hybrid,
        "greedy": greedy,
        "expected_acceptance": expected_acceptance,
    }
)


def _target(
    top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(probabilities of known likeliest tokens, of the tail, of both together)."""
    p_all = top_logprobs.exp()
    p = p_all * (top_rows >= 0)
    p_tail = (1 - p_all.sum(-1)).clamp_min(0)
    return p, p_tail, (p.sum(-1) + p_tail).clamp_min(TINY)


def _drafter(logits: torch.Tensor, top_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log probabilities of the likeliest tokens, probability of the tail)."""
    log_q = logits.log_softmax(-1).gather(-1, top_rows.clamp_min(0))
    q_tail = (1 - (log_q.exp() * (top_rows >= 0)).sum(-1)).clamp_min(TINY)
    return log_q, q_tail


def _acceptance(
    logits: torch.Tensor, top_rows: torch.Tensor, top_logprobs: torch.Tensor
) -> torch.Tensor:
    """Chance that rejection sampling accepts a drawn token: the overlap of both distributions.

    The tails are taken to overlap as far as their sizes allow.
    """
    p, p_tail, weight = _target(top_rows, top_logprobs)
    log_q, q_tail = _drafter(logits, top_rows)
    q = log_q.exp() * (top_rows >= 0)
    overlap = torch.minimum(p / weight[:, None], q).sum(-1)
    return overlap + torch.minimum(p_tail / weight, q_tail)
