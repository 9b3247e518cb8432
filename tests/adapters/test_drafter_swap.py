"""The embedded engine's drafter changes while it runs, on small models of random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from drafter_folders import save_drafter
from paceline.adapters.drafter_swap import Swap
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import TokenTree
from random_targets import make_target
from small_models import VOCABULARY

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.target import Target

GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 0.7, "seed": 11}
NUM_REQUESTS = 4


def make_engine(drafter: Target | None, *, memory: bool = True, **options: Any) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    settings = EngineSettings(
        max_running=NUM_REQUESTS, always_draft=True, max_branches=options.pop("branches", 1)
    )
    return EmbeddedEngine(
        make_target(), Speculator() if memory else None, settings, drafter=drafter, **options
    )


def replies(
    engine: EmbeddedEngine, sampling: dict[str, Any], swaps: dict[int, Swap] | None = None
) -> list[list[int]]:
    """What is said to several requests at once; drafters are offered before some steps."""
    from paceline.adapters.embedded.requests import GenerationRequest, Job
    from paceline.adapters.embedded.sampling import SamplingParams

    said: list[list[Any]] = [[] for _ in range(NUM_REQUESTS)]
    for i, steps in enumerate(said):
        request = GenerationRequest(
            info=RequestInfo(request_id=f"r{i}", tenant="t"),
            prompt_ids=tuple((i * 7 + k * k) % VOCABULARY for k in range(12)),
            max_tokens=40,
            sampling=SamplingParams(**sampling),
        )
        engine.admit(Job(request, steps.append))
    number = 0
    while engine.sizes()["running"]:
        if swaps and number in swaps:
            engine.drafter_swaps.offer(swaps[number])
        engine.step()
        number += 1
    return [[token for step in steps for token in step.token_ids] for steps in said]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
def test_replies_across_swaps_are_the_targets(sampling: dict[str, Any], branches: int) -> None:
    """Drafters of other sizes come and go within replies, and no token changes."""
    expected = replies(make_engine(None, memory=False), sampling)
    seen: list[int] = []
    engine = make_engine(make_target(seed=4), branches=branches, on_swap=seen.append)
    swaps = {
        2: Swap(1, make_target()),
        4: Swap(2, make_target(seed=5, num_hidden_layers=1)),
        6: Swap(0, None),
        8: Swap(3, make_target()),
    }
    assert replies(engine, sampling, swaps) == expected
    assert seen == [1, 2, 0, 3]
    assert all(swap.is_done and swap.error is None for swap in swaps.values())
    assert engine.draft_failures.count == 0
    assert engine.counts.failed == 0


def test_a_swapped_drafter_drafts_as_one_that_was_always_there() -> None:
    """Its chains and probabilities are those of the new weights from the first token on."""
    from paceline.adapters.embedded.draft_places import DraftWish
    from paceline.adapters.embedded.model_drafter import ModelDrafter

    old, new, target = make_target(seed=4), make_target(), make_target()
    text = np.array([(k * k + 5 * k) % VOCABULARY for k in range(90)], np.int32)
    swapped, always = (ModelDrafter(model, target, max_steps=3) for model in (old, new))
    for num_tokens in range(10, 80, 2):
        wish = DraftWish(
            request_id="r",
            key=num_tokens,  # nothing is learned from one round to the next
            tokens=text[:num_tokens],
            retrieved=TokenTree.chain(text[num_tokens : num_tokens + 2], prob=[0.5, 0.5]),
            max_tokens=8,
        )
        if num_tokens == 40:
            swapped.swap(new)
        trees = [drafter.propose([wish])[0] for drafter in (swapped, always)]
        if num_tokens >= 40:
            assert trees[0].token_ids.tolist() == trees[1].token_ids.tolist()
            assert trees[0].prob == pytest.approx(trees[1].prob, abs=1e-5)


def test_nothing_learned_of_one_drafter_is_held_against_the_next() -> None:
    """A useless drafter that rests is replaced by a good one, which is asked at once."""
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.adapters.model_gain import PATIENCE

    now = 0.0

    def timed(model: Target, seconds: float) -> Target:
        forward = model.forward

        def slow(rows: Any) -> Any:
            nonlocal now
            now += seconds + 0.001 * len(rows)
            return forward(rows)

        model.forward = slow  # type: ignore[method-assign]
        return model

    engine = EmbeddedEngine(
        timed(make_target(), 0.03),
        None,
        EngineSettings(max_running=NUM_REQUESTS),
        drafter=timed(make_target(seed=4), 0.006),
        clock=lambda: now,
    )
    for _ in range(3):
        replies(engine, GREEDY)
    before = replace(engine.draft_counts)
    replies(engine, GREEDY)
    assert engine.draft_counts.rounds_with_model <= before.rounds_with_model + 1
    before = replace(engine.draft_counts)
    swap = Swap(1, timed(make_target(), 0.006))
    replies(engine, GREEDY, {0: swap})
    counts = engine.draft_counts
    assert counts.rounds_with_model - before.rounds_with_model > PATIENCE / 8
    assert engine.tally.total(1).agreement > 0.9
    assert engine.tally.total(0).agreement < 0.2


def test_what_the_model_gets_right_is_counted_for_its_version() -> None:
    """A drafter that is the target is right in each round; the rounds are split by version."""
    engine = make_engine(make_target(), memory=False)
    replies(engine, GREEDY, {3: Swap(7, make_target(seed=4))})
    old, new = engine.tally.total(0), engine.tally.total(7)
    assert old.num_agreed == old.num_rounds > 0
    assert old.accepted_length > 1.0
    assert new.num_rounds > old.num_rounds
    assert new.agreement < 0.2
    assert sum(engine.tally.strata(7).values(), start=type(new)()) == new


def test_a_swap_that_fails_leaves_the_drafter_as_it_was() -> None:
    """An object that is no model is refused, told to who offered it, and costs nothing else."""
    engine = make_engine(make_target(), memory=False)
    expected = replies(make_engine(None, memory=False), GREEDY)
    swap = Swap(7, object())
    assert replies(engine, GREEDY, {3: swap}) == expected
    assert swap.is_done
    assert swap.error is not None
    assert engine.tally.total(7).num_rounds == 0
    assert engine.tally.total(0).agreement == 1.0


def test_a_folder_is_read_whole_and_checked(tmp_path: Path) -> None:
    """The host loads a drafter as it was saved, also a smaller one."""
    from paceline.adapters.embedded.drafter_host import EmbeddedDrafterHost
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.target import Target

    target = Target.load(save_drafter(tmp_path / "target"))
    host = EmbeddedDrafterHost(EmbeddedEngine(target))
    loaded = host.load(save_drafter(tmp_path / "small", num_hidden_layers=1))
    assert loaded.model.config.num_hidden_layers == 1
