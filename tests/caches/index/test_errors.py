"""Wrong input is refused with the value, the limit and the fix, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paceline.caches import DraftIndex

NONE = np.array([], np.int32)
UNKNOWN = np.array([77], np.int64)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("shared_capacity", 1, "shared_capacity is 1; give 2 to 2147483648"),
        ("shared_capacity", 2**31 + 1, "shared_capacity is 2147483649; give 2 to 2147483648"),
        ("max_sessions", -1, "max_sessions is -1; give 0"),
        ("max_session_tokens", -5, "max_session_tokens is -5; give 0"),
        ("max_candidates", 0, "max_candidates is 0; give 1 to 256"),
        ("max_candidates", 257, "max_candidates is 257; give 1 to 256"),
        ("min_probability", 0.0, "min_probability is 0.0; give a probability above 0"),
        ("min_probability", 1.5, "min_probability is 1.5; give a probability above 0"),
        ("min_probability", float("nan"), "min_probability is nan; give a probability"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float, says: str) -> None:
    """An index is never built from a setting outside its range."""
    with pytest.raises(ValueError, match=says):
        DraftIndex(**{setting: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"shared_capacity": 2, "max_candidates": 1, "min_probability": 1e-9},
        {"shared_capacity": 2**31, "max_candidates": 256, "min_probability": 1.0},
        {"max_sessions": 0, "max_session_tokens": 0},
    ],
)
def test_settings_at_their_limits_work(settings: dict[str, Any]) -> None:
    """The limits that the messages name are themselves allowed, and usable."""
    index = DraftIndex(**settings)
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3))
    handle, _ = index.begin(i32(1, 2), read_scopes=i32(scope), write_scope=scope, session=5)
    index.propose(i64(handle), i32(4))
    index.finish(handle)
    index.check_integrity()


CALLS: dict[str, tuple[Callable[[DraftIndex, int, int], object], str]] = {
    "append_shared: scope": (
        lambda index, _h, _s: index.append_shared(9, i32(1)),
        "scope_id is 9; no scope of that id is open; get one from scope",
    ),
    "append_shared: token": (
        lambda index, _h, scope: index.append_shared(scope, i32(1, -1)),
        r"token_ids\[1\] is -1; give token ids of 0 or more",
    ),
    "drop_scope": (lambda index, _h, _s: index.drop_scope(-1), "scope_id is -1; no scope"),
    "begin: token": (
        lambda index, _h, _s: index.begin(i32(-7), read_scopes=NONE),
        r"prompt_ids\[0\] is -7; give token ids of 0 or more",
    ),
    "begin: read scope": (
        lambda index, _h, _s: index.begin(i32(1), read_scopes=i32(9)),
        "scope_id is 9; no scope",
    ),
    "begin: write scope": (
        lambda index, _h, _s: index.begin(i32(1), read_scopes=NONE, write_scope=9),
        "scope_id is 9; no scope",
    ),
    "begin: session": (
        lambda index, _h, _s: index.begin(i32(1), read_scopes=NONE, session=-3),
        "session is -3; give 0",
    ),
    "commit: number of offsets": (
        lambda index, handle, _s: index.commit(i64(handle), i32(1), i64(0)),
        "number of offsets is 1; give one more than the 1 handles",
    ),
    "commit: falling offsets": (
        lambda index, handle, _s: index.commit(i64(handle, handle), i32(1, 2), i64(0, 2, 1)),
        r"offsets\[2\] is 1; give rising offsets from 0 to the 2 tokens",
    ),
    "commit: offset past the end": (
        lambda index, handle, _s: index.commit(i64(handle), i32(1), i64(0, 2)),
        r"offsets\[1\] is 2; give rising offsets from 0 to the 1 tokens",
    ),
    "commit: negative offset": (
        lambda index, handle, _s: index.commit(i64(handle), i32(1), i64(-1, 1)),
        r"offsets\[0\] is -1; give rising offsets",
    ),
    "commit: token": (
        lambda index, handle, _s: index.commit(i64(handle), i32(-2), i64(0, 1)),
        r"token_ids\[0\] is -2; give token ids of 0 or more",
    ),
    "truncate: too many": (
        lambda index, handle, _s: index.truncate(handle, 4),
        "num_tokens is 4; give 0 to the 3 tokens of the context",
    ),
    "truncate: negative": (
        lambda index, handle, _s: index.truncate(handle, -1),
        "num_tokens is -1; give 0 to the 3",
    ),
    "propose: number of limits": (
        lambda index, handle, _s: index.propose(i64(handle), i32(1, 2)),
        "number of max_tokens is 2; give one for each of the 1 handles",
    ),
    "propose: negative limit": (
        lambda index, handle, _s: index.propose(i64(handle), i32(-1)),
        r"max_tokens\[0\] is -1; give 0 or more",
    ),
    "dtype": (
        lambda index, _h, scope: index.append_shared(scope, np.array([1], np.int64)),
        "token_ids has another dtype.*contiguous int32 array",
    ),
    "dtype of handles": (
        lambda index, handle, _s: index.propose(i32(handle), i32(1)),
        "handles has another dtype.*contiguous int64 array",
    ),
    "dimensions": (
        lambda index, _h, scope: index.append_shared(scope, np.zeros((2, 2), np.int32)),
        "token_ids has 2 dimensions; give a contiguous int32 array of one dimension",
    ),
    "stride": (
        lambda index, _h, scope: index.append_shared(scope, np.zeros(6, np.int32)[::2]),
        "token_ids has stride 2; give a contiguous int32 array",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_refused_and_change_nothing(name: str) -> None:
    """A refused call names value, limit and fix, and the index is as it was."""
    call, says = CALLS[name]
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, i32(1, 2, 3))
    handle, _ = index.begin(i32(1, 2, 3), read_scopes=i32(scope), write_scope=scope)
    before = index.stats()
    with pytest.raises(ValueError, match=says):
        call(index, handle, scope)
    assert index.stats() == before
    index.check_integrity()


@pytest.mark.parametrize(
    "call",
    [
        lambda index, open_: index.commit(i64(open_, 77), i32(1, 2), i64(0, 1, 2)),
        lambda index, open_: index.propose(i64(open_, 77), i32(4, 4)),
        lambda index, _open: index.truncate(77, 0),
        lambda index, _open: index.num_tokens(77),
        lambda index, _open: index.finish(77),
    ],
    ids=["commit", "propose", "truncate", "num_tokens", "finish"],
)
def test_unknown_handles_are_key_errors(call: Callable[[DraftIndex, int], object]) -> None:
    """A handle that is not open is named, and the rest of its batch is left untouched."""
    index = DraftIndex()
    handle, _ = index.begin(i32(1, 2, 1), read_scopes=NONE)
    before = index.stats()
    with pytest.raises(
        KeyError, match=r"handle 77 is not open \(1 are\); it was finished or never"
    ):
        call(index, handle)
    assert index.stats() == before


def test_a_finished_handle_is_unknown() -> None:
    """A handle is never open again after finish, though other requests open and close."""
    index = DraftIndex()
    handle, _ = index.begin(i32(1, 2), read_scopes=NONE)
    index.finish(handle)
    assert index.begin(i32(1, 2), read_scopes=NONE)[0] != handle
    with pytest.raises(KeyError, match=f"handle {handle} is not open"):
        index.num_tokens(handle)


def test_lists_are_no_arrays() -> None:
    """A list is refused instead of being copied on the hot path."""
    with pytest.raises(TypeError):
        DraftIndex().begin([1, 2, 3], read_scopes=NONE)  # type: ignore[arg-type]
