"""When a model drafter is worth its passes."""

from __future__ import annotations

from paceline.adapters.model_gain import PATIENCE, ModelChoice, ModelGain, RelativeCost


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


def test_the_cost_is_the_ratio_of_what_both_took() -> None:
    """Nothing costs anything before both are known; then recent rounds count most."""
    cost = RelativeCost()
    cost.note_model(1.0)
    assert cost.value == 0.0
    cost.note_target(4.0)
    assert cost.value == 0.25
    for _ in range(100):
        cost.note_target(2.0)
    assert abs(cost.value - 0.5) < 0.001


def test_the_model_drafts_where_that_yields_more_tokens_a_second() -> None:
    """It must add more than its share of time times what is drafted without it."""
    choice = ModelChoice()
    choice.cost.note_target(1.0)
    choice.cost.note_model(0.2)
    assert choice.wants_model([1.0], [1.0])
    assert not choice.wants_model([0.39], [1.0])
    assert choice.wants_model([0.41], [1.0])
    # one request that would gain does not pay for three that memory serves
    assert not choice.wants_model([1.0, 0.0, 0.0, 0.0], [0.0, 5.0, 5.0, 5.0])
    assert not choice.wants_model([], [])


def test_a_model_that_rests_is_tried_again() -> None:
    """After enough rounds without it the model runs once, whatever it costs."""
    choice = ModelChoice()
    choice.cost.note_target(1.0)
    choice.cost.note_model(1.0)
    rounds = [choice.wants_model([0.0], [3.0]) for _ in range(2 * (PATIENCE + 1))]
    assert [i for i, wanted in enumerate(rounds) if wanted] == [PATIENCE, 2 * PATIENCE + 1]
