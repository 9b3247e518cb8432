"""Sessions: the next turn reuses the context of the last, and only its own."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.caches import DraftIndex

NONE = np.array([], np.int32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def turn(
    index: DraftIndex, prompt: list[int], *, session: int = 1, read: int = -1, write: int = -1
) -> int:
    """One request from begin to finish; returns how many tokens it reused."""
    handle, num_reused = index.begin(
        i32(*prompt),
        read_scopes=NONE if read < 0 else i32(read),
        write_scope=write,
        session=session,
    )
    index.finish(handle)
    index.check_integrity()
    return num_reused


def text(first: int, num_tokens: int) -> list[int]:
    return list(range(first, first + num_tokens))


def test_a_turn_indexes_only_what_is_new() -> None:
    """The next turn reuses prompt and reply, and publishes only what came after them."""
    index = DraftIndex()
    scope = index.scope("s")
    handle, _ = index.begin(i32(1, 2, 3), read_scopes=NONE, write_scope=scope, session=1)
    index.commit(np.array([handle], np.int64), i32(4, 5), np.array([0, 2], np.int64))
    index.finish(handle)
    handle, num_reused = index.begin(
        i32(1, 2, 3, 4, 5, 6), read_scopes=NONE, write_scope=scope, session=1
    )
    assert num_reused == 5
    index.commit(np.array([handle], np.int64), i32(7), np.array([0, 1], np.int64))
    new_tokens, num_prompt = index.finish(handle)
    assert (new_tokens.tolist(), num_prompt) == ([6, 7], 1)
    assert index.stats()["context_tokens"] == 7
    index.check_integrity()


def test_a_reply_that_the_next_prompt_changes_is_cut_off() -> None:
    """Only the common prefix is reused; tokens after it are gone from context and drafts."""
    index = DraftIndex()
    turn(index, [1, 2, 3, 4, 5, 6])
    handle, num_reused = index.begin(i32(1, 2, 3, 4, 9, 3, 4), read_scopes=NONE, session=1)
    assert num_reused == 4
    assert index.num_tokens(handle) == 7
    drafted = index.propose(np.array([handle], np.int64), i32(1))[1]
    assert drafted.tolist() == [9]
    index.check_integrity()


def test_no_session_keeps_nothing() -> None:
    """Session 0 neither keeps nor reuses a context."""
    index = DraftIndex()
    assert turn(index, [1, 2, 3], session=0) == 0
    assert turn(index, [1, 2, 3], session=0) == 0
    assert index.stats()["sessions"] == 0


def test_sessions_do_not_share_contexts() -> None:
    """A context is reused under its own key alone."""
    index = DraftIndex()
    turn(index, [1, 2, 3], session=1)
    assert turn(index, [1, 2, 3], session=2) == 0
    assert turn(index, [1, 2, 3], session=1) == 3


@pytest.mark.parametrize(("read", "write"), [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_context_passes_only_between_equal_reaches(read: int, write: int) -> None:
    """A session's context is not reused where other scopes are read or written."""
    index = DraftIndex()
    for name in "ab":
        index.scope(name)
    turn(index, [1, 2, 3], read=0, write=0)
    assert turn(index, [1, 2, 3], read=read, write=write) == 0
    assert turn(index, [1, 2, 3], read=0, write=0) == 3


def test_an_open_context_is_not_reused() -> None:
    """A context that another request of the session holds is not taken from it."""
    index = DraftIndex()
    turn(index, [1, 2, 3])
    holder, num_reused = index.begin(i32(1, 2, 3), read_scopes=NONE, session=1)
    assert num_reused == 3
    assert index.begin(i32(1, 2, 3), read_scopes=NONE, session=1)[1] == 0
    assert index.num_tokens(holder) == 3


def test_side_conversations_keep_their_own_contexts() -> None:
    """A prompt that shares under half of a context leaves it to the conversation it is of."""
    index = DraftIndex()
    turn(index, [1, *text(100, 20)])
    assert turn(index, [1, *text(200, 20)]) == 0
    assert turn(index, [1, *text(100, 25)]) == 21
    assert turn(index, [1, *text(200, 25)]) == 21


def test_a_session_keeps_its_four_newest_contexts() -> None:
    """The fifth conversation under one session id takes the place of the oldest."""
    index = DraftIndex()
    for first in (100, 200, 300, 400, 500):
        turn(index, text(first, 5))
    assert index.stats()["sessions"] == 4
    assert turn(index, text(200, 6)) == 5
    assert turn(index, text(100, 6)) == 0


def test_a_window_that_slid_is_recognised() -> None:
    """Where the engine's side dropped the middle, head and tail are both reused."""
    index = DraftIndex()
    head, middle, tail = text(0, 5), text(100, 30), text(200, 40)
    turn(index, head + middle + tail)
    handle, num_reused = index.begin(i32(*head, *tail, 7), read_scopes=NONE, session=1)
    assert num_reused == 45
    assert index.num_tokens(handle) == 46
    assert index.stats()["context_tokens"] == 76
    new_tokens, num_prompt = index.finish(handle)
    assert (new_tokens.tolist(), num_prompt) == ([7], 1)
    index.check_integrity()


def test_a_slid_context_still_drafts_from_its_middle() -> None:
    """What slid out of the engine's window is still remembered by the session's drafts."""
    index = DraftIndex()
    head, middle, tail = text(0, 5), text(100, 30), text(200, 40)
    turn(index, head + middle + tail)
    handle, _ = index.begin(i32(*head, *tail, *middle[3:8]), read_scopes=NONE, session=1)
    assert index.propose(np.array([handle], np.int64), i32(2))[1].tolist() == middle[8:10]


def test_a_short_equal_tail_is_taken_for_chance() -> None:
    """Fewer than 32 equal tokens after a gap are no slid window."""
    index = DraftIndex()
    head, middle = text(0, 20), text(100, 10)
    turn(index, head + middle + text(200, 31))
    assert turn(index, head + text(200, 31) + [7]) == 0
    turn(index, head + middle + text(200, 32), session=2)
    assert turn(index, head + text(200, 32) + [7], session=2) == 52


@pytest.mark.parametrize(
    ("kept", "context_tokens"), [(46, 76), (45, 75), (20, 50), (5, 35), (4, 4)]
)
def test_a_slid_context_can_be_truncated(kept: int, context_tokens: int) -> None:
    """The engine's count of tokens holds after truncating on either side of the gap."""
    index = DraftIndex()
    head, middle, tail = text(0, 5), text(100, 30), text(200, 40)
    turn(index, head + middle + tail)
    handle, _ = index.begin(i32(*head, *tail, 7), read_scopes=NONE, session=1)
    index.truncate(handle, kept)
    assert index.num_tokens(handle) == kept
    assert index.stats()["context_tokens"] == context_tokens
    index.commit(np.array([handle], np.int64), i32(8), np.array([0, 1], np.int64))
    assert index.num_tokens(handle) == kept + 1
    assert index.finish(handle)[0].tolist()[-1] == 8
    index.check_integrity()


def test_the_least_recently_finished_context_goes_first() -> None:
    """max_sessions bounds the kept contexts, the oldest out first."""
    index = DraftIndex(max_sessions=2)
    for session in (1, 2, 1, 3):
        turn(index, [session, 5, 6], session=session)
    assert index.stats()["sessions"] == 2
    assert turn(index, [2, 5, 6], session=2) == 0
    assert turn(index, [3, 5, 6], session=3) == 3


def test_kept_tokens_are_bounded() -> None:
    """max_session_tokens bounds what the kept contexts hold together."""
    index = DraftIndex(max_session_tokens=10)
    turn(index, text(0, 6), session=1)
    turn(index, text(0, 4), session=2)
    assert index.stats()["context_tokens"] == 10
    turn(index, text(0, 5), session=3)
    assert index.stats()["context_tokens"] == 9
    turn(index, text(0, 11), session=4)
    assert index.stats()["context_tokens"] == 0


def test_a_session_goes_on_though_further_scopes_change() -> None:
    """Its context is reused, and what drafting learned is kept, while the first scope it reads and
    the one it writes stay the same; the further ones may change, or go, from turn to turn."""
    index = DraftIndex()
    home, other, third = (index.scope(name) for name in ("home", "other", "third"))

    def turn(prompt: list[int], *reads: int) -> tuple[int, int]:
        return index.begin(i32(*prompt), read_scopes=i32(*reads), write_scope=home, session=1)

    handle, _ = turn([1, 2, 3, 4], home, other)
    index.finish(handle)
    index.drop_scope(other)
    handle, num_reused = turn([1, 2, 3, 4, 5], home, third)
    assert num_reused == 4
    index.finish(handle)
    assert turn([1, 2, 3, 4, 5, 6], third, home)[1] == 0
    index.check_integrity()
