"""A new drafter against the one before, on simulated rounds; every seed is fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError
from paceline.policies.canary import CanaryRules, Judgement, Seen, judge

NUM_CASES = 400
STEP = 10
"""Rounds between two judgements."""
ALL_KINDS = (0.2, 0.4, 0.5, 0.6, 0.8, 0.9)


def seen_by(kinds: np.ndarray, is_right: np.ndarray) -> dict[Hashable, Seen]:
    return {
        int(kind): Seen(float((kinds == kind).sum()), float(is_right[kinds == kind].sum()))
        for kind in np.unique(kinds)
    }


def run(
    rng: np.random.Generator,
    old: Sequence[float],
    new: Sequence[float],
    *,
    old_mix: Sequence[float] | None = None,
    new_mix: Sequence[float] | None = None,
    num_before: int = 4000,
    most_rounds: int = 200,
    step: int = STEP,
) -> tuple[Judgement, int]:
    """One canary: agreement by kind of work, old and new; judged until it is decided."""
    kinds = rng.choice(len(old), num_before, p=old_mix)
    before = seen_by(kinds, rng.random(num_before) < np.array(old)[kinds])
    kinds = rng.choice(len(new), most_rounds, p=new_mix)
    is_right = rng.random(most_rounds) < np.array(new)[kinds]
    for num_rounds in range(step, most_rounds + 1, step):
        found = judge(before, seen_by(kinds[:num_rounds], is_right[:num_rounds]))
        if found.verdict != "open":
            break
    return found, num_rounds


def verdicts(seed: int, *args: Any, num_cases: int = NUM_CASES, **kwargs: Any) -> Counter[str]:
    rng = np.random.default_rng(seed)
    return Counter(run(rng, *args, **kwargs)[0].verdict for _ in range(num_cases))


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [
        ([0.5], [0.3], 0.99),
        ([0.7], [0.45], 0.99),
        (ALL_KINDS, [0.1, 0.2, 0.3, 0.38, 0.6, 0.78], 0.97),
        ([0.5], [0.01], 1.0),
    ],
    ids=["half to three in ten", "good to middling", "many kinds", "noise"],
)
def test_a_clear_regression_is_found_within_200_rounds(
    old: Sequence[float], new: Sequence[float], share: float
) -> None:
    """In 99 of 100 canaries, 97 where much of the work is hard or easy; and none is kept."""
    found = verdicts(1, old, new)
    assert found["worse"] >= share * NUM_CASES
    assert found["fine"] == 0


@pytest.mark.parametrize("num_before", [4000, 300], ids=["much known", "little known"])
@pytest.mark.parametrize("agreement", [[0.5], [0.05], [0.9], ALL_KINDS])
def test_an_equal_drafter_is_hardly_ever_taken_back(
    agreement: Sequence[float], num_before: int
) -> None:
    """In 2 of 100 canaries at most, however often it is judged until it is decided."""
    found = verdicts(
        2, agreement, agreement, num_before=num_before, most_rounds=2000, step=40, num_cases=150
    )
    assert found["worse"] <= 0.02 * 150
    assert found["open"] == 0


def test_a_better_drafter_is_kept_soon() -> None:
    """After the least number of rounds."""
    rng = np.random.default_rng(3)
    found = [run(rng, [0.5], [0.62], most_rounds=2000) for _ in range(100)]
    assert all(judgement.verdict == "fine" for judgement, _ in found)
    assert np.median([num_rounds for _, num_rounds in found]) == CanaryRules().least_rounds


def test_a_change_of_the_mix_is_no_change_of_the_drafter() -> None:
    """Harder work than before, of kinds that were known: the mean halves, and nothing is wrong."""
    found = verdicts(
        4,
        [0.9, 0.3],
        [0.9, 0.3],
        old_mix=[0.9, 0.1],
        new_mix=[0.1, 0.9],
        most_rounds=2000,
        step=40,
        num_cases=150,
    )
    assert found["worse"] <= 0.02 * 150
    # pooled, as if there were one kind only, it would be
    before, since = {0: Seen(4000, 4000 * 0.84)}, {0: Seen(200, 200 * 0.36)}
    assert judge(before, since).verdict == "worse"


def test_a_regression_is_found_though_the_mix_became_easier() -> None:
    """The mean stays, and the drafter is worse at everything."""
    rng = np.random.default_rng(5)
    found = [
        run(rng, [0.8, 0.3], [0.55, 0.12], old_mix=[0.2, 0.8], new_mix=[0.8, 0.2])[0]
        for _ in range(100)
    ]
    assert np.mean([each.seen.agreement for each in found]) > 0.4  # and 0.4 it was before
    assert sum(each.verdict == "worse" for each in found) >= 98


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_harder_work_of_kinds_not_seen_before_is_not_held_against_it(overlap: float) -> None:
    """With nothing to compare it with it is kept in the end; what overlaps is compared."""
    rates = [0.7, 0.25, 0.25, 0.25]
    found = verdicts(
        6,
        rates,
        rates,
        old_mix=[1.0, 0.0, 0.0, 0.0],
        new_mix=[overlap, *[(1.0 - overlap) / 3] * 3],
        most_rounds=2000,
        step=40,
        num_cases=150,
    )
    assert found["worse"] <= 0.02 * 150
    assert found["open"] == 0


def test_a_collapse_is_seen_without_anything_to_compare_with() -> None:
    """Nearly nothing right, where the old version was right in half of its rounds elsewhere."""
    since: dict[Hashable, Seen] = {"new": Seen(80, 0)}
    assert judge({"old": Seen(1000, 500)}, since).verdict == "worse"
    assert judge({}, since, elsewhere=Seen(1000, 500)).verdict == "worse"
    assert judge({}, since).verdict == "worse"
    assert judge({"old": Seen(1000, 40)}, since).verdict == "open"


def test_what_is_expected_is_of_the_same_mix() -> None:
    """The old version's agreement, weighted by the new one's rounds."""
    before: dict[Hashable, Seen] = {"a": Seen(1000, 900), "b": Seen(1000, 100)}
    found = judge(before, {"a": Seen(30, 25), "b": Seen(10, 2), "c": Seen(10, 0)})
    assert found.expected == pytest.approx((30 * 0.9 + 10 * 0.1) / 40)
    assert (found.num_comparable, found.seen) == (40, Seen(50, 27))


def test_nothing_is_decided_by_nothing() -> None:
    """Without rounds, of either, the verdict is open."""
    assert judge({}, {}).verdict == "open"
    assert judge({"a": Seen(10, 5)}, {}).verdict == "open"


@pytest.mark.parametrize(
    "wrong",
    [
        {"false_alarms": 0.0},
        {"false_passes": 1.0},
        {"shifts": ()},
        {"shifts": (0.0, 1.0)},
        {"least_rounds": 0},
        {"least_rounds": 10, "most_rounds": 9},
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    """With the value that is wrong."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CanaryRules(**wrong)  # type: ignore[arg-type]
