"""What is deleted or too old is never drafted again; the rest is drafted as before."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.caches import DraftIndex

NONE = np.array([], np.int32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def drafted(index: DraftIndex, prompt: list[int], *read_scopes: int, session: int = 0) -> list[int]:
    handle, _ = index.begin(i32(*prompt), read_scopes=i32(*read_scopes), session=session)
    tokens: list[int] = index.propose(np.array([handle], np.int64), i32(8))[1].tolist()
    index.finish(handle)
    return tokens


def test_a_deleted_sequence_is_not_drafted_and_its_neighbours_are() -> None:
    """Every sequence of the key goes, whatever lies between, and no other."""
    index = DraftIndex()
    scope, other = index.scope("s"), index.scope("other")
    for key, last in ((1, 70), (2, 80), (1, 70), (0, 90)):
        index.append_shared(scope, i32(1, 2, 3, 4, last, last), key=key)
    index.append_shared(other, i32(1, 2, 3, 4, 60, 60), key=1)
    assert index.delete_sequence(scope, 1) == 12
    assert 70 not in drafted(index, [1, 2, 3, 4], scope)
    assert drafted(index, [2, 3, 4, 80], scope)[:1] == [80]
    assert drafted(index, [2, 3, 4, 90], scope)[:1] == [90]
    assert drafted(index, [1, 2, 3, 4], other) == [60, 60]
    index.check_integrity()
    assert index.delete_sequence(scope, 1) == 0


def test_deleting_ends_what_is_followed() -> None:
    """A request that follows a copy in a deleted sequence drafts nothing of it any more."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(*range(10, 30)), key=5)
    handle, _ = index.begin(i32(10, 11, 12, 13), read_scopes=i32(scope))
    batch = np.array([handle], np.int64)
    assert index.propose(batch, i32(2))[1].tolist() == [14, 15]
    index.commit(batch, i32(14), np.array([0, 1], np.int64))
    assert index.delete_sequence(scope, 5) == 20
    assert index.propose(batch, i32(2))[1].tolist() == []


def test_a_deleted_request_leaves_no_context_and_no_sequence() -> None:
    """Deleting a request's key forgets what it kept, and an open one publishes nothing."""
    index = DraftIndex()
    scope = index.scope("s")
    reads, prompt = i32(scope), i32(*range(1, 9))
    first, _ = index.begin(prompt, read_scopes=reads, write_scope=scope, session=1, key=3)
    index.finish(first)
    second, num_reused = index.begin(
        i32(*range(1, 12)), read_scopes=reads, write_scope=scope, session=1, key=4
    )
    assert num_reused == 8
    third, _ = index.begin(prompt, read_scopes=reads, write_scope=scope, session=2, key=3)
    assert index.delete_sequence(scope, 3) == 8
    assert index.finish(second)[0].tolist() == [9, 10, 11]  # its own sequence lives
    assert index.finish(third)[0].tolist() == list(range(1, 9))
    assert (index.stats()["sessions"], index.stats()["shared_tokens"]) == (0, 9 + 4)
    assert drafted(index, [9, 10], scope) == [11]
    assert drafted(index, [3, 4, 5], scope) == []
    index.check_integrity()


def test_deleting_a_finished_request_forgets_its_context() -> None:
    """The next turn of a deleted request's session starts afresh."""
    index = DraftIndex()
    scope = index.scope("s")
    for session, key in ((1, 3), (2, 9)):
        handle, _ = index.begin(
            i32(*range(1, 9)), read_scopes=NONE, write_scope=scope, session=session, key=key
        )
        index.finish(handle)
    assert index.delete_sequence(scope, 3) == 8 + 8
    for session, wanted in ((1, 0), (2, 8)):
        _, num_reused = index.begin(
            i32(*range(1, 9)), read_scopes=NONE, write_scope=scope, session=session
        )
        assert num_reused == wanted


def test_old_sequences_are_evicted_and_make_room() -> None:
    """Sequences of earlier times go; the oldest in the ring give their room back at once."""
    index = DraftIndex()
    scope = index.scope("s")
    for time, first in ((1.0, 10), (5.0, 20), (2.0, 30), (6.0, 40)):
        index.append_shared(scope, i32(*range(first, first + 5)), time=time)
    assert index.evict_before(scope, 5.0) == 10
    assert index.stats()["shared_tokens"] == 3 * 6  # only 10.. lay at the tail
    assert drafted(index, [10, 11, 12], scope) == []
    assert drafted(index, [30, 31, 32], scope) == []
    assert drafted(index, [20, 21, 22], scope) == [23, 24]
    assert drafted(index, [40, 41, 42], scope) == [43, 44]
    index.check_integrity()
    assert index.evict_before(scope, 100.0) == 10
    assert index.stats()["shared_tokens"] == 0
    index.check_integrity()


def test_finish_dates_what_it_adds() -> None:
    """A request's own sequence ages by the time it finished at."""
    index = DraftIndex()
    scope = index.scope("s")
    handle, _ = index.begin(i32(1, 2, 3), read_scopes=NONE, write_scope=scope)
    index.finish(handle, time=7.0)
    assert index.evict_before(scope, 7.0) == 0
    assert index.evict_before(scope, 7.5) == 3


def test_kept_contexts_age_from_their_last_turn() -> None:
    """Those of a scope go with its sequences, those of all scopes on their own account."""
    index = DraftIndex()
    scopes = [index.scope(name) for name in "ab"]
    for session, (scope, time) in enumerate([(0, 1.0), (0, 5.0), (1, 2.0), (1, 6.0)], start=1):
        for turn, end in enumerate((10, 20)):
            handle, _ = index.begin(
                i32(*range(end)), read_scopes=NONE, write_scope=scopes[scope], session=session
            )
            index.finish(handle, time=time - 1 + turn)
    assert index.stats()["sessions"] == 4
    assert index.evict_before(scopes[0], 2.0) == 20 + 20
    assert index.stats()["sessions"] == 3
    assert index.evict_contexts_before(6.0) == 20 + 20
    assert index.stats()["sessions"] == 1
    restored = DraftIndex()
    restored.restore(index.snapshot())
    assert restored.evict_contexts_before(6.0) == 0
    assert restored.evict_contexts_before(7.0) == 20
    index.check_integrity()


def test_a_scope_has_a_capacity_of_its_own() -> None:
    """A capacity given at opening bounds that scope alone, and can't change while it is open."""
    index = DraftIndex(shared_capacity=100)
    small, large = index.scope("small", capacity=6), index.scope("large")
    for scope in (small, large):
        index.append_shared(scope, i32(*range(10, 30)))
    assert index.stats()["shared_tokens"] == 6 + 21
    assert index.scope("small") == index.scope("small", capacity=6) == small
    assert index.scope("large", capacity=100) == large
    with pytest.raises(ValueError, match="capacity is 7; scope small is open with 6"):
        index.scope("small", capacity=7)
    with pytest.raises(ValueError, match="capacity is 1; give 2 to 2147483648 tokens, or 0"):
        index.scope("other", capacity=1)


@pytest.mark.parametrize("num_bytes", [1000, 70_000, 1_000_000])
def test_a_capacity_given_in_bytes_is_kept(num_bytes: int) -> None:
    """A scope never uses more bytes than its capacity was made for, but for its table."""
    capacity = DraftIndex.capacity_for_bytes(num_bytes)
    assert num_bytes / 40 < capacity < num_bytes / 12
    index = DraftIndex()
    scope = index.scope("s", capacity=capacity)
    rng = np.random.default_rng(1)
    for _ in range(60):
        index.append_shared(scope, rng.integers(0, 50_000, capacity // 20 + 1).astype(np.int32))
        stats = index.stats()
        assert stats["bytes"] - 24 * stats["sequences"] <= num_bytes
    assert index.stats()["shared_tokens"] == capacity


def test_too_few_bytes_for_any_capacity_are_refused() -> None:
    """The message says how few would do."""
    with pytest.raises(ValueError, match=r"num_bytes is 5; give at least \d+"):
        DraftIndex.capacity_for_bytes(5)


@pytest.mark.parametrize(
    ("says", "method", "arguments", "named"),
    [
        ("key is 0; give the positive key", "delete_sequence", (0, 0), {}),
        ("key is -1; give 0 ", "delete_sequence", (0, -1), {}),
        ("scope_id is 4; no scope", "delete_sequence", (4, 1), {}),
        ("scope_id is 4; no scope", "evict_before", (4, 1.0), {}),
        ("time is nan; give finite", "evict_before", (0, float("nan")), {}),
        ("time is nan; give finite", "evict_contexts_before", (float("nan"),), {}),
        ("time is inf; give finite", "append_shared", (0, i32(1)), {"time": float("inf")}),
        ("key is -1; give 0 ", "append_shared", (0, i32(1)), {"key": -1}),
        ("key is -2; give 0 ", "begin", (i32(1),), {"read_scopes": NONE, "key": -2}),
        ("time is inf; give finite", "finish", (1,), {"time": float("inf")}),
    ],
)
def test_wrong_keys_and_times_are_refused(
    says: str, method: str, arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    """A refused call names the value and the fix, and changes nothing."""
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3), key=1, time=1.0)
    index.begin(i32(1, 2), read_scopes=i32(scope), write_scope=scope, key=1)
    before = index.stats()
    with pytest.raises(ValueError, match=says):
        getattr(index, method)(*arguments, **named)
    assert index.stats() == before
    index.check_integrity()
