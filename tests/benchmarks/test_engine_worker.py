"""What is done to a target's logits."""

from __future__ import annotations

import pytest

from paceline.benchmarks.engine import worker
from paceline.benchmarks.engine.worker import raise_logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_the_wanted_tokens_are_raised(dtype: str) -> None:
    """In every number format the wanted token is the likeliest of its row; the rest stays."""
    import torch

    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)).to(
        getattr(torch, dtype)
    )
    before = logits.clone()
    raise_logits(logits, [0, 2, 4], [10, 0, 7])
    assert logits.float().argmax(dim=-1)[[0, 2, 4]].tolist() == [10, 0, 7]
    changed = (logits != before).nonzero().tolist()
    assert changed == [[0, 10], [2, 0], [4, 7]]
    raise_logits(logits, [], [])
    assert torch.isfinite(logits).all()


def test_a_worker_of_another_name_is_not_there() -> None:
    """The module makes four classes and no other."""
    with pytest.raises(AttributeError, match="TPUWorker"):
        _ = worker.TPUWorker
