"""Sampling beside drafts in a real vLLM: the target's distribution, over 51,200 tokens a case.

A small model of random weights; expected are the probabilities that transformers' own forward pass
gives for every prefix. Seeds are fixed, and whether the model drafts does not depend on the clock.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from offline_vllm import run_offline
from sampled_frequencies import frequencies
from small_models import random_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SCRIPT: Final = Path(__file__).with_name("offline_sampling.py")
NUM_TOKENS: Final = 256 * 200
"""Of a case: replies, and tokens of each."""
SIGNIFICANCE: Final = 1e-7
"""Small enough for machines whose rounding, and so whose draws, are others."""
SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 16,
    "hidden_size": 64,
    "num_attention_heads": 2,  # of 32 numbers, the fewest that vLLM's attention takes
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "initializer_range": 0.3,
}
DRAFTER_NOISE: Final = 0.05
MEMORY: Final[dict[str, Any]] = {
    "temperature": {"sampling": {"temperature": 1.4}, "wrong": None},
    "top_p": {"sampling": {"temperature": 0.7, "top_p": 0.8}, "wrong": None},
    "unmended": {"sampling": {"temperature": 1.4}, "wrong": "unmended"},
    "no residual": {"sampling": {"temperature": 1.4}, "wrong": "no residual"},
}
FUSED: Final[dict[str, Any]] = {
    "temperature": {"sampling": {"temperature": 1.4}, "wrong": None},
    "top_k": {"sampling": {"temperature": 0.6, "top_k": 5}, "wrong": None},
}


def run_cases(folder: Path, cases: dict[str, Any], *drafter: Path) -> dict[str, Any]:
    """What the engine said in each; `folder` takes the target."""
    random_model("llama", **SHAPE).save_pretrained(folder)
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    return run_offline(SCRIPT, folder, file, *drafter)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an engine said that drafts from memory."""
    return run_cases(tmp_path_factory.mktemp("memory"), MEMORY)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an engine said that drafts from memory and a model."""
    drafter = tmp_path_factory.mktemp("drafter")
    random_model("llama", noise=DRAFTER_NOISE, **SHAPE).save_pretrained(drafter)
    return run_cases(tmp_path_factory.mktemp("fused"), FUSED, drafter)


def p_values(result: dict[str, Any], sampling: dict[str, Any]) -> dict[str, float]:
    """Of the chi-square tests of tokens, ranks and pairs."""
    model = random_model("llama", **SHAPE)
    model.set_attn_implementation("eager")
    replies = zip(result["prompts"], result["said"], strict=True)
    counts = frequencies(model, replies, sampling)
    assert {count.num_tokens for count in counts.values()} == {NUM_TOKENS}
    return {name: count.fit().p_value for name, count in counts.items()}


@pytest.mark.parametrize("case", ["temperature", "top_p"])
def test_tokens_drafted_from_memory_have_the_targets_frequencies(
    memory: dict[str, Any], case: str
) -> None:
    """51,200 sampled tokens, a good part of them drafted, fit the target's probabilities."""
    result = memory[case]
    assert min(p_values(result, MEMORY[case]["sampling"]).values()) > SIGNIFICANCE
    assert NUM_TOKENS / 20 < result["accepted"] < result["drafted"] / 2
    assert result["failures"] == 0


@pytest.mark.parametrize("case", ["temperature", "top_k"])
def test_fused_tokens_have_the_targets_frequencies(fused: dict[str, Any], case: str) -> None:
    """The same beside a model drafter that rests in every second round."""
    result = fused[case]
    assert min(p_values(result, FUSED[case]["sampling"]).values()) > SIGNIFICANCE
    for who in ("memory", "model"):
        assert NUM_TOKENS / 50 < result[f"accepted_{who}"] < result[f"drafted_{who}"] / 2
    assert result["failures"] == 0


@pytest.mark.parametrize("case", ["unmended", "no residual"])
def test_wrong_verification_is_found_out(memory: dict[str, Any], case: str) -> None:
    """The test fails without our mending of vLLM's CPU build, and with a wrong draw in its place.

    The draw is made from the target's whole distribution after a draft was rejected.
    """
    result = memory[case]
    assert result["drafted"] > NUM_TOKENS / 20
    assert min(p_values(result, MEMORY[case]["sampling"]).values()) < SIGNIFICANCE
