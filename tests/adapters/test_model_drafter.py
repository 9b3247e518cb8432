"""A model that drafts beside memory in the embedded engine, on small models of random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.errors import ConfigError
from random_targets import make_target

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.target import Target


def say(
    engine: EmbeddedEngine,
    prompt: list[int],
    name: str,
    sampling: dict[str, Any],
    tenant: str = "t",
    **options: Any,
) -> list[int]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    request = GenerationRequest(
        info=RequestInfo(request_id=name, tenant=tenant),
        prompt_ids=tuple(prompt),
        max_tokens=24,
        sampling=SamplingParams(**sampling),
        **options,
    )
    return [token for step in engine.generate(request) for token in step.token_ids]


def make_engine(
    target: Target, *, memory: bool, drafter: Target | None, branches: int, **options: Any
) -> Any:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    speculator = Speculator() if memory else None
    settings = EngineSettings(max_branches=branches, always_draft=True, **options)
    return EmbeddedEngine(target, speculator, settings, drafter=drafter)


PROMPTS = [[5, 6, 7, 8, 9], [1, 2] * 10, [50, 40, 30]]
GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 0.7, "seed": 11}


@pytest.mark.parametrize("memory", [False, True], ids=["alone", "beside memory"])
@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_drafter_changes_no_token(memory: bool, branches: int, sampling: dict[str, Any]) -> None:
    """A drafter that knows little: every reply is the target's, what it says is drafted."""
    target, drafter = make_target(), make_target(seed=4)
    plain = make_engine(target, memory=False, drafter=None, branches=1)
    fused = make_engine(target, memory=memory, drafter=drafter, branches=branches)
    for turn in range(2):
        for i, prompt in enumerate(PROMPTS):
            expected = say(plain, prompt, f"{turn}-{i}", sampling)
            assert say(fused, prompt, f"{turn}-{i}", sampling) == expected
    assert fused.draft_failures.count == 0
    assert fused.counts.draft_tokens > 0


def test_a_drafter_that_is_the_target_is_nearly_always_right() -> None:
    """Greedy drafts of the same model are accepted wherever they are drafted."""
    target = make_target()
    engine = make_engine(target, memory=False, drafter=make_target(), branches=1)
    say(engine, PROMPTS[0], "warm", GREEDY)
    counts = engine.counts
    assert counts.accepted_tokens / counts.draft_tokens > 0.95
    assert counts.generated_tokens / counts.rounds > 1.5


def test_what_is_less_likely_is_drafted_where_it_may_be() -> None:
    """The less likely a token may be, the more are drafted; what is said stays the same."""
    target, said, drafted = make_target(), [], []
    for least in (0.5, 0.1, 0.01):
        engine = make_engine(
            target, memory=False, drafter=make_target(seed=4), branches=4, min_probability=least
        )
        said.append([say(engine, prompt, f"{i}", GREEDY) for i, prompt in enumerate(PROMPTS)])
        drafted.append(engine.counts.draft_tokens / engine.counts.rounds)
    assert said[0] == said[1] == said[2]
    assert drafted[0] < drafted[1] < drafted[2]


def test_every_branch_of_a_tree_is_read_on() -> None:
    """What is drafted behind a token is what the model finds likely there, on all branches.

    A chain's further passes go on from the likeliest token alone.
    """
    import numpy as np

    from paceline.adapters.embedded.draft_places import TOP, DraftWish, paths_of
    from paceline.adapters.embedded.model_drafter import ModelDrafter
    from paceline.adapters.embedded.target import Row
    from paceline.caches import TokenTree

    model = make_target(seed=4)
    text = np.array(PROMPTS[0], np.int32)
    wish = DraftWish("r", 0, text, TokenTree.empty(), 14)
    drafted = {}
    for branches in (1, 3):
        drafter = ModelDrafter(
            model, make_target(), max_branches=branches, max_steps=3, min_probability=0.001
        )
        for _ in range(2):  # a second round finds what was read of the first one's
            (tree,) = drafter.propose([wish])
        assert drafter.num_passes == 2 * 3
        drafted[branches] = paths_of(tree)
    assert len(drafted[1]) == 3
    behind = [path for path in drafted[3] if len(path) > 1]
    assert len({path[0] for path in behind}) > 1
    for path in behind:
        before = [*text.tolist(), *path[:-1]]
        row = Row(request_id="alone", key_values=model.sequence(), token_ids=before)
        (logits,) = model.forward([row])
        assert path[-1] in logits[0].topk(TOP).indices.tolist()


@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
def test_memory_drafts_behind_what_the_model_drafts(branches: int) -> None:
    """Where memory is silent the model finds the next token, and memory knows what follows it."""
    import numpy as np

    from paceline.adapters.embedded.draft_places import DraftWish, paths_of
    from paceline.adapters.embedded.model_drafter import ModelDrafter
    from paceline.caches import Source, TokenTree

    model = make_target(seed=4)
    text = np.array(PROMPTS[0], np.int32)
    wish = DraftWish("r", 0, text, TokenTree.empty(), 8, max_recalled=8)

    def drafted(memory: Speculator | None, wish: DraftWish = wish) -> dict[Any, int]:
        drafter = ModelDrafter(
            model,
            make_target(),
            max_branches=branches,
            max_steps=1,
            min_probability=0.001,
            memory=memory,
        )
        (tree,) = drafter.propose([wish])
        assert drafter.num_passes == 1
        assert len(tree.token_ids) <= 8
        return dict(zip(paths_of(tree), tree.source.tolist(), strict=True))

    alone = drafted(None)
    first = next(iter(alone))
    assert set(map(len, alone)) == {1}  # a pass tells of one token
    follow = [token for token in range(97) if token not in {*first, *PROMPTS[0]}][:6]
    memory = Speculator()
    memory.begin(RequestInfo(request_id="before", tenant="t"), [follow[5], *first])
    memory.commit("before", follow)
    memory.finish("before")
    memory.begin(RequestInfo(request_id="r", tenant="t"), PROMPTS[0])
    assert not len(memory.propose(["r"])[0])
    beside = drafted(memory)
    assert beside[first] == Source.MODEL
    assert beside[*first, *follow[:2]] == Source.TENANT
    assert drafted(memory, replace(wish, max_recalled=0)) == alone  # memory may not draft
    assert drafted(memory, replace(wish, request_id="unknown")) == alone
    memory.begin(RequestInfo(request_id="other", tenant="u"), PROMPTS[0])
    assert drafted(memory, replace(wish, request_id="other")) == alone  # another tenant's


def test_a_sampling_target_is_foreseen_by_a_drafter_of_the_same_opinion() -> None:
    """At a high temperature nearly every draft is accepted: the drafter knows how it is drawn."""
    target = make_target()
    engine = make_engine(target, memory=False, drafter=make_target(), branches=1)
    sampling = {"temperature": 1.5, "top_p": 0.9, "seed": 2}
    say(engine, PROMPTS[0], "warm", sampling)
    for i, prompt in enumerate(PROMPTS):
        say(engine, prompt, f"{i}", sampling | {"seed": i})
    counts = engine.counts
    assert counts.accepted_tokens / counts.draft_tokens > 0.95
    assert counts.generated_tokens / counts.rounds > 1.5


@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
def test_a_request_says_who_drafts_for_it(branches: int) -> None:
    """Memory alone runs no model, the model alone ignores memory, nobody drafts nothing."""
    target = make_target()
    engine = make_engine(target, memory=True, drafter=make_target(seed=4), branches=branches)
    expected = say(engine, PROMPTS[1], "first", GREEDY)
    done: dict[str, tuple[int, int]] = {}
    for sources in ((), ("memory",), ("model",), ("memory", "model")):
        counts = engine.counts
        before = engine.num_drafter_passes, counts.rounds
        drafted, name = counts.draft_tokens, " ".join(sources)
        said = say(engine, PROMPTS[1], name, GREEDY, draft_sources=frozenset(sources))
        assert said == expected
        assert (counts.draft_tokens > drafted) == bool(sources)
        done[name] = engine.num_drafter_passes - before[0], counts.rounds - before[1]
    assert done[""] == (0, 23)
    assert done["memory"][0] == 0
    assert done["model"][0] > 0
    assert done["memory model"][0] > 0
    assert done["memory"][1] < 12 < done["model"][1]  # all of it was said before


def test_a_drafter_of_another_vocabulary_is_refused() -> None:
    """Both sizes are named, and what to give."""
    with pytest.raises(ConfigError, match=r"drafter has 50 tokens and the target 97; give"):
        make_engine(make_target(), memory=True, drafter=make_target(vocab_size=50), branches=1)


def test_a_failing_drafter_leaves_memory_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the model raises, replies go on from memory's drafts, and the failures are counted."""
    target, drafter = make_target(), make_target(seed=4)
    expected = say(
        make_engine(target, memory=False, drafter=None, branches=1), PROMPTS[1], "p", GREEDY
    )
    engine = make_engine(target, memory=True, drafter=drafter, branches=1)

    def broken(_rows: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(drafter, "forward", broken)
    for name in "ab":
        assert say(engine, PROMPTS[1], name, GREEDY) == expected
    assert engine.draft_failures.count > 0
    assert engine.counts.accepted_tokens > 0
