"""What a model drafter adds, as learned."""

from __future__ import annotations

from paceline.adapters.model_gain import ModelGain


def test_what_the_model_adds_is_learned_where_it_was_seen() -> None:
    """Rounds of one expectation move what is expected there, and there alone."""
    gain = ModelGain()
    before = gain.expected(1, 3.0)
    for _ in range(200):
        gain.learn(1, 0.1, 3.0)
        gain.learn(1, 20.0, 0.0)
    assert gain.expected(1, 0.1) > 2.5
    assert gain.expected(1, 20.0) < 0.01
    assert gain.expected(1, 3.0) == before


def test_a_harmful_model_is_worth_nothing() -> None:
    """Where the model's chains displace better ones of memory, nothing is expected of it."""
    gain = ModelGain()
    for _ in range(100):
        gain.learn(1, 5.0, -2.0)
    assert gain.expected(1, 5.0) == 0.0


def test_nothing_is_learned_across_keys() -> None:
    """What one key learns changes nothing for another; a forgotten key starts anew."""
    gain = ModelGain()
    fresh = [gain.expected(2, e) for e in (0.0, 1.0, 9.0)]
    for _ in range(50):
        gain.learn(1, 0.0, 4.0)
    assert [gain.expected(2, e) for e in (0.0, 1.0, 9.0)] == fresh
    assert gain.expected(1, 0.0) > fresh[0]
    gain.forget(1)
    assert gain.expected(1, 0.0) == fresh[0]
