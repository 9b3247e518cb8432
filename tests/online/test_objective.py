"""What training minimises, against the definition written out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from paceline.online.settings import OBJECTIVES, Objective


def test_it_is_the_divergence_of_top_tokens_and_tail() -> None:
    """Over a whole head: top tokens one by one, all others as one."""
    import torch

    from paceline.online.objective import forward_kl

    torch.manual_seed(0)
    p = torch.randn(5, 11).softmax(-1)
    logits = torch.randn(5, 11)
    q = logits.softmax(-1)
    top = p.topk(3, dim=-1)
    found = forward_kl(logits, top.indices, top.values.log())
    for i in range(5):
        ids = top.indices[i].tolist()
        pairs = [(float(p[i, t]), float(q[i, t])) for t in ids]
        pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
        expected = sum(a * math.log(a / b) for a, b in pairs)
        assert math.isclose(float(found[i]), expected, rel_tol=1e-4, abs_tol=1e-6)


def test_tokens_that_the_head_lacks_are_left_out() -> None:
    """The rest of the target's distribution is what is learned, and it counts by its share."""
    import torch

    from paceline.online.objective import forward_kl

    logits = torch.tensor([[0.3, -0.2, 0.9]])
    top_rows = torch.tensor([[-1, 0, 2]])
    p = torch.tensor([[0.5, 0.3, 0.15]])
    q = logits.softmax(-1)[0]
    rest = [(0.3, float(q[0])), (0.15, float(q[2])), (0.05, float(q[1]))]
    expected = sum(a * math.log(a / 0.5 / b) for a, b in rest)
    assert math.isclose(float(forward_kl(logits, top_rows, p.log())[0]), expected, rel_tol=1e-4)


def test_a_drafter_that_is_the_target_has_nothing_to_learn() -> None:
    """The divergence and its gradient are zero."""
    import torch

    from paceline.online.objective import forward_kl

    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    top = logits.detach().log_softmax(-1).topk(6, dim=-1)
    loss = forward_kl(logits, top.indices, top.values).sum()
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-5


def random_case(seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """(logits, rows of the whole vocabulary, log probabilities of all, the target's distribution)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(6, 9, generator=generator).softmax(-1)
    logits = torch.randn(6, 9, generator=generator)
    top = p.topk(9, dim=-1)
    return logits, top.indices, top.values.log(), p


def test_acceptance_is_what_rejection_sampling_accepts() -> None:
    """With all tokens known, the variation and the logarithm are of the overlap of both."""
    import torch

    from paceline.online.objective import losses

    logits, rows, logprobs, p = random_case()
    overlap = torch.minimum(p, logits.softmax(-1)).sum(-1)
    found = losses("total_variation", logits, rows, logprobs)
    assert torch.allclose(found, 1 - overlap, atol=1e-5)
    found = losses("log_acceptance", logits, rows, logprobs)
    assert torch.allclose(found, -overlap.log(), atol=1e-5)


def test_the_hybrid_goes_from_one_to_the_other() -> None:
    """It lies between its parts; where nothing is accepted it is the divergence."""
    import torch

    from paceline.online.objective import losses

    logits, rows, logprobs, _ = random_case(1)
    kl = losses("forward_kl", logits, rows, logprobs)
    variation = losses("total_variation", logits, rows, logprobs)
    found = losses("hybrid", logits, rows, logprobs)
    assert bool((found <= torch.maximum(kl, variation) + 1e-6).all())
    assert bool((found >= torch.minimum(kl, variation) - 1e-6).all())
    apart = torch.tensor([[30.0, 0.0]])
    other = torch.tensor([[1]]), torch.tensor([[0.0]])
    kl = losses("forward_kl", apart, *other)
    assert torch.allclose(losses("hybrid", apart, *other), kl, rtol=1e-3)


def test_greedy_is_cross_entropy_on_the_likeliest_token() -> None:
    """And nothing where the trimmed head does not know it."""
    import torch

    from paceline.online.objective import losses

    logits, rows, logprobs, p = random_case(2)
    expected = torch.nn.functional.cross_entropy(logits, p.argmax(-1), reduction="none")
    assert torch.allclose(losses("greedy", logits, rows, logprobs), expected, atol=1e-5)
    rows[:, 0] = -1
    assert not losses("greedy", logits, rows, logprobs).any()


def test_expected_acceptance_is_of_a_drawn_token() -> None:
    """One less the sum of both probabilities' products."""
    import torch

    from paceline.online.objective import losses

    logits, rows, logprobs, p = random_case(3)
    expected = 1 - (p * logits.softmax(-1)).sum(-1)
    found = losses("expected_acceptance", logits, rows, logprobs)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_descending_any_of_them_makes_the_drafter_agree(objective: Objective) -> None:
    """Plain descent on one position brings the likeliest tokens together."""
    import torch

    from paceline.online.objective import losses

    logits, rows, logprobs, p = random_case(4)
    logits.requires_grad_(True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        losses(objective, logits, rows, logprobs).sum().backward()
        optimiser.step()
    assert torch.equal(logits.argmax(-1), p.argmax(-1))
