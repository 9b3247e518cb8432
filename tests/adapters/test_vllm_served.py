"""What vLLM's proposer counts of what is served, on a runner of the tests' own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paceline.adapters.speculator import Speculator
from paceline.adapters.vllm.proposer import DraftProposer

PROMPT = [7, 8, 9, 10, 11, 12, 7, 8, 9]
NEXT = [10, 11, 12, 7, 8, 9]
ROUND_SECONDS, TOKEN_SECONDS = 0.02, 0.001


class Clock:
    """Seconds that go by when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduled(num_drafted: int, context: int, *, new: bool = False) -> Any:
    """A step of one request as vLLM's scheduler says it."""
    cached = [] if new else ["r"]
    return SimpleNamespace(
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached, num_computed_tokens=[context] * len(cached)
        ),
        num_scheduled_tokens={"r": 1 + num_drafted},
        scheduled_spec_decode_tokens={"r": [0] * num_drafted} if num_drafted else {},
        scheduled_new_reqs=["r"] if new else [],
    )


@pytest.fixture
def runner() -> Any:
    """As much of vLLM's runner as is read: one request of a tenant's workload."""
    params = SimpleNamespace(
        extra_args={
            "paceline_tenant": "shop",
            "paceline_scope": "tenant:shop",
            "paceline_workload": "sql",
        },
        temperature=0.0,
        max_tokens=400,
    )
    request = SimpleNamespace(
        prompt_token_ids=PROMPT,
        num_prompt_tokens=len(PROMPT),
        sampling_params=params,
        lora_request=None,
    )
    return SimpleNamespace(input_batch=SimpleNamespace(req_ids=["r"]), requests={"r": request})


def test_rounds_are_counted_with_what_they_take(runner: Any) -> None:
    """A request that repeats itself: tokens, saved rounds and the speedup that they bring."""
    proposer, clock = DraftProposer(config()), Clock()
    proposer._rounds._clock = clock
    proposer.attach(runner, Speculator(), always_draft=True)
    tokens = np.zeros((1, 512), np.int32)
    tokens[0, : len(PROMPT)] = PROMPT
    said, drafted, num_rounds = list(PROMPT), 0, 0
    for number in range(40):
        proposer.begin_step(scheduled(drafted, len(said), new=not number))
        # as many drafted tokens as each step verifies are right, more and fewer in turn
        num_kept = 1 + drafted
        news = [NEXT[(len(said) - len(PROMPT) + i) % len(NEXT)] for i in range(num_kept)]
        tokens[0, len(said) : len(said) + len(news)] = news
        said += news
        clock.now += ROUND_SECONDS + TOKEN_SECONDS * num_kept
        (draft,) = proposer.propose([news], np.array([len(said)], np.int32), tokens)
        num_rounds += bool(number)
        drafted = min(len(draft), number % 4)
        right = [NEXT[(len(said) - len(PROMPT) + i) % len(NEXT)] for i in range(drafted)]
        assert draft[:drafted] == right
    served = proposer.decisions.served()["shop", "sql"]
    assert (served.requests, served.rounds) == (1, num_rounds)
    assert proposer.failures.count == 0
    assert sum(served.drafted) >= sum(served.accepted) > num_rounds
    assert served.tokens == 1 + num_rounds + sum(served.accepted)
    assert served.undrafted_seconds > 1.5 * served.round_seconds > 0


def config() -> Any:
    """As much of vLLM's configuration as is read."""
    return SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=4),
        model_config=SimpleNamespace(max_model_len=500),
    )
