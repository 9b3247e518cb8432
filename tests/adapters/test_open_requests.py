"""The requests of vLLM's batch, as far as vLLM is not needed to tell."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.adapters.decisions import DecisionLog
from paceline.adapters.failures import FailureLog
from paceline.adapters.speculator import Speculator
from paceline.adapters.vllm.open_requests import OpenRequests


@pytest.mark.parametrize(
    ("xargs", "expected"),
    [
        ({"paceline_tenant": "t", "paceline_learn": 1}, (True, "")),
        ({"paceline_tenant": "t", "paceline_learn": 1, "paceline_drafter": "b"}, (True, "b")),
        ({"paceline_tenant": "t"}, (False, "")),
    ],
)
def test_a_request_brings_what_its_record_says(
    xargs: dict[str, Any], expected: tuple[bool, str]
) -> None:
    """Whether it is learned from, by whose drafter, and at which temperature it is answered."""
    params = SimpleNamespace(extra_args=xargs, temperature=0.7)
    state = SimpleNamespace(sampling_params=params, lora_request=None)
    runner = SimpleNamespace(requests={"r": state})
    requests = OpenRequests(
        runner,
        Speculator(),
        FailureLog(logging.getLogger("t"), "t"),
        DecisionLog(),
        num_draft_tokens=4,
        max_model_len=64,
    )
    info = requests.info("r")
    assert (info.learn, info.drafter_group) == expected
    assert info.temperature == 0.7
    assert not requests.is_greedy("r")
