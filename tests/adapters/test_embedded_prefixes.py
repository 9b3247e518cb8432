"""Kept beginnings: found by their owner, bounded, never more than what was read."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from paceline.adapters.embedded.key_values import KeyValues

BYTES_PER_TOKEN = 2 * 1 * 1 * 4 * 4


def sequence(num_tokens: int) -> KeyValues:
    """A sequence of that many tokens."""
    import torch

    from paceline.adapters.embedded.key_values import CacheShape, KeyValues

    made = KeyValues(CacheShape(num_layers=1, num_heads=1, head_dim=4, dtype=torch.float32))
    made.reserve(num_tokens)
    made.advance(num_tokens)
    return made


def text(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)


LONG = np.arange(100, dtype=np.int32)


def test_only_the_owner_finds_a_kept_beginning() -> None:
    """The same tokens of another owner are not found."""
    from paceline.adapters.embedded.prefixes import PrefixStore

    store = PrefixStore(1 << 20)
    store.keep("a", LONG, sequence(100), 0)
    asked = np.append(LONG, text(7, 8))
    assert store.take("b", asked) is None
    found = store.take("a", asked)
    assert found is not None
    assert len(found) == 100


@pytest.mark.parametrize(
    ("asked", "common", "left"),
    [
        (np.append(LONG, text(7)), 100, 0),
        (LONG, 99, 0),
        (np.append(LONG[:90], text(1, 2, 3)), 90, 0),
        (np.append(LONG[:40], text(1, 2, 3)), 40, 1),
    ],
    ids=["goes on", "asked again", "a changed end", "a shared beginning"],
)
def test_the_longest_common_beginning_is_reused(
    asked: npt.NDArray[np.int32], common: int, left: int
) -> None:
    """One token is always left to read; what would lose much is copied and stays."""
    from paceline.adapters.embedded.prefixes import PrefixStore

    store = PrefixStore(1 << 20)
    store.keep("a", text(*range(500, 540)), sequence(40), 0)
    store.keep("a", LONG, sequence(100), 0)
    found = store.take("a", asked)
    assert found is not None
    assert len(found) == common
    assert len(store) == 1 + left


def test_short_beginnings_are_not_worth_it() -> None:
    """Fewer than sixteen common tokens are read again."""
    from paceline.adapters.embedded.prefixes import PrefixStore

    store = PrefixStore(1 << 20)
    store.keep("a", LONG, sequence(100), 0)
    assert store.take("a", np.append(LONG[:15], text(3, 3))) is None
    assert len(store) == 1


def test_none_shares_more_than_the_one_found() -> None:
    """What is found against a comparison with every sequence held.

    They are of two owners, differ late, are kept twice at times, and most are dropped meanwhile.
    """
    from paceline.adapters.embedded.prefixes import PrefixStore

    store = PrefixStore(60 * 40 * BYTES_PER_TOKEN)
    rng = np.random.default_rng(5)

    def some() -> npt.NDArray[np.int32]:
        """Twenty tokens that all share, then some of few kinds, so that many share more."""
        tail = rng.integers(0, 3, rng.integers(1, 20)) * 70_000
        return np.concatenate([np.arange(20), tail]).astype(np.int32)

    num_taken = num_copied = 0
    for _ in range(600):
        tokens = some()
        store.keep(str(rng.choice(["a", "b"])), tokens, sequence(len(tokens)), 0)
        owner, asked = str(rng.choice(["a", "b"])), some()
        held = list(store._kept.values())
        most = max(shared(kept.tokens, asked[:-1]) for kept in held if kept.owner == owner)
        found = store.take(owner, asked)
        assert (0 if found is None else len(found)) == (most if most >= 16 else 0)
        assert sum(map(len, store._places.values())) == len(store)
        num_copied += found is not None and len(store) == len(held)
        num_taken += len(store) < len(held)
    num_dropped = 600 - num_taken - len(store)
    assert min(num_taken, num_copied, num_dropped) > 50


def shared(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """How many tokens both begin with, one after the other."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def test_memory_is_bounded_least_recently_used_first() -> None:
    """The bytes held never pass the limit; what was used last stays; none larger is kept."""
    from paceline.adapters.embedded.prefixes import PrefixStore

    num_bytes = sequence(100).num_bytes
    assert 100 * BYTES_PER_TOKEN <= num_bytes < 116 * BYTES_PER_TOKEN  # whole blocks
    store = PrefixStore(3 * num_bytes)
    for owner in "abc":
        store.keep(owner, LONG, sequence(100), 0)
    assert store.take("a", np.append(LONG[:50], text(1, 1))) is not None
    store.keep("d", LONG, sequence(100), 0)
    assert store.num_bytes == 3 * num_bytes
    assert [store.take(owner, LONG) is not None for owner in "abcd"] == [True, False, True, True]
    assert store.num_bytes == 0
    store.keep("e", np.arange(1000, dtype=np.int32), sequence(1000), 0)
    assert len(store) == 0


def test_what_is_let_go_is_not_found_nor_kept_late() -> None:
    """After `clear` nothing is held, and requests that had begun before leave nothing."""
    from paceline.adapters.embedded.prefixes import PrefixStore

    store = PrefixStore(1 << 20)
    store.keep("a", LONG, sequence(100), store.generation)
    before = store.generation
    store.clear()
    assert (len(store), store.num_bytes) == (0, 0)
    store.keep("a", LONG, sequence(100), before)
    assert store.take("a", LONG) is None
    store.keep("a", LONG, sequence(100), store.generation)
    assert store.take("a", LONG) is not None
