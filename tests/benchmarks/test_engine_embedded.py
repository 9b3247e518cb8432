"""The embedded engine forced to say recorded replies, on its real model."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from paceline.benchmarks.engine.records import Load, Unit, WorkRequest

pytestmark = pytest.mark.model

SENTENCE = "The rider in front breaks the wind for the others. "


@pytest.fixture(scope="module")
def target() -> Any:
    """SmolLM2 as a target that says what it is told to."""
    import torch

    from paceline.benchmarks.engine.embedded_server import ForcedTarget

    torch.set_num_threads(1)
    return ForcedTarget.load(None)


def unit(target: Any) -> Unit:
    """Two turns; the second reply repeats the first, and holds what would end a free reply."""
    encode = target.tokenizer.encode
    reply = tuple(encode(SENTENCE * 2))
    replies = [reply, (*reply, target.tokenizer.eos_token_id, *reply)]
    requests = tuple(
        WorkRequest(
            tenant="t",
            session="s",
            episode_id="e",
            turn=turn,
            prompt_ids=tuple(encode("Question: what is drafting?")),
            output_ids=output_ids,
        )
        for turn, output_ids in enumerate(replies)
    )
    return Unit(variant="embedded", source="s", load=Load(), file="", episodes=(requests,))


def measure(target: Any, *, speculate: bool, drafter: Any = None) -> tuple[Any, Any]:
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.benchmarks.engine.embedded_server import EmbeddedServer
    from paceline.benchmarks.engine.load import LoadLoop

    async def run() -> tuple[Any, Any]:
        settings = EngineSettings(max_kept_bytes=0)  # every prompt is read
        server = EmbeddedServer(target, speculate=speculate, settings=settings, drafter=drafter)
        try:
            timings = await LoadLoop(server, time.perf_counter).run(unit(target))
            return timings, await server.take_steps()
        finally:
            server.close()

    return asyncio.run(run())


def test_the_embedded_engine_says_the_recorded_replies_in_fewer_steps(target: Any) -> None:
    """With and without drafts every token is the recorded one; with them in fewer rounds."""
    replies = [request.output_ids for request in unit(target).episodes[0]]
    num_decoded = sum(len(reply) - 1 for reply in replies)
    timings, steps = measure(target, speculate=False)
    assert [t.num_output for t in timings] == [len(reply) for reply in replies]
    assert sum(s.num_decoding for s in steps) == num_decoded
    assert sum(s.num_drafted for s in steps) == 0
    timings, steps = measure(target, speculate=True)
    assert [t.num_output for t in timings] == [len(reply) for reply in replies]
    assert sum(s.num_decoded for s in steps) == num_decoded
    assert sum(s.num_decoding for s in steps) < num_decoded * 2 / 3
    rounds = sum(s.num_decoding for s in steps)
    assert sum(s.num_accepted for s in steps) == num_decoded - rounds
    assert sum(s.num_prefill for s in steps) == sum(t.num_prompt for t in timings)
    assert sum(s.draft_seconds for s in steps) > 0


def test_a_drafters_passes_count_as_drafting(target: Any) -> None:
    """A model alone and beside memory: the recorded replies, drafts of both, time for either."""
    from paceline.adapters.embedded.target import Target
    from small_models import random_model

    vocabulary = int(target.model.config.vocab_size)
    model = random_model("llama", vocab_size=vocabulary, initializer_range=1.0)
    drafter = Target(model, target.tokenizer)
    _, alone = measure(target, speculate=False, drafter=drafter)
    assert sum(s.num_drafted for s in alone) > 0
    assert sum(s.draft_seconds for s in alone) > 0
    _, both = measure(target, speculate=True, drafter=drafter)
    assert sum(s.num_accepted for s in both) > sum(s.num_accepted for s in alone)
