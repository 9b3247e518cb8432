"""What is drafted, from where, and how probable it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.caches import DraftIndex, Source, TokenTree
from paceline.caches.reference import ReferenceIndex

NONE = np.array([], np.int32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def propose(index: DraftIndex, handle: int, max_tokens: int = 8) -> TokenTree:
    offsets, *columns = index.propose(np.array([handle], np.int64), i32(max_tokens))
    assert offsets.tolist() == [0, len(columns[0])]
    tree = TokenTree(*columns)
    tree.validate()
    return tree


def drafted(index: DraftIndex, handle: int, max_tokens: int = 8) -> list[int]:
    tokens: list[int] = propose(index, handle, max_tokens).token_ids.tolist()
    return tokens


def commit(index: DraftIndex, handle: int, *tokens: int) -> None:
    index.commit(np.array([handle], np.int64), i32(*tokens), np.array([0, len(tokens)], np.int64))


def begin(index: DraftIndex, prompt: list[int], *read_scopes: int) -> int:
    return index.begin(i32(*prompt), read_scopes=i32(*read_scopes))[0]


def test_every_method_works_with_its_defaults() -> None:
    """The shortest call of every method does what its contract says."""
    index = DraftIndex()
    scope = index.scope("tenant:a")
    assert index.scope("tenant:a") == scope
    index.append_shared(scope, i32(1, 2, 3))
    handle, num_reused = index.begin(i32(7, 8, 9, 7), read_scopes=NONE)
    assert num_reused == 0
    commit(index, handle, 8)
    assert index.num_tokens(handle) == 5
    assert drafted(index, handle)[0] == 9
    index.truncate(handle, 4)
    assert index.num_tokens(handle) == 4
    stats = index.stats()
    assert stats.pop("bytes") > 0
    assert stats.pop("drafted") > 0
    assert stats.pop("drafted_context") > 0
    assert not any(stats.pop(f"drafted_{it}") for it in ("workload", "tenant", "corpus"))
    assert not any(
        stats.pop(f"accepted_{it}") for it in ("context", "workload", "tenant", "corpus")
    )
    assert stats == {
        "requests": 1,
        "sessions": 0,
        "scopes": 1,
        "sequences": 1,
        "shared_tokens": 4,
        "context_tokens": 4,
        "segments": 0,
        "corpus_tokens": 0,
        "accepted": 0,
    }
    assert index.scope_stats(scope)["shared_tokens"] == 4
    index.attach_corpora(scope, [])
    new_tokens, num_prompt = index.finish(handle)
    assert (new_tokens.tolist(), num_prompt) == ([7, 8, 9, 7], 4)
    assert index.drop_scope(scope) == 4
    index.check_integrity()


def test_a_draft_is_a_chain_in_arrays_of_the_callers_own() -> None:
    """Drafts are chains of the documented dtypes, and outlive the index and later drafts."""
    index = DraftIndex()
    handle = begin(index, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4])
    tree = propose(index, handle, 2)
    commit(index, handle, 9, 9)
    propose(index, handle)
    del index
    assert tree.token_ids.tolist() == [5, 6]
    assert tree.is_chain()
    assert tree.token_ids.flags.writeable
    assert ((tree.prob > 0) & (tree.prob < 1)).all()


def test_a_request_drafts_from_its_own_context() -> None:
    """What followed the last tokens before is what is drafted, and it says where it is from."""
    index = DraftIndex()
    tree = propose(index, begin(index, [5, 6, 7, 8, 9, 5, 6]), 3)
    assert tree.token_ids.tolist()[:2] == [7, 8]
    assert set(tree.source.tolist()) == {Source.CONTEXT}


def test_a_request_drafts_from_the_scopes_it_reads() -> None:
    """A shared sequence is drafted as such, up to its end and not beyond."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 5, 6))
    index.append_shared(scope, i32(9, 9, 9))
    tree = propose(index, begin(index, [1, 2, 3, 4], scope))
    assert tree.token_ids.tolist() == [5, 6]
    assert set(tree.source.tolist()) == {Source.WORKLOAD}


def test_the_longest_match_wins() -> None:
    """Among places that disagree, the one that agrees longest with the context is drafted."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 5, 6, 70))
    for _ in range(2):
        index.append_shared(scope, i32(8, 8, 6, 80))
    assert drafted(index, begin(index, [1, 2, 3, 4, 5, 6], scope))[0] == 70


def test_the_newest_place_wins_among_equals() -> None:
    """Of two places with equal matches the newer one is drafted."""
    index = DraftIndex()
    scope = index.scope("s")
    for last in (70, 80):
        index.append_shared(scope, i32(1, 2, 3, 4, 5, last))
    assert drafted(index, begin(index, [1, 2, 3, 4, 5], scope))[0] == 80


def test_a_loop_is_drafted_past_the_end_of_the_context() -> None:
    """A repetition goes on in the draft itself, for longer than the period."""
    index = DraftIndex()
    assert drafted(index, begin(index, [1, 2] * 20), 6) == [1, 2, 1, 2, 1, 2]


def test_a_long_match_is_trusted_from_the_first_request() -> None:
    """A new memory drafts a whole step's tokens where a long match agrees."""
    index = DraftIndex()
    scope = index.scope("s")
    text = list(range(100, 200))
    index.append_shared(scope, i32(*text))
    assert drafted(index, begin(index, text[:64], scope), 16) == text[64:80]


def test_a_single_token_is_hardly_trusted() -> None:
    """A new memory drafts only a few tokens after a match of one."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(*range(100, 200)))
    assert 1 <= len(drafted(index, begin(index, [9, 8, 7, 150], scope), 16)) <= 4


@pytest.mark.parametrize("index_type", [DraftIndex, ReferenceIndex])
def test_a_lookup_visits_no_more_places_than_it_may_find(
    index_type: type[DraftIndex | ReferenceIndex],
) -> None:
    """Places that end their sequence count as visited, so that a lookup's work is bounded."""
    index = index_type(max_candidates=2)
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 5))
    lengths = []
    for _ in range(9):
        handle, _ = index.begin(i32(1, 2, 3, 4), read_scopes=i32(scope))
        lengths.append(len(index.propose(np.array([handle], np.int64), i32(4))[1]))
        index.append_shared(scope, i32(1, 2, 3, 4))
    assert lengths == [1] * 2 + [0] * 7


def test_a_copy_goes_on_past_an_edit() -> None:
    """After a token that differs from the place followed, the draft goes on behind that token."""
    index = DraftIndex(min_probability=0.02)
    scope = index.scope("s")
    index.append_shared(scope, i32(*range(10, 40)))
    handle = begin(index, list(range(10, 20)), scope)
    assert drafted(index, handle)[0] == 20
    commit(index, handle, 999)
    assert drafted(index, handle)[:2] == [21, 22]
    commit(index, handle, 21, 998)
    assert drafted(index, handle)[:2] == [23, 24]


@pytest.mark.parametrize(("num_between", "num_expected"), [(16, 3), (17, 8)])
def test_a_copy_is_given_up_after_many_edits(num_between: int, num_expected: int) -> None:
    """The fourth edit ends a copy, unless more than 16 tokens in between made up for the others."""
    index = DraftIndex()
    scope = index.scope("s")
    text = list(range(1000, 1400))
    index.append_shared(scope, i32(*text))
    handle = begin(index, text[:20], scope)
    num_survived = -1
    for position in range(20, 180, num_between + 1):
        if drafted(index, handle, 1) != [text[position]]:
            break
        num_survived += 1
        commit(index, handle, *text[position : position + num_between], 5000 + position)
    assert num_survived == num_expected


def test_a_followed_copy_ends_with_its_sequence() -> None:
    """A place that is followed past the end of its sequence never goes on into the next one."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 5))
    index.append_shared(scope, i32(61, 62, 63))
    handle = begin(index, [1, 2, 3, 4], scope)
    assert drafted(index, handle) == [5]
    commit(index, handle, 5, 70)
    assert drafted(index, handle) == []


@pytest.mark.parametrize("right", [True, False])
def test_probabilities_learn_from_what_is_committed(right: bool) -> None:
    """Drafts that come true become more probable, others less, until they are not made."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 50))

    def probability() -> float:
        handle = begin(index, [1, 2, 3, 4], scope)
        tree = propose(index, handle)
        commit(index, handle, 50 if right else 60)
        index.finish(handle)
        return float(tree.prob[0]) if len(tree) else 0.0

    first = probability()
    for _ in range(200):
        last = probability()
    assert last > 0.95 if right else last == 0.0
    assert 0.3 < first < 0.9


def test_a_draft_that_fell_silent_can_rise_again() -> None:
    """What is no longer drafted is still scored, so that it comes back once it is right."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3, 4, 50))
    lengths = []
    for correct in [60] * 60 + [50] * 60:
        handle = begin(index, [1, 2, 3, 4], scope)
        lengths.append(len(drafted(index, handle)))
        commit(index, handle, correct)
        index.finish(handle)
    assert lengths[0] == 1
    assert lengths[59] == 0
    assert lengths[-1] == 1


def test_min_probability_cuts_drafts() -> None:
    """No draft's cumulative probability is below the setting, and a lower one drafts longer."""
    lengths = []
    for least in (0.01, 0.1, 0.3, 1.0):
        index = DraftIndex(min_probability=least)
        scope = index.scope("s")
        index.append_shared(scope, i32(*range(100, 200)))
        tree = propose(index, begin(index, [104, 105, 106], scope), 64)
        assert tree.prob.astype(np.float64).prod() >= least
        lengths.append(len(tree))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[1] > lengths[2] > lengths[3] == 0


@pytest.mark.parametrize("most", [0, 1, 3])
def test_max_tokens_is_an_upper_bound(most: int) -> None:
    """A draft has at most max_tokens nodes, none for 0."""
    index = DraftIndex()
    assert len(drafted(index, begin(index, [1, 2] * 20), most)) == most


def test_a_batch_is_drafted_in_order() -> None:
    """Each request gets its own slice with its own limit, in the order asked for."""
    index = DraftIndex()
    a, b, c = begin(index, [1, 2] * 9), begin(index, [7]), begin(index, [3, 4, 5] * 9)
    offsets, tokens, parent, *_ = index.propose(np.array([c, b, a], np.int64), i32(4, 9, 3))
    assert offsets.tolist() == [0, 4, 4, 7]
    assert tokens.tolist() == [3, 4, 5, 3, 1, 2, 1]
    assert parent.tolist() == [-1, 0, 1, 2, -1, 0, 1]


def test_empty_batches_are_fine() -> None:
    """Nothing to do is no error and gives empty arrays."""
    index = DraftIndex()
    nobody = np.array([], np.int64)
    offsets, *columns = index.propose(nobody, NONE)
    assert offsets.tolist() == [0]
    assert [len(column) for column in columns] == [0, 0, 0, 0]
    index.commit(nobody, NONE, np.array([0], np.int64))
    handle = begin(index, [])
    assert drafted(index, handle) == []
    commit(index, handle)
    assert index.num_tokens(handle) == 0
    assert index.finish(handle)[0].tolist() == []
    index.append_shared(index.scope("s"), NONE)
    assert index.stats()["shared_tokens"] == 0
    index.check_integrity()


def test_a_batch_commits_to_each_its_own() -> None:
    """Each request gets its slice of the committed tokens, and an empty slice changes nothing."""
    index = DraftIndex()
    a, b, c = (begin(index, [1]) for _ in range(3))
    index.commit(
        np.array([c, a, b], np.int64), i32(5, 6, 7), np.array([0, 2, 2, 3], dtype=np.int64)
    )
    assert [index.finish(handle)[0].tolist() for handle in (a, b, c)] == [[1], [1, 7], [1, 5, 6]]


def test_accepted_counts_only_what_was_handed_out() -> None:
    """stats counts the drafted tokens handed out, and those that the target then said."""
    index = DraftIndex()
    handle = begin(index, [1, 2] * 20)
    assert len(drafted(index, handle, 4)) == 4
    commit(index, handle, 1, 2, 9, 9)
    assert len(drafted(index, handle, 1)) == 1
    stats = index.stats()
    assert (stats["drafted"], stats["accepted"]) == (5, 2)


def test_truncate_forgets_the_tokens_it_drops() -> None:
    """Dropped tokens are neither drafted nor counted nor published; others take their place."""
    index = DraftIndex()
    scope = index.scope("s")
    handle, _ = index.begin(i32(1, 2, 3, 4), read_scopes=NONE, write_scope=scope)
    commit(index, handle, 5, 6, 7)
    index.truncate(handle, 5)
    commit(index, handle, 1, 2, 3, 4)
    assert drafted(index, handle)[:2] == [5, 1]
    index.truncate(handle, 2)
    index.check_integrity()
    new_tokens, num_prompt = index.finish(handle)
    assert (new_tokens.tolist(), num_prompt) == ([1, 2], 2)
    assert index.stats()["shared_tokens"] == 3
