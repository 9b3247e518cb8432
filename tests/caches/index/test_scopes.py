"""Scopes: nothing of one reaches a draft of a request that cannot read it; rings; dropping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paceline.caches import DraftIndex

NONE = np.array([], np.int32)
NUM_SCOPES = 3


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def drafted(index: DraftIndex, prompt: list[int], *read_scopes: int) -> list[int]:
    handle, _ = index.begin(i32(*prompt), read_scopes=i32(*read_scopes))
    tokens: list[int] = index.propose(np.array([handle], np.int64), i32(8))[1].tolist()
    index.finish(handle)
    return tokens


requests = st.tuples(
    st.lists(st.integers(0, NUM_SCOPES - 1), max_size=NUM_SCOPES),  # scopes it reads
    st.integers(-1, NUM_SCOPES - 1),  # the one it writes
    st.integers(0, 2),  # its session
    st.lists(st.integers(0, 5), min_size=1, max_size=15),  # below 3: said by all, else by it alone
)
Request = tuple[list[int], int, int, list[int]]


@settings(deadline=None, max_examples=150)
@given(st.lists(requests, min_size=2, max_size=12))
@example([([], 0, 1, [0, 3, 4, 5]), ([1], 1, 1, [0, 3]), ([0], -1, 0, [0])])
def test_tokens_of_a_scope_never_reach_a_request_that_cannot_read_it(asked: list[Request]) -> None:
    """Every drafted token was said by the request itself or in a scope it reads."""
    index = DraftIndex(min_probability=0.01)
    scopes = [index.scope(f"scope-{i}") for i in range(NUM_SCOPES)]
    said_in: list[set[int]] = [set() for _ in scopes]
    for number, (reads, writes, session, pattern) in enumerate(asked):
        own = [said if said < 3 else 10 * (number + 1) + said for said in pattern]
        handle, _ = index.begin(
            i32(*own),
            read_scopes=i32(*[scopes[i] for i in reads]),
            write_scope=writes if writes < 0 else scopes[writes],
            session=session,
        )
        allowed = set(own).union({0, 1, 2}, *(said_in[i] for i in reads))
        for told in (0, 1, 2, 0):
            index.commit(np.array([handle], np.int64), i32(told), np.array([0, 1], np.int64))
            tokens = index.propose(np.array([handle], np.int64), i32(16))[1]
            assert set(tokens.tolist()) <= allowed
        index.finish(handle)
        if writes >= 0:
            said_in[writes] |= set(own)
    index.check_integrity()


def first_draft(index: DraftIndex, scope: int) -> tuple[list[int], list[float]]:
    """Tokens and probabilities drafted after [1, 2, 3], then one wrong token is committed."""
    reads = i32(scope) if scope >= 0 else NONE
    handle, _ = index.begin(i32(1, 2, 3, 4, 5, 1, 2, 3), read_scopes=reads, write_scope=scope)
    batch = np.array([handle], np.int64)
    _, tokens, _, prob, _ = index.propose(batch, i32(8))
    index.commit(batch, i32(9), np.array([0, 1], np.int64))
    index.finish(handle)
    return tokens.tolist(), prob.tolist()


@pytest.mark.parametrize("name", ["own", ""])
def test_what_others_got_accepted_changes_no_draft(name: str) -> None:
    """How long and how probable a draft is does not show how the drafts of others went."""
    index = DraftIndex()
    other, own = index.scope("other"), index.scope(name) if name else -1
    untouched = first_draft(index, other)
    for _ in range(30):
        after_failures = first_draft(index, other)
    assert after_failures != untouched
    assert first_draft(index, own) == untouched
    index.drop_scope(other)
    assert first_draft(index, index.scope("other")) == untouched


def test_a_request_reads_several_scopes() -> None:
    """Each scope named is read, once however often it is named, and no other."""
    index = DraftIndex()
    a, b, c = (index.scope(name) for name in "abc")
    for scope, last in ((a, 70), (b, 80), (c, 90)):
        index.append_shared(scope, i32(1, 2, 3, 4, last, last))
    index.append_shared(b, i32(1, 2, 3, 4, 80, 80))
    assert drafted(index, [1, 2, 3, 4], c) == [90, 90]
    assert drafted(index, [1, 2, 3, 4], a, b) == [80, 80]
    assert drafted(index, [1, 2, 3, 4], a, a, a) == drafted(index, [1, 2, 3, 4], a) == [70, 70]
    assert drafted(index, [1, 2, 3, 4]) == []


def test_finish_writes_to_the_write_scope_alone() -> None:
    """What a request said is drafted for readers of its write scope once it has finished."""
    index = DraftIndex()
    written, read = index.scope("written"), index.scope("read")
    handle, _ = index.begin(i32(1, 2, 3, 4, 5), read_scopes=i32(read), write_scope=written)
    assert drafted(index, [1, 2, 3, 4], written) == []
    index.finish(handle)
    assert drafted(index, [1, 2, 3, 4], written) == [5]
    assert drafted(index, [1, 2, 3, 4], read) == []


def test_a_prompt_shared_early_is_drafted_by_others_at_once() -> None:
    """What a request read is there when it begins; its reply, and where that starts, at its end."""
    index = DraftIndex()
    scope = index.scope("s")
    prompt = i32(*range(100, 200))
    handle, _ = index.begin(
        prompt, read_scopes=NONE, write_scope=scope, key=7, share_prompt=True, time=1.0
    )
    assert drafted(index, [*range(103, 123)], scope)[0] == 123
    assert drafted(index, [197, 198, 199], scope) == []
    index.commit(np.array([handle], np.int64), i32(5, 6), np.array([0, 2], np.int64))
    new_tokens, num_prompt = index.finish(handle, time=2.0)
    assert (new_tokens.tolist(), num_prompt) == ([*range(100, 200), 5, 6], 100)
    assert drafted(index, [197, 198, 199], scope) == [5, 6]
    assert index.stats()["shared_tokens"] == 101 + 64 + 2 + 1
    index.check_integrity()
    assert index.evict_before(scope, 2.0) == 100
    assert index.delete_sequence(scope, 7) == 66


def test_deleting_a_request_with_an_early_prompt_takes_both_parts() -> None:
    """The prompt goes at once, and the reply never comes."""
    index = DraftIndex()
    scope = index.scope("s")
    handle, _ = index.begin(
        i32(1, 2, 3, 4), read_scopes=NONE, write_scope=scope, key=7, share_prompt=True
    )
    assert index.delete_sequence(scope, 7) == 4
    index.commit(np.array([handle], np.int64), i32(5, 6), np.array([0, 2], np.int64))
    assert index.finish(handle)[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert drafted(index, [2, 3, 4], scope) == []
    assert index.stats()["sequences"] == 0


def test_a_dropped_scope_is_forgotten() -> None:
    """Dropping returns how many tokens went, its contexts included, and nothing of it is left."""
    index = DraftIndex()
    scope, other = index.scope("a"), index.scope("b")
    index.append_shared(scope, i32(1, 2, 3, 4, 5))
    index.append_shared(other, i32(1, 2, 3, 4, 6))
    for session, (reads, writes) in enumerate([(scope, -1), (other, scope), (other, -1)], 1):
        handle, _ = index.begin(
            i32(9, 9), read_scopes=i32(reads), write_scope=writes, session=session
        )
        index.finish(handle)
    reader, _ = index.begin(i32(1, 2, 3, 4), read_scopes=i32(scope, other))
    writer, _ = index.begin(i32(7, 8), read_scopes=NONE, write_scope=scope, session=4)
    assert index.drop_scope(scope) == 6 + 3 + 2 + 2
    assert index.propose(np.array([reader], np.int64), i32(8))[1].tolist() == [6]
    index.check_integrity()
    index.finish(reader)
    assert index.finish(writer)[0].tolist() == [7, 8]
    assert index.stats()["sessions"] == 1
    assert index.scope("a") not in (scope, other)
    assert drafted(index, [1, 2, 3, 4], index.scope("a")) == []
    with pytest.raises(ValueError, match=f"scope_id is {scope}; no scope"):
        index.append_shared(scope, i32(1))


def test_a_dropped_scope_ends_what_is_followed_in_it() -> None:
    """A request that follows a place of a scope stops when the scope is dropped."""
    index = DraftIndex()
    scope = index.scope("a")
    index.append_shared(scope, i32(*range(10, 30)))
    handle, _ = index.begin(i32(10, 11, 12, 13), read_scopes=i32(scope))
    batch = np.array([handle], np.int64)
    assert index.propose(batch, i32(2))[1].tolist() == [14, 15]
    index.commit(batch, i32(14), np.array([0, 1], np.int64))
    index.drop_scope(scope)
    index.append_shared(index.scope("a"), i32(*range(10, 30)))
    assert index.propose(batch, i32(2))[1].tolist() == []
    index.commit(batch, i32(15), np.array([0, 1], np.int64))
    index.check_integrity()


def test_a_scope_may_be_dropped_while_its_drafts_are_verified() -> None:
    """A draft from a scope that is dropped before its tokens are committed is scored, then over."""
    index = DraftIndex()
    scope = index.scope("a")
    index.append_shared(scope, i32(*range(10, 30)))
    handle, _ = index.begin(i32(10, 11, 12, 13), read_scopes=i32(scope))
    batch = np.array([handle], np.int64)
    assert index.propose(batch, i32(2))[1].tolist() == [14, 15]
    index.drop_scope(scope)
    index.commit(batch, i32(14, 15), np.array([0, 2], np.int64))
    assert index.stats()["accepted"] == 2
    assert index.propose(batch, i32(2))[1].tolist() == []
    index.check_integrity()


def test_the_ring_forgets_the_oldest() -> None:
    """A full scope keeps its newest tokens, borders counted, and drafts from those alone."""
    index = DraftIndex(shared_capacity=12)
    scope = index.scope("s")
    for first in (10, 20, 30):
        index.append_shared(scope, i32(*range(first, first + 5)))
    assert index.stats()["shared_tokens"] == 12
    assert drafted(index, [10, 11, 12], scope) == []
    assert drafted(index, [20, 21, 22], scope) == [23, 24]
    assert drafted(index, [30, 31, 32], scope) == [33, 34]
    index.check_integrity()


def test_a_ring_keeps_the_end_of_a_sequence_that_is_too_long() -> None:
    """A sequence longer than the capacity leaves its last capacity - 1 tokens and a border."""
    index = DraftIndex(shared_capacity=6)
    scope = index.scope("s")
    index.append_shared(scope, i32(*range(10, 30)))
    assert drafted(index, [23, 24], scope) == []
    assert drafted(index, [25, 26], scope)[:1] == [27]
    assert index.stats()["shared_tokens"] == 6
    index.check_integrity()


def test_a_followed_place_ends_when_the_ring_overwrites_it() -> None:
    """A request whose place was overwritten drafts nothing from it any more."""
    index = DraftIndex(shared_capacity=12)
    scope = index.scope("s")
    index.append_shared(scope, i32(*range(10, 20)))
    handle, _ = index.begin(i32(10, 11, 12, 13), read_scopes=i32(scope))
    batch = np.array([handle], np.int64)
    assert index.propose(batch, i32(1))[1].tolist() == [14]
    index.append_shared(scope, i32(*range(50, 60)))
    index.commit(batch, i32(14), np.array([0, 1], np.int64))
    assert index.propose(batch, i32(1))[1].tolist() == []
