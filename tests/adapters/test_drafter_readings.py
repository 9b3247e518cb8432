"""What the embedded engine's model drafter has read stays for requests that begin alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from paceline.adapters.drafter_swap import Swap
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import TokenTree
from random_targets import make_target
from small_models import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.target import Row, Target

PROMPT = [(k * k + 3 * k) % VOCABULARY for k in range(60)]
MAX_TOKENS = 12


def counted(model: Target, passes: list[int]) -> Target:
    """A model that notes how many tokens each pass reads."""
    forward = model.forward

    def counting(rows: Sequence[Row]) -> list[torch.Tensor]:
        passes.append(sum(len(row.token_ids) for row in rows))
        return forward(rows)

    model.forward = counting  # type: ignore[method-assign]
    return model


def make_engine(drafter: Target | None, *, branches: int = 1, **options: Any) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    settings = EngineSettings(always_draft=True, max_branches=branches, **options)
    return EmbeddedEngine(make_target(), Speculator(), settings, drafter=drafter)


def say(engine: EmbeddedEngine, prompt: list[int], name: str, **who: Any) -> list[int]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    request = GenerationRequest(
        info=RequestInfo(request_id=name, **({"tenant": "t"} | who)),
        prompt_ids=tuple(prompt),
        max_tokens=MAX_TOKENS,
        sampling=SamplingParams(temperature=0.0),
    )
    return [token for step in engine.generate(request) for token in step.token_ids]


def first_pass(engine: EmbeddedEngine, passes: list[int], prompt: list[int], **who: Any) -> int:
    """Tokens that the drafter's first pass for a request reads."""
    before = len(passes)
    say(engine, prompt, f"r{before}", **who)
    return passes[before]


@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
def test_a_conversation_is_not_read_again_at_each_turn(branches: int) -> None:
    """The next turn's first pass reads what is new; every reply is the target's."""
    passes: list[int] = []
    engine = make_engine(counted(make_target(seed=4), passes), branches=branches)
    plain = make_engine(None)
    text = PROMPT
    for turn in range(3):
        before = len(passes)
        reply = say(engine, text, f"{turn}")
        assert reply == say(plain, text, f"{turn}")
        most = 2 * engine.settings.max_draft_tokens + 1  # memory's draft and what was committed
        if turn == 0:
            assert passes[before] > len(text)
        else:  # of the last reply's end, which no draft went behind, the turn and a draft
            assert passes[before] <= MAX_TOKENS + 5 + most < len(text)
        text = [*text, *reply, *(turn + k for k in range(5))]
    assert engine.draft_failures.count == 0


def test_only_its_owner_goes_on_from_what_was_read() -> None:
    """Others' requests are read from their beginning, and so is what nobody recorded."""
    passes: list[int] = []
    engine = make_engine(counted(make_target(seed=4), passes))
    whole = first_pass(engine, passes, PROMPT, record=False)
    assert whole > len(PROMPT)
    assert first_pass(engine, passes, PROMPT) >= len(PROMPT)  # that one left nothing behind
    assert first_pass(engine, passes, PROMPT, tenant="other") >= len(PROMPT)
    assert first_pass(engine, passes, PROMPT) < len(PROMPT) / 2
    engine.forget_kept()
    assert first_pass(engine, passes, PROMPT) >= len(PROMPT)


def test_another_drafter_reads_all_itself() -> None:
    """What the last one read is its own: the next may have other layers, and has other weights."""
    passes: list[int] = []
    engine = make_engine(make_target(seed=4))
    say(engine, PROMPT, "before")
    engine.drafter_swaps.offer(Swap(1, counted(make_target(seed=5, num_hidden_layers=1), passes)))
    assert first_pass(engine, passes, PROMPT) >= len(PROMPT)
    assert first_pass(engine, passes, PROMPT) < len(PROMPT) / 2
    assert engine.draft_failures.count == 0


def test_one_bound_holds_for_what_both_have_read() -> None:
    """A drafter's keys and values count as the target's do, and nothing is kept beyond."""
    passes: list[int] = []
    engine = make_engine(counted(make_target(seed=4), passes), max_kept_bytes=0)
    for _ in range(2):
        assert first_pass(engine, passes, PROMPT) >= len(PROMPT)
    assert engine.sizes()["kept_bytes"] == 0
    alone, both = make_engine(None), make_engine(make_target(seed=4))
    for each in (alone, both):
        say(each, PROMPT, "r")
    assert alone.sizes()["kept_sequences"] == 1
    assert both.sizes()["kept_sequences"] == 2
    assert both.sizes()["kept_bytes"] > alone.sizes()["kept_bytes"]


def test_drafts_behind_what_was_kept_are_those_behind_what_is_read() -> None:
    """The same tokens and probabilities, wherever the common beginning ends."""
    from paceline.adapters.embedded.draft_places import DraftWish
    from paceline.adapters.embedded.model_drafter import ModelDrafter
    from paceline.adapters.embedded.prefixes import PrefixStore

    passes: list[int] = []
    model, target = counted(make_target(seed=4), passes), make_target()
    text = np.array([*PROMPT, *PROMPT[::-1]], np.int32)

    def drafted(drafter: ModelDrafter, name: str, tokens: npt.NDArray[np.int32]) -> TokenTree:
        drafter.begin(name, "owner")
        retrieved = TokenTree.chain([1, 2], prob=[0.5, 0.5])
        (tree,) = drafter.propose([DraftWish(name, len(passes), tokens, retrieved, 8)])
        drafter.finish(name)
        return tree

    keeping = ModelDrafter(model, target, prefixes=PrefixStore(1 << 20))
    drafted(keeping, "first", text)
    for num_common in (120, 119, 80, 33, 17):
        asked = np.array([*text[:num_common], 7, 8, 9], np.int32)
        expected = drafted(ModelDrafter(model, target), "anew", asked)
        before = len(passes)
        tree = drafted(keeping, f"{num_common}", asked)
        assert passes[before] == 3 + 2
        assert tree.token_ids.tolist() == expected.token_ids.tolist()
        assert tree.prob == pytest.approx(expected.prob, abs=1e-5)
