"""The proxy knows what of a session it has recorded without keeping a word of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.known_prefixes import BLOCK_TOKENS, KnownPrefixes


def tokens(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)


def counting(start: int, stop: int) -> npt.NDArray[np.int32]:
    return np.arange(start, stop, dtype=np.int32)


lengths = st.integers(0, 4 * BLOCK_TOKENS)


@given(lengths, lengths, st.booleans())
def test_a_turn_that_goes_on_is_known_exactly(earlier: int, added: int, ends_alike: bool) -> None:
    """What was recorded is known to its last token; a change is known up to the block before it."""
    known = KnownPrefixes()
    known.add("s", counting(0, earlier))
    prompt = counting(0, earlier + added)
    if ends_alike:
        assert known.num_known("s", prompt) == earlier
    elif earlier:
        prompt[earlier - 1] = -1
        assert known.num_known("s", prompt) == (earlier - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert known.num_known("t", prompt) == 0


def test_side_conversations_of_a_session_do_not_disturb_each_other() -> None:
    """Two that take turns under one session id are each known to their ends."""
    known = KnownPrefixes()
    for turn in range(1, 6):
        for start in (0, 1000):
            text = counting(start, start + 40 * turn)
            assert known.num_known("s", text) == 40 * (turn - 1)
            known.add("s", text)


def test_an_order_of_the_same_blocks_is_another_prefix() -> None:
    """A digest tells all that stands before, not its block alone."""
    known = KnownPrefixes()
    a, b = counting(0, BLOCK_TOKENS), counting(500, 500 + BLOCK_TOKENS)
    known.add("s", np.concatenate((a, b)))
    assert known.num_known("s", np.concatenate((b, a))) == 0
    assert known.num_known("s", np.concatenate((a, a, b))) == BLOCK_TOKENS


def test_the_sessions_used_longest_ago_are_forgotten() -> None:
    """Digests are bounded over all sessions, even by a single one."""
    known = KnownPrefixes(max_prefixes=40)
    for number in range(30):
        known.add(str(number), counting(0, 9 * BLOCK_TOKENS))
        known.num_known("0", counting(0, 1)) if number < 3 else None
    assert len(known) == 4
    assert known.num_known("29", counting(0, 9 * BLOCK_TOKENS)) == 9 * BLOCK_TOKENS
    assert known.num_known("25", counting(0, 9 * BLOCK_TOKENS)) == 0
    known.add("long", counting(0, 100 * BLOCK_TOKENS))
    assert len(known) == 0
    known.add("short", tokens(1, 2))
    assert known.num_known("short", tokens(1, 2, 3)) == 2
