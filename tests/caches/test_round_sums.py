"""Sums over rounds, native, beside the definition of a shorter draft."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.caches import sum_rounds
from paceline.policies.bandits import shorter_draft

NUM_PLACES = 3
Rounds = list[tuple[list[int], list[int], list[int], list[float], float, float]]


@st.composite
def some_rounds(draw: st.DrawFn) -> Rounds:
    """Of up to four requests, some of them nobody's, some without a token."""
    rounds = []
    for num in draw(st.lists(st.integers(0, 4), max_size=4)):
        each = st.lists(st.integers(0, 20), min_size=num, max_size=num)
        drafted = draw(each)
        accepted = draw(st.lists(st.integers(-1, 20), min_size=num, max_size=num))
        committed = [min(a, b) + 1 for a, b in zip(drafted, accepted, strict=True)]
        places = draw(st.lists(st.integers(-1, NUM_PLACES - 1), min_size=num, max_size=num))
        more = draw(st.one_of(st.just([]), each.map(lambda all_of: [0.5 * n for n in all_of])))
        rounds.append((places, drafted, committed, more, draw(st.sampled_from([1.0, 3.5])), 0.25))
    return rounds


@given(some_rounds(), st.sets(st.integers(0, 20), min_size=1))
def test_they_are_those_of_shorter_drafts(rounds: Rounds, caps: set[int]) -> None:
    """Of every place and cap, draft for draft."""
    found = sum_rounds(rounds, NUM_PLACES, sorted(caps))
    for place in range(NUM_PLACES):
        for column, cap in enumerate(sorted(caps)):
            assert found[place][column] == pytest.approx(expected(rounds, place, cap))


def expected(rounds: Rounds, place: int, cap: int) -> Sequence[float]:
    """Tokens, seconds and rounds."""
    tokens, seconds, num_rounds = 0, 0.0, 0
    for places, drafted, committed, more, base, token in rounds:
        for i, num in enumerate(committed):
            if places[i] != place or num < 1:
                continue
            needed, num_drafted = shorter_draft(drafted[i], num - 1, cap)
            tokens, num_rounds = tokens + num, num_rounds + needed
            seconds += needed * (base + (more[i] if more else 0.0)) + num_drafted * token
    return tokens, seconds, num_rounds


@pytest.mark.parametrize(
    ("row", "num_places", "caps", "why"),
    [
        (([0], [1, 2], [1], [], 1.0, 0.1), 1, [0], "rows is 2 long; give one for each of 1"),
        (([0], [1], [1], [0.1, 0.2], 1.0, 0.1), 1, [0], "more_seconds is 2 long; give 1 or none"),
        (([1], [1], [1], [], 1.0, 0.1), 1, [0], "places is 1; give more places"),
        (([0], [1], [1], [], 1.0, 0.1), 1, [-1], "caps is -1"),
        (([0], [1], [1], [], 1.0, 0.1), -1, [0], "num_places is -1"),
    ],
)
def test_what_cannot_be_summed_is_refused(
    row: tuple[list[int], list[int], list[int], list[float], float, float],
    num_places: int,
    caps: list[int],
    why: str,
) -> None:
    """With the value and what to give."""
    with pytest.raises(ValueError, match=why):
        sum_rounds([row], num_places, caps)
