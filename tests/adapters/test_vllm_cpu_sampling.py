"""What stands in for functions of vLLM's CPU build says what they are meant to say."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from paceline.adapters.vllm.cpu_sampling import expand_batch_to_tokens, mend


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_each_value_is_repeated_for_its_tokens(dtype: torch.dtype) -> None:
    """In the type it has; requests without tokens give none; one value can be replaced."""
    values = torch.tensor([0, 7, 9], dtype=dtype)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    expanded = expand_batch_to_tokens(values, ends, 5, replace_from=0, replace_to=1)
    assert expanded.tolist() == [1, 1, 9, 9, 9]
    assert expanded.dtype == dtype
    assert expand_batch_to_tokens(values, torch.zeros(3, dtype=torch.int32), 0).tolist() == []


def test_masking_leaves_no_rows_alone() -> None:
    """Only where there are none; mending twice is mending once."""
    sampler, masking = ModuleType("sampler"), ModuleType("masking")
    calls = []
    masking.apply_top_k_only = lambda logits, k: calls.append(k) or logits + 1  # type: ignore[attr-defined]
    for _ in range(2):
        mend(sampler, masking)
    k = torch.tensor([1])
    assert masking.apply_top_k_only(torch.zeros(0, 4), k).shape == (0, 4)
    assert masking.apply_top_k_only(torch.zeros(1, 4), k).tolist() == [[1.0] * 4]
    assert len(calls) == 1
    assert sampler.expand_batch_to_tokens is expand_batch_to_tokens
