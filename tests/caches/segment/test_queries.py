"""Corpus segments answer as a scan of the whole text would."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.caches import CorpusSegment
from paceline.caches.reference.segment import BORDER, MAX_MATCH, Guess, ReferenceSegment
from paceline.caches.segment import build_segment, sorted_places, with_borders

MAX_BACK_OFFS = 16
MAX_COUNTED = 256
NUM_SAMPLES = 32

# Few different tokens, so that everything repeats; borders; runs longer than any match.
runs = st.tuples(st.integers(BORDER, 3), st.integers(1, 80)).map(lambda run: [run[0]] * run[1])
pieces = st.one_of(st.lists(st.integers(BORDER, 3), max_size=20), runs)
texts = st.lists(pieces, max_size=5).map(lambda parts: [token for part in parts for token in part])
contexts = st.lists(st.integers(0, 4), max_size=20)


def i32(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def built(folder: str | Path, text: list[int]) -> CorpusSegment:
    segment = build_segment(Path(folder) / "s", text)
    segment.check_integrity()
    return segment


def found(segment: CorpusSegment, context: list[int], max_candidates: int = 64) -> list[Guess]:
    columns = segment.find(i32(context), max_candidates=max_candidates)
    return [
        Guess(int(segment.read(place, place + 1)[0]), length, count, total)
        for place, length, count, total in zip(*(c.tolist() for c in columns), strict=True)
    ]


def by_rank(guesses: list[Guess]) -> list[Guess]:
    return sorted(guesses, key=lambda it: (-it.match_length, -it.count, it.token))


@settings(deadline=None, max_examples=400)  # files are written and synced
@given(texts, contexts, st.data())
def test_guesses_are_those_of_a_scan(
    text: list[int], context: list[int], data: st.DataObject
) -> None:
    """Next tokens, match lengths and counts are true, longest match first, most frequent first."""
    if text and data.draw(st.booleans(), "the context is a part of the text"):
        end = data.draw(st.integers(1, len(text)))
        context = text[max(0, end - 70) : end]
        while BORDER in context:
            context = context[1:]
    reference = ReferenceSegment(text)
    with TemporaryDirectory() as folder:
        got = found(built(folder, text), context)
    expected = reference.guesses(context)
    exact = [it for it in got if it.total <= MAX_COUNTED]
    ranks = [(it.match_length, it.count) for it in expected]
    assert [(it.match_length, it.count) for it in exact] == ranks[: len(exact)]
    assert by_rank(exact) == expected[: len(exact)]
    lengths = reference.matches(context).values()
    if len(lengths) <= MAX_COUNTED and len(set(lengths)) <= MAX_BACK_OFFS:
        assert len(got) == len(expected)


@settings(deadline=None)  # files are written and synced
@given(texts, contexts, contexts)
def test_following_a_draft_counts_what_is_left(
    text: list[int], context: list[int], drafted: list[int]
) -> None:
    """After each drafted token the places are those that went the same way."""
    with TemporaryDirectory() as folder:
        steps = built(folder, text).follow(i32(context), i32(drafted))
    expected = ReferenceSegment(text).follow(context, drafted)
    within = [step for step, (length, _) in enumerate(expected) if length < MAX_MATCH]
    assert [steps[step] for step in within] == [expected[step] for step in within]


@pytest.mark.parametrize("token", [2, 255, 256, 2**16 - 2, 2**16 - 1, 2**16, 262_143, 2**24 - 3])
def test_any_token_id_is_sorted(tmp_path: Path, token: int) -> None:
    """Ids of two bytes and of three are found again after each other."""
    segment = built(tmp_path, [token, 0, token, 1, BORDER, 0, token, 0])
    assert found(segment, [0, token]) == [Guess(0, 2, 1, 2), Guess(1, 2, 1, 2)]


@pytest.mark.parametrize("max_candidates", [1, 2, 5])
def test_the_likeliest_come_first(tmp_path: Path, max_candidates: int) -> None:
    """Fewer candidates are the first of more."""
    rng = np.random.default_rng(1)
    segment = built(tmp_path, rng.zipf(1.5, 300).clip(0, 9).tolist())
    for token in range(10):
        everything = found(segment, [token])
        assert found(segment, [token], max_candidates) == everything[:max_candidates]
        counts = [it.count for it in everything]
        assert counts == sorted(counts, reverse=True)


def test_large_intervals_are_sampled_evenly(tmp_path: Path) -> None:
    """Counts are those of every 32nd part of the interval's places, scaled to all of them."""
    rng = np.random.default_rng(2)
    text = with_borders(rng.integers(0, 4, 9000).astype(np.int32))
    places = sorted_places(text)
    alike = places[text[places - 1] == 2]
    assert len(alike) > MAX_COUNTED
    picked = text[alike[np.arange(NUM_SAMPLES) * len(alike) // NUM_SAMPLES]]
    tokens, counts = np.unique(picked, return_counts=True)
    expected = [
        Guess(int(token), 1, int(count) * len(alike) // NUM_SAMPLES, len(alike))
        for token, count in zip(tokens, counts, strict=True)
    ]
    segment = build_segment(tmp_path / "s", text)
    assert by_rank(found(segment, [2])) == by_rank(expected)
    truth = np.bincount(text[alike], minlength=4) / len(alike)
    for guess in expected:
        assert abs(guess.count / guess.total - truth[guess.token]) < 0.25


def test_a_border_is_never_drafted_nor_matched(tmp_path: Path) -> None:
    """The end of a sequence predicts nothing, and no match runs into the sequence before."""
    segment = built(tmp_path, [1, 2, BORDER, 3, 2, 4])
    assert found(segment, [1, 2]) == [Guess(4, 1, 1, 1)]
    assert found(segment, [2, BORDER, 3]) == [Guess(2, 1, 1, 1)]
    assert found(segment, [4]) == []
    assert found(segment, [BORDER]) == []


def test_sizes(tmp_path: Path) -> None:
    """Tokens are counted without borders; the file takes at most 16 bytes a token."""
    rng = np.random.default_rng(3)
    text = rng.integers(0, 500, 20_000).astype(np.int32)
    text[::1000] = BORDER
    segment = build_segment(tmp_path / "s", text)
    assert segment.num_tokens == 20_000 - 20
    assert segment.num_positions == 20_001
    assert segment.num_bytes == (tmp_path / "s").stat().st_size <= 16 * segment.num_tokens
    np.testing.assert_array_equal(segment.read(0, 20_001), with_borders(text))
