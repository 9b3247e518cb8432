"""Sampling with speculation: the target's distribution, over tens of thousands of tokens.

Small models of random weights, drafts by memory and by another model; expected are the
probabilities that transformers' own forward pass gives for every prefix. Seeds are fixed, so that
an outcome is always the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from sampled_frequencies import frequencies
from small_models import random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams
    from paceline.adapters.embedded.target import Target
    from paceline.benchmarks.exact.frequencies import Frequencies

VOCABULARY = 12
NUM_REPLIES = 256
REPLY_TOKENS = 200
SIGNIFICANCE = 1e-3
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 1,
    "initializer_range": 0.35,
}
DRAFTER_NOISE = 0.05


class Spelling:
    """Stands in for a tokenizer where only tokens count."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """One letter a token."""
        return "".join(chr(65 + token_id) for token_id in token_ids)


def make_target(model: Any) -> Target:
    from paceline.adapters.embedded.target import Target

    target = Target(model, Spelling())
    target.eos_token_ids = frozenset()
    return target


def requests(sampling: dict[str, Any]) -> list[GenerationRequest]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    return [
        GenerationRequest(
            info=RequestInfo(request_id=f"r{i}", tenant="t"),
            prompt_ids=(i % VOCABULARY, i // VOCABULARY % VOCABULARY),
            max_tokens=REPLY_TOKENS,
            sampling=SamplingParams(seed=i, **sampling),
        )
        for i in range(NUM_REPLIES)
    ]


def make_engine(*, memory: bool, drafter: bool, branches: int) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    settings = EngineSettings(max_running=64, max_draft_tokens=6, max_branches=branches)
    return EmbeddedEngine(
        make_target(random_model("llama", **SHAPE)),
        Speculator() if memory else None,
        settings,
        drafter=make_target(random_model("llama", noise=DRAFTER_NOISE, **SHAPE))
        if drafter
        else None,
        clock=lambda: 0.0,
    )


def replies(engine: EmbeddedEngine, sampling: dict[str, Any]) -> list[list[int]]:
    from paceline.benchmarks.exact.answers import answer_all

    engine.start()
    try:
        answers = answer_all(engine, requests(sampling), clock=lambda: 0.0)
    finally:
        engine.close()
    return [answer.token_ids for answer in answers]


def frequencies_of(said: list[list[int]], sampling: dict[str, Any]) -> dict[str, Frequencies]:
    model = random_model("llama", **SHAPE)
    model.set_attn_implementation("eager")
    prompts = [request.prompt_ids for request in requests(sampling)]
    return frequencies(model, zip(prompts, said, strict=True), sampling)


CASES = {
    "chains of a drafter": (
        {"temperature": 1.0},
        {"memory": False, "drafter": True, "branches": 1},
    ),
    "trees of memory": ({"temperature": 1.3}, {"memory": True, "drafter": False, "branches": 4}),
    "fused chains, top_p": (
        {"temperature": 1.0, "top_p": 0.8},
        {"memory": True, "drafter": True, "branches": 1},
    ),
    "fused trees": ({"temperature": 0.6}, {"memory": True, "drafter": True, "branches": 3}),
}


@pytest.mark.parametrize(("sampling", "drafting"), CASES.values(), ids=CASES)
def test_tokens_have_the_targets_frequencies(
    sampling: dict[str, Any], drafting: dict[str, Any]
) -> None:
    """51,200 tokens said with drafts fit the probabilities of the target, its tokens and pairs."""
    engine = make_engine(**drafting)
    said = replies(engine, sampling)
    for count in frequencies_of(said, sampling).values():
        assert count.num_tokens == NUM_REPLIES * REPLY_TOKENS
        assert count.fit().p_value > SIGNIFICANCE
    assert engine.draft_failures.count == 0
    assert engine.counts.accepted_tokens > NUM_REPLIES * REPLY_TOKENS / 5


def forgets_the_residual(
    logits: Any, token_ids: Any, parents: Any, params: SamplingParams, position: int
) -> tuple[list[int], list[int]]:
    """After a rejection draws from the whole distribution again, the drafted tokens included."""
    from paceline.adapters.embedded.sampling import draw, verify

    said, path = verify(logits, token_ids, parents, params, position)
    row = path[-1] + 1 if path else 0
    if any(parent == row - 1 for parent in parents):
        said[-1] = draw(logits[row], params, position + len(said) + 10**6)
    return said, path


def prefers_drafts(
    logits: Any, token_ids: Any, parents: Any, params: SamplingParams, position: int
) -> tuple[list[int], list[int]]:
    """Takes what is drafted a little too often: as if its logit were a fifth higher."""
    from paceline.adapters.embedded.sampling import verify

    raised = logits.clone()
    for node in reversed(range(len(token_ids))):
        raised[parents[node] + 1, token_ids[node]] += 0.2
    return verify(raised, token_ids, parents, params, position)


@pytest.mark.parametrize(
    ("wrong", "case"),
    [(forgets_the_residual, "fused trees"), (prefers_drafts, "trees of memory")],
)
def test_a_wrong_verifier_is_found_out(
    wrong: Any, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same test fails where verification is wrong by a little."""
    from paceline.adapters.embedded import engine as module

    monkeypatch.setattr(module, "verify", wrong)
    sampling, drafting = CASES[case]
    said = replies(make_engine(**drafting), sampling)
    values = {name: count.fit().p_value for name, count in frequencies_of(said, sampling).items()}
    assert min(values.values()) < SIGNIFICANCE
