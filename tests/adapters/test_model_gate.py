"""When a model drafter is asked, by what its passes take and what it adds."""

from __future__ import annotations

from typing import NamedTuple

from paceline.adapters.model_gain import PATIENCE
from paceline.adapters.model_gate import JUDGING_SHARE, TRIAL_SHARE, Candidates, ModelGate

ROUND = 1.0
"""Seconds of the target's."""


def make_gate(*, takes_all: bool = True, seconds: float = 0.2, token: float = 0.0) -> ModelGate:
    """Knows what passes take."""
    gate = ModelGate(most_late=500, takes_all=takes_all)
    for i in range(60):
        num_tokens = 1 + i % 9
        gate.cost.learn(1, num_tokens, seconds + token * num_tokens)
    return gate


def teach(gate: ModelGate, gained: float, *, key: int = 1, num_expected: float = 0.0) -> None:
    for _ in range(400):
        gate.learn(key, num_expected, gained)


class Candidate(NamedTuple):
    """One request."""

    key: int = 1
    expected: float = 0.0
    num_read: int = 1
    num_late: int = 0
    num_left: int = 100


def asked(gate: ModelGate, *batch: Candidate) -> list[int]:
    tokens = sum(1.0 + each.expected for each in batch)
    columns = [list(column) for column in zip(*batch, strict=True)] or [[]] * 5
    return gate.asked(Candidates(*columns), base_tokens=tokens, base_seconds=ROUND)


def test_it_drafts_where_that_yields_more_tokens_a_second() -> None:
    """It must add more than its share of time times what comes without it."""
    for gained, wanted in ((0.19, False), (0.21, True)):
        gate = make_gate()
        teach(gate, gained)
        assert bool(asked(gate, Candidate())) == wanted
    assert asked(make_gate()) == []


def test_a_pass_that_takes_all_is_for_those_who_gain_by_it() -> None:
    """One request that would gain does not pay for three that memory serves; two do."""
    gate = make_gate()
    teach(gate, 0.5)
    teach(gate, 0.0, num_expected=5.0)
    served = Candidate(expected=5.0)
    assert asked(gate, Candidate(), served, served, served) == []
    assert asked(gate, Candidate(), Candidate(), Candidate()) == [0, 1, 2]


def test_what_was_missed_is_read_for_what_is_left() -> None:
    """A long text that was not read is worth reading for a long reply only."""
    gate = make_gate(token=0.01)
    teach(gate, 0.5)
    assert asked(gate, Candidate(num_late=400, num_left=4000)) == [0]
    assert asked(gate, Candidate(num_late=400, num_left=4)) == []


def test_a_model_that_rests_is_tried_for_a_small_part_of_the_time() -> None:
    """After enough rounds without it, on the request that costs least, once time was saved."""
    for seconds, least in ((0.2, PATIENCE), (3.0, 3.0 / TRIAL_SHARE)):
        gate = make_gate(seconds=seconds, token=0.001)
        teach(gate, 0.0)
        batch = [Candidate(num_late=90), Candidate(num_late=30)]
        rounds = []
        for _ in range(1000):
            rounds.append(asked(gate, *batch))
            assert gate.has_rested(1) == (not rounds[-1])
        tried = [i for i, chosen in enumerate(rounds) if chosen]
        assert all(rounds[i] == [1] for i in tried)
        assert least <= tried[0] <= 1.05 * least + 6
        assert len(tried) * (seconds + 0.03) <= TRIAL_SHARE * 1.05 * len(rounds) * ROUND


def test_trials_of_many_keys_share_the_time() -> None:
    """However many tenants there are, trying the model takes its part of the time and no more."""
    gate = make_gate(seconds=0.5)
    batch = [Candidate(key=key) for key in range(20)]
    for key in range(20):
        teach(gate, 0.0, key=key)
    num_tried = sum(len(asked(gate, *batch)) for _ in range(1000))
    assert 10 <= num_tried <= 20  # of 0.5 seconds each, in 1,000 seconds


def test_a_model_that_is_judged_is_tried_more_often_and_not_without_bound() -> None:
    """Two hundred trials come in some thousand rounds, for a twentieth of the time at most."""
    gate = make_gate(seconds=0.2)
    teach(gate, 0.0)
    gate.is_judging = True
    num_tried = sum(len(asked(gate, Candidate())) for _ in range(1000))
    assert num_tried >= 180
    assert num_tried * 0.2 <= JUDGING_SHARE * 1000 * ROUND
    gate.is_judging = False
    assert sum(len(asked(gate, Candidate())) for _ in range(1000)) <= 1000 / PATIENCE + 1


def test_another_model_begins_without_what_was_learned_of_the_one_before() -> None:
    """A useless one that rests is followed by one that is asked at once; costs stay if they do."""
    for costs_same in (True, False):
        gate = make_gate(seconds=0.2)
        teach(gate, 0.0)
        assert asked(gate, Candidate()) == []
        gate.renew(costs_same=costs_same)
        assert asked(gate, Candidate()) == [0]
        assert (gate.cost.seconds(1, 1) > 0.1) == costs_same
