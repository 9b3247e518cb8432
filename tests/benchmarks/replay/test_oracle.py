"""The copy oracle against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.benchmarks.replay.drafters.oracle import Oracle, previous_factors
from paceline.benchmarks.replay.episodes import Episode, Scope, Turn
from paceline.benchmarks.replay.run import replay_scope

texts = st.lists(st.integers(0, 2), max_size=60)


def longest_previous(tokens: list[int], place: int, cap: int) -> int:
    return max(
        (
            length
            for length in range(1, min(cap, len(tokens) - place) + 1)
            for earlier in range(place)
            if tokens[earlier : earlier + length] == tokens[place : place + length]
        ),
        default=0,
    )


@settings(deadline=None)
@given(texts, st.integers(1, 12))
def test_previous_factors_are_those_of_brute_force(tokens: list[int], cap: int) -> None:
    """At every position the longest substring that also starts earlier, overlap allowed."""
    found = previous_factors(np.array(tokens, np.int32), cap)
    assert found.tolist() == [longest_previous(tokens, i, cap) for i in range(len(tokens))]


def test_long_repeats_stop_at_the_cap() -> None:
    """A text that repeats one token knows it at once."""
    assert previous_factors(np.zeros(100, np.int32), 33).tolist()[:3] == [0, 33, 33]


def fewest_steps(stream: list[int], turn: tuple[int, int], anchor: int, oldest: int) -> int:
    """Fewest steps of any drafter that copies one earlier place, by dynamic programming."""
    begin, end = turn
    steps = {end: 0}
    for place in range(end - 1, begin, -1):
        runs = {0}
        for earlier in range(oldest + anchor, place):
            if stream[earlier - anchor : earlier] == stream[place - anchor : place]:
                run = 0
                while place + run < end and stream[earlier + run] == stream[place + run]:
                    run += 1
                runs.update(range(min(run, 32) + 1))
        steps[place] = 1 + min(steps[min(place + run + 1, end)] for run in runs)
    return steps[min(begin + 1, end)]


episodes = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=4, max_size=12), st.integers(1, 14)),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(episodes, st.sampled_from([(1, False), (1, True), (4, False)]))
def test_the_oracle_takes_the_fewest_steps_possible(
    parts: list[tuple[list[int], int]], variant: tuple[int, bool]
) -> None:
    """No choice of places and lengths needs fewer steps, in each variant; none of it is wrong."""
    anchor, own = variant
    rng = np.random.default_rng(sum(map(sum, (p for p, _ in parts))))
    made = []
    for number, (prompt, length) in enumerate(parts):
        stream = np.array([*prompt, *rng.integers(0, 3, length), 9], np.int32)
        turn = Turn(len(prompt), len(prompt) + length)
        made.append(Episode(f"e{number}", "x", stream, 0, (turn,), False, False))
    result = replay_scope(
        Oracle(anchor=anchor, own_episode=own), "oracle", Scope("s", "m", tuple(made))
    )
    (counts,) = result.counts.values()
    stream = np.concatenate([e.stream for e in made]).tolist()
    starts = np.cumsum([0, *(len(e.stream) for e in made)]).tolist()
    expected = sum(
        fewest_steps(
            stream, (start + e.turns[0].begin, start + e.turns[0].end), anchor, start if own else 0
        )
        for start, e in zip(starts, made, strict=False)
    )
    assert counts.steps == expected
    assert counts.drafted == counts.accepted


def test_it_copies_at_most_32_tokens() -> None:
    """A reply told before takes a step for 33 tokens, and one for the other 32 to its end."""
    reply = list(range(10, 76))
    stream = np.array([1, *reply, 2, 1, *reply], np.int32)
    begin = len(reply) + 3
    episode = Episode("e", "x", stream, 0, (Turn(begin, begin + len(reply)),), False, False)
    (counts,) = replay_scope(Oracle(), "o", Scope("s", "m", (episode,))).counts.values()
    assert (counts.steps, counts.accepted) == (2, 64)


@pytest.mark.parametrize("anchor", [1, 4])
def test_an_empty_scope_is_no_trouble(anchor: int) -> None:
    """Nothing to copy, nothing to fail on."""
    Oracle(anchor=anchor).prepare_scope(Scope("s", "m", ()))
