"""What training minimises, against the definition written out."""

from __future__ import annotations

import math


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
