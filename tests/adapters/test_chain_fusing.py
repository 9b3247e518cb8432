"""Chains from memory and a model, without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paceline.adapters.chain_fusing import ChainFuser, Reading, Recalled
from paceline.adapters.model_chains import Continued, ModelChains
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import Source, TreeBatch

KEY, OTHER = 11, 12


def memory(*chains: tuple[list[int], float]) -> TreeBatch:
    """One chain for each request, every token as likely as given."""
    lengths = [len(tokens) for tokens, _ in chains]
    return TreeBatch(
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([t for tokens, _ in chains for t in tokens], np.int32),
        np.array([i - 1 for n in lengths for i in range(n)], np.int32),
        np.array([p for tokens, p in chains for _ in tokens], np.float32),
        np.full(sum(lengths), Source.WORKLOAD, np.uint8),
    )


def model(*chains: tuple[list[int], float], sound: bool = True) -> ModelChains:
    """One chain for each request, every token as likely as given."""
    token_ids = np.array([tokens for tokens, _ in chains], np.int32)
    prob = np.array([[[p, (1 - p) / 2]] * len(tokens) for tokens, p in chains], np.float32)
    top = np.stack([token_ids, np.full_like(token_ids, 99)], axis=-1)
    return ModelChains(token_ids, top, prob, np.full(len(chains), sound))


def recall(fuser: ChainFuser, trees: TreeBatch, *, keys: Any = KEY, limit: int = 8) -> Recalled:
    names = [f"r{i}" for i in range(len(trees))]
    owners = [keys] * len(trees) if isinstance(keys, int) else list(keys)
    fuser.budget.begin(len(trees))
    return fuser.recall(names, owners, [limit] * len(trees), trees)


def wants_model(fuser: ChainFuser, recalled: Recalled) -> bool:
    """Whether the model is asked for the batch's first request, of which it has missed nothing."""
    readings = [Reading(num_read=1, num_late=0, num_left=64)] * len(recalled.request_ids)
    return 0 in fuser.asked(recalled, readings)


def test_each_request_gets_the_better_of_the_two() -> None:
    """Where memory is sure its chain is taken, where it knows nothing the model's."""
    fuser = ChainFuser()
    recalled = recall(fuser, memory(([1, 2, 3, 4], 0.95), ([], 1.0)))
    fused = fuser.fuse(recalled, model(([7, 8, 9], 0.2), ([7, 8, 9], 0.9)))
    assert fused == [[1, 2, 3, 4], [7, 8, 9]]
    stats = fuser.stats()
    assert (stats["rows_memory"], stats["rows_model"]) == (1, 1)
    assert (stats["drafted_memory"], stats["drafted_model"]) == (4, 3)


def test_one_goes_on_where_the_other_ends() -> None:
    """A chain can begin in memory and end in the model, and go past the model's end in memory."""
    fuser = ChainFuser()
    trees = memory(([1, 2], 0.9), ([1, 2, 3, 4, 5], 0.9))
    fused = fuser.fuse(recall(fuser, trees), model(([1, 2, 8], 0.95), ([1, 2, 3], 0.95)))
    assert fused == [[1, 2, 8], [1, 2, 3, 4, 5]]
    assert fuser.stats()["rows_both"] == 1


def test_an_unlikely_chain_is_cut_and_limits_hold() -> None:
    """No chain is longer than its request's limit, nor goes on where it is too unlikely."""
    fuser = ChainFuser(min_probability=0.5)
    recalled = recall(fuser, memory(([1, 2, 3, 4], 0.75), ([1, 2, 3, 4], 0.99)), limit=3)
    assert fuser.fuse(recalled, None) == [[1, 2], [1, 2, 3]]
    assert fuser.stats()["rounds_without_model"] == 1


def test_a_model_that_has_not_read_the_context_has_no_say() -> None:
    """What it says behind tokens that it has not read is neither drafted nor learned from."""
    fuser = ChainFuser()
    recalled = recall(fuser, memory(([1, 2], 0.6)))
    assert fuser.fuse(recalled, model(([7, 8], 0.99), sound=False)) == [[1, 2]]
    before = wants_model(fuser, recalled)
    fuser.learn({"r0": [7, 8, 9]})
    assert wants_model(fuser, recalled) == before


def test_acceptance_is_counted_by_who_drafted() -> None:
    """Accepted tokens belong to memory where memory had them, the others to the model."""
    fuser = ChainFuser()
    recalled = recall(fuser, memory(([1, 2], 0.9)))
    assert fuser.fuse(recalled, model(([1, 2, 8], 0.95))) == [[1, 2, 8]]
    fuser.learn({"r0": [1, 2, 8, 5]})
    stats = fuser.stats()
    assert (stats["accepted_memory"], stats["accepted_model"]) == (2, 1)


def rounds(fuser: ChainFuser, key: int, num: int) -> None:
    """Rounds in which memory drafts wrongly and the model rightly."""
    for _ in range(num):
        fuser.fuse(recall(fuser, memory(([1, 2], 0.3)), keys=key), model(([7, 8], 0.5)))
        fuser.learn({"r0": [7, 8, 9]})


def costly() -> ChainFuser:
    """Knows that a pass of the model takes nine tenths of one of the target, tokens nothing."""
    fuser = ChainFuser()
    for _ in range(20):
        fuser.budget.target.learn(1, 1, 1.0)
        fuser.gate.cost.learn(1, 1, 0.9)
    return fuser


def test_a_model_that_pays_is_wanted_and_one_that_does_not_rests() -> None:
    """What became of its chains decides, for the sharing scope that saw it and for no other."""
    fuser = costly()
    unsure = memory(([1, 2], 0.3))
    rounds(fuser, KEY, 100)
    assert wants_model(fuser, recall(fuser, unsure, keys=KEY))
    fresh = costly()
    trees = recall(fresh, unsure, keys=OTHER)
    assert wants_model(fuser, recall(fuser, unsure, keys=OTHER)) == wants_model(fresh, trees)
    fused = fuser.fuse(recall(fuser, unsure, keys=OTHER), model(([7, 8], 0.5)))
    assert fused == fresh.fuse(trees, model(([7, 8], 0.5)))
    sure = memory(([1, 2, 3, 4, 5, 6, 7, 8], 0.99))
    assert not wants_model(fuser, recall(fuser, sure, keys=OTHER))


def dear_tokens(fuser: ChainFuser) -> None:
    """Teach it that a token takes a twentieth of a round."""
    for i in range(100):
        num_tokens = 2 + i % 7
        fuser.budget.target.learn(2, num_tokens, 1.0 + 0.05 * num_tokens)


def test_what_is_not_worth_verifying_is_cut_whoever_drafted_it() -> None:
    """Unlikely ends of memory's chains and of fused ones go; always drafting is a setting."""
    for always_draft in (False, True):
        fuser = ChainFuser(min_probability=0.01, always_draft=always_draft)
        dear_tokens(fuser)
        sure, unsure = ([1, 2, 3, 4], 0.99), ([5, 6, 7, 8], 0.45)
        recalled = recall(fuser, memory(sure, unsure))
        alone = fuser.fuse(recalled, None)
        fused = fuser.fuse(recalled, model(([1, 2, 3, 4], 0.9), ([7, 8, 9, 9], 0.45)))
        lengths = [[len(chain) for chain in chains] for chains in (alone, fused)]
        if always_draft:
            assert lengths == [[4, 4], [4, 4]]
        else:
            assert [a for a, _ in lengths] == [4, 4]
            assert all(0 < b < 4 for _, b in lengths)
        cut = fuser.stats()["tokens_cut"]
        assert cut == 16 - sum(map(sum, lengths))


def test_a_model_is_worth_what_it_adds_less_what_verifying_it_takes() -> None:
    """One whose tokens are accepted too seldom for their price gains nothing."""
    found = []
    for is_dear in (False, True):
        fuser = ChainFuser(min_probability=0.01)
        if is_dear:
            dear_tokens(fuser)
        for i in range(60):
            recalled = recall(fuser, memory(([], 1.0)))
            assert fuser.fuse(recalled, model(([7, 8], 0.9))) != [[]]
            fuser.learn({"r0": [7, 1] if i % 20 == 0 else [1]})
        found.append(fuser.gate._gain.expected(KEY, 0.0))
    assert found[0] > found[1] == 0.0


def test_what_was_learned_for_a_request_of_its_own_is_forgotten() -> None:
    """After `forget` a key drafts as one that was never seen."""
    fuser, fresh = costly(), costly()
    rounds(fuser, KEY, 100)
    fuser.forget(KEY)
    trees = memory(([1, 2], 0.3))
    model_chains = model(([7, 8], 0.5))
    assert fuser.fuse(recall(fuser, trees), model_chains) == fresh.fuse(
        recall(fresh, trees), model_chains
    )


def test_what_is_expected_is_a_sum_over_beginnings() -> None:
    """A chain of probability p a token is worth p + p² + …; an empty one nothing."""
    recalled = recall(ChainFuser(min_probability=0.01), memory(([1, 2, 3], 0.5), ([], 1.0)))
    chances = recalled.chains.prob.astype(float).cumprod()
    assert recalled.outlook.expected.tolist() == pytest.approx([chances.sum(), 0.0])
    assert recalled.outlook.tokens == pytest.approx(2 + chances.sum())


def test_requests_that_are_absent_teach_nothing() -> None:
    """A request that is not in a step is neither counted nor learned from."""
    fuser = ChainFuser()
    fuser.fuse(
        recall(fuser, memory(([1, 2], 0.9), ([1, 2], 0.9))), model(([1, 2], 0.9), ([1, 2], 0.9))
    )
    fuser.learn({"r1": [1, 2, 3]})
    assert fuser.stats()["accepted_memory"] == 2


REMEMBERED = [31, 32, 33, 34, 35, 36, 37, 38, 39, 40]
NEW_CONTEXT = [51, 52, 53, 54]


def remembering() -> Speculator:
    """Said once: the remembered; now something else is being said."""
    speculator = Speculator()
    speculator.begin(RequestInfo(request_id="earlier", tenant="t"), [20, 21])
    speculator.commit("earlier", REMEMBERED)
    speculator.finish("earlier")
    speculator.begin(RequestInfo(request_id="r0", tenant="t"), NEW_CONTEXT)
    return speculator


def continued(
    fuser: ChainFuser, speculator: Speculator, recalled: Recalled, said: ModelChains
) -> Continued:
    supposed = fuser.suppose(recalled, said)
    ids = [recalled.request_ids[row] for row in supposed.rows]
    return Continued(
        supposed,
        speculator.propose_behind(ids, supposed.token_ids, max_tokens=supposed.max_tokens),
    )


def test_memory_goes_on_where_the_model_ends() -> None:
    """The model says how something remembered begins, memory the rest, as far as the limit."""
    fuser, speculator = ChainFuser(min_probability=0.02), remembering()
    trees = speculator.propose_batch(["r0"], max_tokens=8, max_branches=4)
    assert trees.token_lists() == [[]]
    recalled = recall(fuser, trees, limit=6)
    said = model((REMEMBERED[:3], 0.95))
    assert fuser.fuse(recalled, said) == [REMEMBERED[:3]]
    fused = fuser.fuse(recalled, said, continued(fuser, speculator, recalled, said))
    assert fused == [REMEMBERED[:6]]
    fuser.learn({"r0": [*REMEMBERED[:5], 99]})
    stats = fuser.stats()
    assert (stats["drafted_behind"], stats["accepted_behind"]) == (5, 4)
    # the first fuse's three and the second's one: what memory drafts behind it is memory's
    assert (stats["drafted_model"], stats["accepted_model"]) == (3 + 1, 1)
    assert stats["rows_both"] == 1


def test_memory_is_asked_behind_likely_beginnings_with_room() -> None:
    """Behind as many tokens as are likely enough and behind the first; not where none may follow.

    A model that has not read the context is not continued.
    """
    fuser = ChainFuser(min_probability=0.3)
    said = model(([1, 2, 3], 0.6), ([4, 5, 6], 0.95), ([7, 8, 9], 0.2))
    recalled = recall(fuser, memory(([], 1.0), ([], 1.0), ([], 1.0)), limit=3)
    supposed = fuser.suppose(recalled, said)
    assert supposed.rows == [0, 0, 1, 1]
    assert supposed.token_ids == [[1, 2], [1], [4, 5], [4]]
    assert supposed.max_tokens == [1, 2, 1, 2]
    alone = recall(fuser, memory(([], 1.0)), limit=1)
    assert fuser.suppose(alone, model(([1, 2, 3], 0.9))).rows == []
    assert fuser.suppose(alone, model(([1, 2, 3], 0.9), sound=False)).rows == []


def test_what_memory_has_drafted_stays_beside_what_goes_on() -> None:
    """Memory's own branch is kept where it is worth more than the model's continued one."""
    fuser, speculator = ChainFuser(), remembering()
    recalled = recall(fuser, memory(([61, 62, 63, 64], 0.97)))
    said = model((REMEMBERED[:2], 0.3))
    fused = fuser.fuse(recalled, said, continued(fuser, speculator, recalled, said))
    assert fused == [[61, 62, 63, 64]]


def test_what_the_model_gets_right_is_told() -> None:
    """Its own chain, whichever was verified; not where it has not read all, or is not counted."""
    told: list[tuple[str, list[int], list[int]]] = []
    fuser = ChainFuser(
        on_judged=lambda name, _, guess, said: told.append((name, list(guess), list(said)))
    )
    said = model(([1, 2, 3], 0.3), ([4, 5, 6], 0.9), ([7, 8, 9], 0.9), ([7, 8, 9], 0.9))
    said.is_sound[2] = False
    recalled = recall(fuser, memory(([1, 9], 0.95), ([], 1.0), ([], 1.0), ([], 1.0)))
    fuser.fuse(recalled, said, is_counted=[True, True, True, False])
    fuser.learn({name: [4, 5, 1] for name in recalled.request_ids})
    assert told == [("r0", [1, 2, 3], [4, 5, 1]), ("r1", [4, 5, 6], [4, 5, 1])]


def test_another_model_begins_anew() -> None:
    """Nothing is learned from chains of the model before, and what was learned is gone."""
    told: list[str] = []
    fuser = ChainFuser(on_judged=lambda name, *_: told.append(name))
    fresh = ChainFuser()
    for _ in range(60):  # the model is sure, and wrong
        fuser.fuse(recall(fuser, memory(([1, 2], 0.4))), model(([7, 8], 0.9)))
        fuser.learn({"r0": [1, 2, 5]})
    trees, said = memory(([1, 2], 0.4)), model(([7, 8], 0.9))
    expected = fresh.fuse(recall(fresh, trees), said)
    assert fuser.fuse(recall(fuser, trees), said) != expected
    fuser.renew()
    num_told = len(told)
    fuser.learn({"r0": [1, 2, 5]})
    assert len(told) == num_told
    assert fuser.fuse(recall(fuser, trees), said) == expected
