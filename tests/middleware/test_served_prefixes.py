"""What is remembered of prefixes, against a model that keeps whole texts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paceline.middleware.served_prefixes import (
    BLOCK_ENDS,
    GROWTH,
    MAX_HASHED_BYTES,
    MIN_BLOCK_BYTES,
    ServedPrefixes,
    prefix_digests,
)

MAX_AGE = 100.0
PIECES = [letter * MIN_BLOCK_BYTES for letter in (b"a", b"b", b"c")]


def test_a_match_is_known_to_a_sixteenth_or_to_512_bytes() -> None:
    """Blocks grow with their place, so that a long conversation has few of them."""
    begins = (0, *BLOCK_ENDS[:-1])
    for begin, end in zip(begins, BLOCK_ENDS, strict=True):
        assert end - begin == max(MIN_BLOCK_BYTES, begin // GROWTH)
    assert BLOCK_ENDS[-1] <= MAX_HASHED_BYTES
    assert len(prefix_digests("s", b"x" * 250_000)) < 75
    assert len(prefix_digests("s", b"x" * 10 * MAX_HASHED_BYTES)) == len(BLOCK_ENDS) < 100


@given(
    st.lists(st.sampled_from(PIECES), max_size=12),
    st.lists(st.sampled_from(PIECES), max_size=12),
    st.binary(max_size=700),
)
def test_digests_agree_exactly_as_far_as_texts_do(
    ours: list[bytes], theirs: list[bytes], rest: bytes
) -> None:
    """Up to the last whole block that both have in common, and never between two scopes."""
    left, right = b"".join(ours) + rest, b"".join(theirs) + rest
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    num_shared = sum(end <= same for end in BLOCK_ENDS)
    one, other = prefix_digests("s", left), prefix_digests("s", right)
    assert [a == b for a, b in zip(one, other, strict=False)] == [
        number < num_shared for number in range(min(len(one), len(other)))
    ]
    assert not set(one) & set(prefix_digests("t", left))


class PrefixMachine(RuleBasedStateMachine):
    """Any order of adding, asking and waiting; a list of uses is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.max_bytes = 6 * MIN_BLOCK_BYTES
        self.prefixes = ServedPrefixes(self.max_bytes, max_age_seconds=MAX_AGE)
        self.uses: list[tuple[float, Sequence[int]]] = []

    def expected(self) -> list[int]:
        """Digests held, by the rule itself: the latest used, short before long, while they fit."""
        held: list[int] = []
        for when, digests in reversed(self.uses):
            if when < self.now - MAX_AGE:
                break
            for digest in digests:
                if digest in held:
                    continue
                if len(held) == self.max_bytes // MIN_BLOCK_BYTES:
                    return held
                held.append(digest)
        return held

    @rule(text=st.lists(st.sampled_from(PIECES), max_size=9))
    def add(self, text: list[bytes]) -> None:
        digests = prefix_digests("s", b"".join(text))
        self.uses.append((self.now, digests))
        self.prefixes.add(digests, self.now)

    @rule(seconds=st.sampled_from([1.0, 30.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def lose_all(self) -> None:
        self.prefixes.clear()
        self.uses.clear()

    @rule(text=st.lists(st.sampled_from(PIECES), max_size=9))
    def ask(self, text: list[bytes]) -> None:
        digests = prefix_digests("s", b"".join(text))
        held = set(self.expected())
        num_known = next((i for i, d in enumerate(digests) if d not in held), len(digests))
        assert self.prefixes.num_known(digests, self.now) == num_known
        assert not set(digests[num_known:]) & held  # a known prefix has all shorter ones

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.prefixes.num_bytes <= self.max_bytes
        assert len(self.prefixes) * MIN_BLOCK_BYTES == self.prefixes.num_bytes
        room = self.max_bytes - self.prefixes.num_bytes
        assert self.prefixes.num_pushed_out(room) == 0
        assert self.prefixes.num_pushed_out(10**9) == self.prefixes.num_bytes


PrefixMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_it_does_what_the_model_does = PrefixMachine.TestCase


def test_one_text_longer_than_everything_leaves_its_beginning() -> None:
    """As much as fits, from the front; nothing of it is lost twice."""
    prefixes = ServedPrefixes(4 * MIN_BLOCK_BYTES, max_age_seconds=MAX_AGE)
    digests = prefix_digests("s", b"x" * 100_000)
    for _ in range(2):
        prefixes.add(digests, 0.0)
        assert prefixes.num_known(digests, 0.0) == 4
        assert prefixes.num_bytes == 4 * MIN_BLOCK_BYTES


@pytest.mark.parametrize("num_bytes", [0, 1, MIN_BLOCK_BYTES - 1])
def test_what_is_shorter_than_a_block_has_no_digest(num_bytes: int) -> None:
    """Such a prompt is placed by its session and by load."""
    assert prefix_digests("s", b"x" * num_bytes) == []
