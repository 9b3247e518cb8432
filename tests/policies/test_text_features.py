"""Vectors of texts: what counts in them and what does not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from paceline.errors import ConfigError
from paceline.policies.text_features import MAX_CHARS, NUM_BUCKETS, TextFeatures, shortened


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures()


def cosine(features: TextFeatures, a: str, b: str) -> float:
    first, second = features.vectors((a, b))
    return float(first @ second)


def test_rows_have_length_one_and_absent_parts_none(features: TextFeatures) -> None:
    """One row a part, float32; an empty part and one without a letter are zero."""
    vectors = features.vectors(("You are a pilot.", "", " \n"))
    assert vectors.shape == (3, NUM_BUCKETS)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert not vectors[1:].any()


def test_numbers_and_case_do_not_count_words_do(features: TextFeatures) -> None:
    """Two dates are one text; another question is another."""
    a, b = "Today is 2026-03-01, Port 8080.", "today is 1999-12-31, port 443."
    assert cosine(features, a, b) == pytest.approx(1)
    assert cosine(features, a, "Translate this poem into French, please.") < 0.3


def test_nearness_grows_with_what_is_shared(features: TextFeatures) -> None:
    """A changed word in a long text counts less than in a short one."""
    long = "Book, change or cancel flights of travellers and explain what each of these costs. "
    short = "Cancel flights. "
    near = cosine(features, long + "You serve Ann.", long + "You serve Bob.")
    assert near > cosine(features, short + "You serve Ann.", short + "You serve Bob.")
    assert near > 0.8


def test_counting_in_pieces_counts_the_same(features: TextFeatures) -> None:
    """There is a pause every 2048 characters, and words in different pieces add up."""
    pauses: list[int] = []
    words = "plan route cargo invoice "
    text = words * 100
    (vector,) = features.vectors((text,), pause=lambda: pauses.append(1))
    assert len(pauses) == 2
    whole = features._hashing.transform([text])
    dampened = np.sign(whole.data) * np.log1p(np.abs(whole.data))
    expected = np.bincount(whole.indices % NUM_BUCKETS, dampened, NUM_BUCKETS)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_long_texts_are_cut_in_the_middle(features: TextFeatures) -> None:
    """Beginning and end count, and the time is bounded."""
    text = "a" * MAX_CHARS + "b" * MAX_CHARS + "c" * MAX_CHARS
    cut = shortened(text)
    assert len(cut) == MAX_CHARS + 1
    assert (cut[0], cut[-1]) == ("a", "c")
    assert "b" not in cut
    assert shortened("short") == "short"
    assert cosine(features, text, text) == pytest.approx(1)


def test_without_scikit_learn_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra and the setting."""
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ConfigError, match=r"paceline\[proxy\].*workloads.clusters"):
        TextFeatures()
