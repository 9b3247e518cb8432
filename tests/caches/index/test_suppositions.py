"""What follows tokens that nobody has committed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from paceline.caches import DraftIndex, Source, TreeBatch

SAID = [31, 32, 33, 34, 35, 36, 37, 38]


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def remembering() -> tuple[DraftIndex, int]:
    """An index in which something was said, and a request that says something else."""
    index = DraftIndex(min_probability=0.01)
    scope = index.scope("s")
    index.append_shared(scope, i32(*SAID))
    handle, _ = index.begin(i32(51, 52, 53), read_scopes=i32(scope), write_scope=scope)
    return index, handle


def behind(index: DraftIndex, handle: int, *rows: list[int], most: int = 3) -> list[list[int]]:
    batch = TreeBatch(
        *index.propose_behind(
            np.full(len(rows), handle, np.int64),
            np.full(len(rows), most, np.int32),
            np.array([token for row in rows for token in row], np.int32),
            np.cumsum([0, *map(len, rows)], dtype=np.int64),
        )
    )
    assert set(batch.source.tolist()) <= {Source.CONTEXT, Source.WORKLOAD}
    return batch.token_lists()


def test_memory_says_what_follows_supposed_tokens() -> None:
    """Each beginning of a request has an answer of its own; none is where nothing is remembered."""
    index, handle = remembering()
    assert index.propose(i64(handle), i32(3))[1].tolist() == []
    drafts = behind(index, handle, [31], [33, 34], [99], [])
    assert drafts == [[32, 33, 34], [35, 36, 37], [], []]


def test_a_loop_of_supposed_tokens_goes_on() -> None:
    """The supposed tokens themselves and the context's end are places to copy from."""
    index, handle = remembering()
    assert behind(index, handle, [7, 8, 7, 8, 7], [51, 52]) == [[8, 7, 8], [53, 51, 52]]


def test_supposing_is_what_committing_would_give() -> None:
    """The draft behind a supposition is that of a request which was said the same."""
    index, handle = remembering()
    index.propose(i64(handle), i32(3))
    supposed = behind(index, handle, [31, 32])
    index.commit(i64(handle), i32(31, 32), i64(0, 2))
    assert index.propose(i64(handle), i32(3))[1].tolist() == supposed[0]


def test_supposing_changes_nothing() -> None:
    """Context, counters, what was learned and every later draft are what they would be without."""
    asked, handle = remembering()
    other, _ = remembering()
    for number in range(4):
        drafts = [index.propose(i64(handle), i32(4)) for index in (asked, other)]
        np.testing.assert_equal(*drafts)
        behind(asked, handle, SAID[: number + 1], [53, 1], [*drafts[0][1].tolist(), 31])
        for index in (asked, other):
            index.commit(i64(handle), i32(SAID[2 * number], 7), i64(0, 2))
    stats = [index.stats() for index in (asked, other)]
    for each in stats:
        del each["bytes"]
    assert stats[0] == stats[1]
    assert asked.num_tokens(handle) == 3 + 8
    learned = [it.calibration(read_scopes=i32(0), write_scope=0) for it in (asked, other)]
    np.testing.assert_equal(*learned)
    np.testing.assert_equal(asked.finish(handle), other.finish(handle))
    asked.check_integrity()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda index, _: index.propose_behind(i64(77), i32(1), i32(1), i64(0, 1)),
            KeyError,
            "handle 77 is not open",
        ),
        (
            lambda index, handle: index.propose_behind(i64(handle), i32(1, 2), i32(1), i64(0, 1)),
            ValueError,
            "number of max_tokens is 2; give one for each of the 1 handles",
        ),
        (
            lambda index, handle: index.propose_behind(i64(handle), i32(1), i32(-1), i64(0, 1)),
            ValueError,
            r"token_ids\[0\] is -1; give token ids of 0 or more",
        ),
        (
            lambda index, handle: index.propose_behind(i64(handle), i32(1), i32(1), i64(0, 2)),
            ValueError,
            r"offsets\[1\] is 2; give rising offsets from 0 to the 1 tokens",
        ),
        (
            lambda index, handle: index.propose_behind(
                i64(handle), i32(1), i32(1), i64(0, 1), max_branches=17
            ),
            ValueError,
            "max_branches is 17; give 1",
        ),
    ],
)
def test_what_cannot_be_supposed_is_refused(
    call: Callable[[DraftIndex, int], object], error: type[Exception], says: str
) -> None:
    """The value, the limit and the fix."""
    index, handle = remembering()
    with pytest.raises(error, match=says):
        call(index, handle)
    assert index.num_tokens(handle) == 3
    index.check_integrity()
