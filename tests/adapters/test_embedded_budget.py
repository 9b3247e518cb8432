"""When the embedded engine's model drafts, and what is verified: by a clock that passes move."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from paceline.adapters.model_gain import PATIENCE
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import TokenTree
from small_models import VOCABULARY, random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import Progress
    from paceline.adapters.embedded.round_budget import DraftCounts

NUM_REQUESTS = 6
GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 0.7, "seed": 11}


class Clock:
    """Seconds that go by in forward passes alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Spelling:
    """Stands in for a tokenizer where only tokens count: a letter each."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """One letter a token."""
        return "".join(chr(65 + token_id % 26) for token_id in token_ids)


def make_target(clock: Clock, *, seed: int = 3, fixed: float, request: float, token: float) -> Any:
    """A small model of random weights, whose passes take what is said."""
    from paceline.adapters.embedded.target import Target

    target = Target(random_model("llama", seed=seed), Spelling())
    target.eos_token_ids = frozenset()
    forward = target.forward

    def timed(rows: Any) -> Any:
        clock.now += fixed + request * len(rows) + token * sum(len(r.token_ids) for r in rows)
        return forward(rows)

    target.forward = timed  # type: ignore[method-assign]
    return target


def make_engine(
    *, drafter_seed: int | None, memory: bool = False, branches: int = 1, **settings: Any
) -> EmbeddedEngine:
    """A target of 30 ms a pass and 1 ms a token; its drafter takes a fifth of that."""
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    clock = Clock()
    target = make_target(clock, fixed=0.03, request=0.002, token=0.001)
    drafter = None
    if drafter_seed is not None:
        drafter = make_target(clock, seed=drafter_seed, fixed=0.006, request=0.0004, token=0.0002)
    return EmbeddedEngine(
        target,
        Speculator() if memory else None,
        EngineSettings(max_running=NUM_REQUESTS, max_branches=branches, **settings),
        drafter=drafter,
        clock=clock,
    )


def replies(
    engine: EmbeddedEngine, turn: int, sampling: dict[str, Any], *, tenant: str = "t"
) -> list[list[int]]:
    """What is said to several requests at once."""
    from paceline.adapters.embedded.requests import GenerationRequest, Job
    from paceline.adapters.embedded.sampling import SamplingParams

    said: list[list[Progress]] = [[] for _ in range(NUM_REQUESTS)]
    for i, steps in enumerate(said):
        request = GenerationRequest(
            info=RequestInfo(request_id=f"{turn}-{i}", tenant=tenant),
            prompt_ids=tuple((turn * 31 + i * 7 + k * k) % VOCABULARY for k in range(12)),
            max_tokens=48,
            sampling=SamplingParams(**sampling),
        )
        engine.admit(Job(request, steps.append))
    while engine.sizes()["running"]:
        engine.step()
    return [[token for step in steps for token in step.token_ids] for steps in said]


def share_with_model(before: DraftCounts, after: DraftCounts) -> float:
    with_model = after.rounds_with_model - before.rounds_with_model
    without = after.rounds_without_model - before.rounds_without_model
    return with_model / (with_model + without)


@pytest.mark.parametrize("memory", [False, True], ids=["alone", "beside memory"])
def test_a_useless_drafter_rests(memory: bool) -> None:
    """One that knows nothing of the target is asked in few rounds once that is known."""
    engine = make_engine(drafter_seed=4, memory=memory)
    for turn in range(3):
        replies(engine, turn, GREEDY)
    before = replace(engine.draft_counts)
    for turn in range(3, 8):
        replies(engine, turn, GREEDY)
    assert share_with_model(before, engine.draft_counts) < 0.05


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_drafter_that_is_right_drafts(sampling: dict[str, Any]) -> None:
    """One that is the target is asked in nearly every round, and goes on for several passes."""
    engine = make_engine(drafter_seed=3)
    for turn in range(2):
        replies(engine, turn, sampling)
    before = replace(engine.draft_counts)
    counts = replace(engine.counts)
    for turn in range(2, 6):
        replies(engine, turn, sampling)
    assert share_with_model(before, engine.draft_counts) > 0.95
    said = engine.counts.generated_tokens - counts.generated_tokens
    assert said / (engine.counts.rounds - counts.rounds) > 1.5


def test_further_passes_are_run_while_they_are_worth_it() -> None:
    """Chains are gone on from where that pays for the pass; the unsure ones are left out."""
    sure, fair, unsure = chain(0.9, 2), chain(0.7, 1), chain(0.3, 1)
    found = []
    for fixed in (0.0001, 0.06):
        for going in ([sure, unsure, fair], [unsure]):
            budget = make_budget(drafter_fixed=fixed)
            budget.begin(4)
            gains = [float(each.path_probabilities()[-1] * each.prob[-1]) for each in going]
            found.append(budget.going_on(gains, [1] * len(going), [sure, unsure, fair, sure]))
    assert found == [[0, 2], [], [], []]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("drafter_seed", [3, 4], ids=["right", "useless"])
@pytest.mark.parametrize("branches", [1, 4], ids=["chains", "trees"])
def test_what_is_said_does_not_depend_on_the_choice(
    sampling: dict[str, Any], drafter_seed: int, branches: int
) -> None:
    """Resting, catching up and cutting change no token, whoever drafts."""
    plain = make_engine(drafter_seed=None)
    chosen = make_engine(drafter_seed=drafter_seed, memory=True, branches=branches)
    for turn in (0, 1, 0):
        expected = replies(plain, turn, sampling)
        assert replies(chosen, turn, sampling) == expected
    assert chosen.draft_failures.count == 0
    assert chosen.counts.accepted_tokens > 0
    if drafter_seed == 4:
        assert chosen.draft_counts.rounds_without_model > 20
        assert chosen.draft_counts.cut_tokens > 0


def test_always_drafting_is_a_setting() -> None:
    """Then even a useless drafter is asked in every round, and nothing is cut."""
    engine = make_engine(drafter_seed=4, always_draft=True)
    for turn in range(3):
        replies(engine, turn, GREEDY)
    counts = engine.draft_counts
    assert counts.rounds_with_model > 100
    assert counts.rounds_without_model == counts.cut_tokens == 0


def test_memory_alone_is_cut_where_tokens_are_dear() -> None:
    """With many requests in a pass, unlikely tokens of memory are left out, likely ones are not."""
    engine = make_engine(drafter_seed=None, memory=True)
    free = make_engine(drafter_seed=None, memory=True, always_draft=True)
    for turn in (0, 1, 0, 1):
        assert replies(engine, turn, GREEDY) == replies(free, turn, GREEDY)
    assert engine.draft_counts.cut_tokens > 0
    assert free.draft_counts.cut_tokens == 0
    assert engine.draft_counts.rounds_without_model == 0  # there is no model that could rest
    accepted = [e.counts.accepted_tokens / e.counts.draft_tokens for e in (engine, free)]
    assert accepted[0] > accepted[1]
    assert engine._clock() < free._clock()  # type: ignore[operator]


def test_one_that_rested_drafts_as_one_that_never_did() -> None:
    """After rounds without it the drafter's chains and probabilities are those of every round."""
    from paceline.adapters.embedded.draft_places import DraftWish
    from paceline.adapters.embedded.model_drafter import ModelDrafter

    clock = Clock()
    target = make_target(clock, fixed=0.0, request=0.0, token=0.0)
    text = np.array([(k * k + 5 * k) % VOCABULARY for k in range(90)], np.int32)
    drafted: dict[int, dict[int, TokenTree]] = {}
    for every in (1, 5):
        drafter = ModelDrafter(target, target, max_steps=3)
        drafter.begin("r")
        drafted[every] = {}
        for num_tokens in range(10, 88, 2):
            if (num_tokens // 2) % every == 0:
                wish = DraftWish(
                    request_id="r",
                    key=num_tokens,  # nothing is learned from one round to the next
                    tokens=text[:num_tokens],
                    retrieved=TokenTree.chain(text[num_tokens : num_tokens + 2], prob=[0.5, 0.5]),
                    max_tokens=8,
                )
                drafted[every][num_tokens] = drafter.propose([wish])[0]
    assert len(drafted[5]) == 8
    for num_tokens, tree in drafted[5].items():
        expected = drafted[1][num_tokens]
        assert tree.token_ids.tolist() == expected.token_ids.tolist()
        assert tree.prob == pytest.approx(expected.prob, abs=1e-5)


def test_the_model_goes_on_where_memory_went_further_than_it_read() -> None:
    """Of a long tree it reads the likeliest part first, then the best chain to its end."""
    from paceline.adapters.embedded.draft_places import DraftWish
    from paceline.adapters.embedded.model_drafter import ModelDrafter

    clock = Clock()
    target = make_target(clock, fixed=0.0, request=0.0, token=0.0)
    wish = DraftWish(
        request_id="r",
        key=1,
        tokens=np.array([5, 6, 7, 8, 9], np.int32),
        retrieved=TokenTree.empty(),
        max_tokens=5,
    )

    def drafted(retrieved: TokenTree) -> list[int]:
        drafter = ModelDrafter(target, target, max_steps=8, min_probability=1e-6)
        drafter.begin("r")
        (tree,) = drafter.propose([replace(wish, retrieved=retrieved)])
        assert drafter.num_passes > 1
        return tree.token_ids.tolist()

    alone = drafted(TokenTree.empty())
    assert len(alone) == 5
    a, b, c, d = alone[:4]
    x, y, z = [token for token in range(VOCABULARY) if token not in (a, b)][:3]
    tree = TokenTree(  # a chain of four, of which two come behind the five that are read first
        np.array([a, x, y, b, z, c, d], np.int32),
        np.array([-1, -1, -1, 0, 0, 3, 5], np.int32),
        np.array([0.9, 0.05, 0.05, 0.9, 0.05, 0.9, 0.9], np.float32),
        np.zeros(7, np.uint8),
    )
    assert drafted(tree) == alone


def chain(prob: float, num_nodes: int, *, first: int = 1) -> TokenTree:
    return TokenTree.chain(range(first, first + num_nodes), prob=[prob] * num_nodes)


def make_budget(*, drafter_fixed: float = 0.006) -> Any:
    """Knows what passes take: the target as in `make_engine`."""
    from paceline.adapters.embedded.round_budget import RoundBudget

    budget = RoundBudget(clock=Clock())
    for i in range(200):
        requests, tokens = 1 + i % 6, 1 + i % 6 + i * 7 % 20
        budget.note_target(requests, tokens, 0.03 + 0.002 * requests + 0.001 * tokens)
        budget.drafter.learn(requests, tokens, drafter_fixed + 0.0004 * requests + 0.0002 * tokens)
    return budget


def candidate(name: str, *, key: int = 1, num_late: int = 0, **changes: Any) -> Any:
    from paceline.adapters.embedded.round_budget import Asking

    known = {"recalled": TokenTree.empty(), "num_read": 2, "num_left": 64}
    return Asking(request_id=name, key=key, num_late=num_late, **(known | changes))


def teach(budget: Any, key: int, num_gained: int, *, num_rounds: int = 100) -> None:
    """Rounds of a key in which the model has added so much to nothing."""
    for _ in range(num_rounds):
        budget.issue(candidate("taught", key=key), chain(0.9, 4))
        budget.learn({"taught": [*range(1, num_gained + 1), 90]})


def test_requests_are_chosen_one_by_one() -> None:
    """Those to which the model adds much draft with it, the others of the batch without."""
    budget = make_budget()
    teach(budget, 1, 3)
    teach(budget, 2, 0)
    budget.begin(4)
    batch = [candidate(str(i), key=1 + i % 2) for i in range(4)]
    assert budget.asked(batch) == [0, 2]
    assert (budget.counts.rounds_with_model, budget.counts.model_requests) == (1, 2)


def test_what_one_key_learns_is_its_own() -> None:
    """Whatever the model did for one key, another is asked for as if nothing had been seen."""
    for num_gained in (0, 3):
        budget, fresh = make_budget(), make_budget()
        teach(budget, 1, num_gained)
        for each in (budget, fresh):
            each.begin(1)
        assert budget.asked([candidate("a", key=2)]) == fresh.asked([candidate("a", key=2)])
    teach(budget, 3, 0)
    budget.forget(3)
    assert budget.asked([candidate("a", key=3)]) == fresh.asked([candidate("a", key=3)])


def test_a_model_that_rests_is_tried_on_the_request_that_costs_least() -> None:
    """After enough rounds without it a key has it on one request, the one that it knows best."""
    budget = make_budget()
    teach(budget, 1, 0)
    batch = [candidate("a", num_late=90), candidate("b", num_late=30), candidate("c", num_late=60)]
    rounds = []
    for _ in range(2 * PATIENCE + 2):
        budget.begin(3)
        rounds.append(budget.asked(batch))
    assert [i for i, asked in enumerate(rounds) if asked] == [PATIENCE, 2 * PATIENCE + 1]
    assert rounds[PATIENCE] == [1]
    assert budget.counts.rounds_without_model == 2 * PATIENCE


def test_catching_up_counts_as_what_it_takes() -> None:
    """A long text that was not read is read for a long reply and not for the last few tokens."""
    budget = make_budget()
    teach(budget, 1, 1)
    for num_late, num_left, asked in ((0, 4, True), (400, 4, False), (400, 400, True)):
        budget.begin(1)
        found = budget.asked([candidate("a", num_late=num_late, num_left=num_left)])
        assert bool(found) == asked


def test_a_round_catches_up_with_no_more_than_a_pass_reads() -> None:
    """Of several long prompts the shorter are read now, the others wait; one is always read."""
    budget = make_budget()
    teach(budget, 1, 3)
    lengths = [300, 100, 200, 5000]
    batch = [candidate(str(i), num_late=n, num_left=9999) for i, n in enumerate(lengths)]
    budget.begin(4)
    assert budget.asked(batch) == [1, 2]
    budget.begin(4)
    assert budget.asked(batch[3:]) == [0]


def test_drafts_are_cut_over_the_whole_batch() -> None:
    """What is unlikely is left out of every draft, and a node never stays without its parent."""
    budget = make_budget()
    budget.begin(4)
    drafts = [chain(0.95, 6), chain(0.05, 3), TokenTree.empty(), chain(0.5, 8)]
    kept = budget.cut(drafts)
    assert [len(tree) for tree in kept] == [6, 0, 0, 2]
    assert kept[3].token_ids.tolist() == [1, 2]
    assert budget.counts.cut_tokens == 9


def test_what_was_decided_is_counted_in_the_metrics() -> None:
    """Every count stands in the engine's `/metrics` under its own name."""
    from paceline.adapters.embedded.server import EngineServer

    engine = make_engine(drafter_seed=4, memory=True)
    replies(engine, 0, GREEDY)
    counts = asdict(engine.draft_counts)
    metrics = asyncio.run(EngineServer(engine, model_name="m")._metrics(None))  # type: ignore[arg-type]
    text = bytes(metrics.body).decode()
    for name, value in counts.items():
        assert f"paceline_engine_{name}_total {value}\n" in text
    assert counts["model_passes"] >= counts["rounds_with_model"] > 0
    assert counts["model_late_tokens"] > 0  # the prompts


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("drafter_seed", [None, 3, 4], ids=["memory", "twin", "other"])
def test_what_was_decided_is_counted_for_each_request(
    drafter_seed: int | None, branches: int
) -> None:
    """All requests' records together are the engine's own counters, in chains and trees."""
    engine = make_engine(drafter_seed=drafter_seed, memory=True, branches=branches)
    for turn in (0, 0, 1):
        for i in range(NUM_REQUESTS):
            engine.decisions._finished.pop(f"{turn}-{i}", None)
        before = replace(engine.counts), replace(engine.draft_counts)
        replies(engine, turn, GREEDY)
        records = [engine.decisions.find(f"{turn}-{i}") for i in range(NUM_REQUESTS)]
        told = [record for record in records if record is not None]
        assert len(told) == NUM_REQUESTS
        assert all(record.is_finished for record in told)
        assert any("length" in record.limited_by for record in told)
        for name in ("rounds", "draft_tokens", "accepted_tokens"):
            counted = getattr(engine.counts, name) - getattr(before[0], name)
            assert sum(getattr(record, name) for record in told) == counted
        counts = engine.draft_counts
        cut = counts.cut_tokens - before[1].cut_tokens
        assert sum(record.cut_tokens for record in told) == cut
        with_model = counts.model_requests - before[1].model_requests
        assert sum(record.model_rounds for record in told) == with_model
        by_source = [tokens for record in told for tokens in record.sources.values()]
        assert sum(tokens.drafted for tokens in by_source) == sum(r.draft_tokens for r in told)
        assert sum(tokens.accepted for tokens in by_source) == sum(r.accepted_tokens for r in told)
        assert with_model or not any("model" in record.sources for record in told)


def test_an_engine_without_drafts_says_so() -> None:
    """What limits a request is named: nothing drafts here, or its drafts failed."""
    engine = make_engine(drafter_seed=None)
    replies(engine, 0, GREEDY)
    off = engine.decisions.find("0-0")
    assert off is not None
    assert (off.limited_by, off.draft_tokens, off.rounds) == (("off",), 0, 47)
    engine = make_engine(drafter_seed=None, memory=True)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken on purpose")

    assert engine._drafts._speculator is not None
    engine._drafts._speculator.propose = broken  # type: ignore[method-assign]
    replies(engine, 0, GREEDY)
    failed = engine.decisions.find("0-0")
    assert failed is not None
    assert "failure" in failed.limited_by
    assert failed.reason.startswith("drafting failed")


def test_the_estimated_speedup_is_what_the_clock_says() -> None:
    """Of a tenant whose drafts are right: time without drafts over time with them, both told."""
    engine, plain = make_engine(drafter_seed=3), make_engine(drafter_seed=None)
    seconds = []
    for each in (engine, plain):
        for turn in range(2):
            replies(each, turn, GREEDY)
        began_at, before = each._clock(), each.decisions.served()["t", ""]
        for turn in range(2, 6):
            replies(each, turn, GREEDY)
        after = each.decisions.served()["t", ""]
        seconds.append(each._clock() - began_at)
    assert after.tokens == plain.counts.generated_tokens
    drafted, counts = engine.decisions.served()["t", ""], engine.counts
    assert drafted.tokens == counts.generated_tokens
    assert drafted.rounds == counts.rounds
    assert sum(drafted.accepted) == counts.accepted_tokens
    assert after.undrafted_seconds - before.undrafted_seconds == pytest.approx(
        after.round_seconds - before.round_seconds
    )
    speedup = drafted.undrafted_seconds / drafted.round_seconds
    assert speedup == pytest.approx(seconds[1] / seconds[0], rel=0.1)
    assert speedup > 1.2
