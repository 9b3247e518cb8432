"""One set of guarantees for every policy, and what each one adds."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    Bandit,
    DiscountedLinUCB,
    DiscountedUCB,
    Exp3S,
    Outcome,
    Policy,
    PolicyContext,
    Steady,
    ThompsonSampling,
    decode_state,
    default_arms,
    default_policy,
)
from paceline.policies.bandits.outcome import Baseline
from paceline.policies.bandits.state import STATE_VERSION, encode_state

ARMS = default_arms(has_model=True, caps=(2, 8))
SHORT, LONG, BOTH = Arm("memory", 2), Arm("memory", 8), Arm("both", 8)
HERE = PolicyContext.of(key="tenant:a", workload="w", num_requests=4, num_tokens=3000)
THERE = PolicyContext.of(key="tenant:b", workload="w", num_requests=4, num_tokens=3000)

BANDITS: dict[str, Callable[..., Bandit]] = {
    "thompson": ThompsonSampling,
    "ucb": DiscountedUCB,
    "exp3": Exp3S,
    "linear": DiscountedLinUCB,
}
Make = Callable[..., Policy]


def steady(bandit: Callable[..., Bandit]) -> Make:
    return lambda *arguments, **options: Steady(bandit(*arguments, **options))


POLICIES: dict[str, Make] = {
    **BANDITS,
    **{f"steady-{name}": steady(bandit) for name, bandit in BANDITS.items()},
}


@pytest.fixture(params=POLICIES)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes policies over `ARMS`, all of one kind."""
    policy = POLICIES[request.param]

    def call(seed: int = 0, drafter: str = "") -> Policy:
        return policy(ARMS, rng=random.Random(seed), drafter=drafter)  # noqa: S311  test data

    return call


def answer(
    policy: Policy,
    rates: dict[Arm, float],
    *,
    context: PolicyContext = HERE,
    num_requests: int = 100,
    seed: int = 1,
) -> Counter[Arm]:
    """Requests of two pulls each; rates are tokens a round of 0.03 s, with a tenth of noise."""
    rng = random.Random(seed)  # noqa: S311  test data
    pulled: Counter[Arm] = Counter()
    for _ in range(2 * num_requests):
        arm = policy.pull(context)
        pulled[arm] += 1
        tokens = 16 * rates[arm] * rng.uniform(0.9, 1.1)
        policy.update(context, arm, Outcome(tokens, 16 * 0.03, 16))
    return pulled


def seen_here(policy: Bandit, arm: Arm) -> float:
    """Evidence in the context itself, nothing lent."""
    return Bandit.evidence(policy, HERE, arm)


def rates_of(best: Arm, rate: float = 3.0) -> dict[Arm, float]:
    return dict.fromkeys(ARMS, 1.0) | {best: rate}


def test_the_best_arm_is_found(make: Make) -> None:
    """Three times the others' rate: most pulls of the second hundred requests are its."""
    for best in (NO_DRAFTS, LONG, BOTH):
        policy = make()
        rates = rates_of(best) if best != NO_DRAFTS else dict.fromkeys(ARMS, 0.4) | {best: 1.0}
        answer(policy, rates, num_requests=150)
        pulled = answer(policy, rates)
        assert pulled.most_common(1)[0][0] == best, (repr(policy), pulled)
        if policy.kind != "exp3":  # which never stops trying
            assert pulled[best] > 170, (repr(policy), pulled)


@pytest.mark.parametrize("name", ["thompson", "ucb"])
def test_another_best_arm_is_found_within_fifty_requests(name: str) -> None:
    """The workload changes kind under the same name; then most pulls are the new best arm's."""
    for seed in range(5):
        policy = Steady(BANDITS[name](ARMS, rng=random.Random(seed)))  # noqa: S311  test data
        answer(policy, rates_of(LONG), num_requests=200, seed=seed)
        for best in (BOTH, SHORT):
            answer(policy, rates_of(best), num_requests=50, seed=seed + 1)
            assert answer(policy, rates_of(best), num_requests=50)[best] >= 90


def test_the_same_seed_pulls_the_same(make: Make) -> None:
    """Nothing but the generator that was given is random."""
    pulled = [answer(make(seed), rates_of(LONG)) for seed in (3, 3)]
    assert pulled[0] == pulled[1]


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1e-300, 1e300, -1.0, 1.0, 16.0]),
    st.floats(0.001, 100.0),
)
outcomes = st.builds(Outcome, numbers, numbers, numbers)


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None)
@given(
    history=st.lists(
        st.tuples(st.integers(0, len(ARMS) - 1), outcomes, st.none() | outcomes), max_size=40
    )
)
def test_no_outcome_makes_a_number_that_is_none(
    name: str, history: list[tuple[int, Outcome, Outcome | None]]
) -> None:
    """Whatever is reported, states are sound and pulls are arms."""
    policy = POLICIES[name](ARMS, rng=random.Random(0))  # noqa: S311  test data
    for number, outcome, aside in history:
        assert policy.pull(HERE) in ARMS
        told = {SHORT: aside, NO_DRAFTS: aside} if aside is not None else None
        policy.update(HERE, ARMS[number], outcome, told)
    assert policy.pull(HERE) in ARMS
    decode_state(policy.state())  # refuses what is not finite or out of bounds


def test_unusable_outcomes_are_counted_and_change_nothing() -> None:
    """No time, no rounds, negative tokens, no number."""
    policy = default_policy(ARMS, rng=random.Random(0))  # noqa: S311  test data
    before = policy.state()
    for outcome in (Outcome(1, 0.0), Outcome(1, 1, 0), Outcome(-1, 1), Outcome(math.nan, 1)):
        policy.update(HERE, policy.pull(HERE), outcome)
    assert policy.num_unusable == 4
    assert policy.state() == before


def test_rewards_are_relative_to_the_rate_without_drafts() -> None:
    """Unknown, it is taken from the rounds themselves; no reward is beyond what an arm can give."""
    outcome = Outcome(num_tokens=40, seconds=0.5, num_rounds=10)
    assert outcome.reward(LONG, base_rate=20.0) == pytest.approx(4.0)
    assert outcome.reward(LONG, base_rate=0.0) == pytest.approx(4.0)
    assert Outcome(1e9, 0.001, 1).reward(SHORT, 20.0) == pytest.approx(6.0)
    assert Outcome(0, 1, 1).reward(SHORT, 20.0) == 0.0


def test_the_baseline_is_robust_and_follows() -> None:
    """One round of a hundred times the length moves it little; a lasting change is followed."""
    baseline = Baseline()
    assert baseline.rate == 0.0
    for _ in range(50):
        baseline.learn(Outcome(16, 16 * 0.03, 16))
    baseline.learn(Outcome(16, 1600 * 0.03, 16))
    assert baseline.rate == pytest.approx(1 / 0.03, rel=0.1)
    for _ in range(100):
        baseline.learn(Outcome(16, 16 * 0.06, 16))
    assert baseline.rate == pytest.approx(1 / 0.06, rel=0.1)
    before = baseline.rate
    baseline.learn(Outcome(0, 1, 1))
    assert baseline.rate == before


def test_nothing_of_one_key_reaches_another(make: Make) -> None:
    """What a tenant's drafts are worth leaves another's pulls and state as they were."""
    alone, beside = make(), make()
    for step in range(300):
        arm = alone.pull(THERE)
        assert beside.pull(THERE) == arm, f"at {step}"
        outcome = Outcome(16 + step % 7, 16 * 0.03, 16)
        alone.update(THERE, arm, outcome)
        beside.update(THERE, arm, outcome)
        loud = ARMS[step % len(ARMS)]
        beside.update(HERE, loud, Outcome(200, 16 * 0.03, 16))
    states = [
        {key.key: key for key in decode_state(policy.state()).keys} for policy in (alone, beside)
    ]
    assert msgspec.msgpack.encode(states[0]["tenant:b"]) == msgspec.msgpack.encode(
        states[1]["tenant:b"]
    )
    assert set(states[1]) == {"tenant:a", "tenant:b"}


def test_a_restart_goes_on_where_it_was(make: Make) -> None:
    """A loaded state makes the choices that were learned, and says itself again."""
    before = make()
    answer(before, rates_of(LONG), num_requests=150)
    after = make(seed=5)
    after.load(before.state())
    kept = {key.key: key.tables for key in decode_state(before.state()).keys}
    back = {key.key: key.tables for key in decode_state(after.state()).keys}
    assert kept.keys() == back.keys()
    for old, new in zip(kept["tenant:a"], back["tenant:a"], strict=True):
        assert (new.name, new.num_updates, new.rows.keys()) == (
            *(old.name, old.num_updates),
            old.rows.keys(),
        )
        for arm, row in old.rows.items():
            assert new.rows[arm] == pytest.approx(row)
    pulled = answer(after, rates_of(LONG), num_requests=50)
    assert pulled.most_common(1)[0][0] == LONG


def test_what_others_have_seen_is_used_and_never_given_on(make: Make) -> None:
    """A merged state makes its choices here, is no part of our state, and counts once."""
    teacher, pupil = make(), make(seed=5)
    answer(teacher, rates_of(LONG), num_requests=150)
    seen = decode_state(teacher.state())
    empty = pupil.state()
    for _ in range(3):
        pupil.merge({"teacher": seen})
    assert pupil.state() == empty
    pulled = answer(pupil, rates_of(LONG), num_requests=20)
    assert pulled.most_common(1)[0][0] == LONG
    assert pupil.state() != empty


@pytest.mark.parametrize("name", BANDITS)
def test_evidence_adds_up_over_replicas(name: str) -> None:
    """Two replicas and one that has seen both know as much, however often they merge."""
    a, b, c = (BANDITS[name](ARMS, rng=random.Random(0)) for _ in range(3))  # noqa: S311
    for policy in (a, b):
        for arm in ARMS:
            policy.update(HERE, arm, Outcome(20, 16 * 0.03, 16))
    c.pull(HERE)  # the context is there before the others' evidence
    expected = {arm: seen_here(a, arm) + seen_here(b, arm) for arm in ARMS}
    states = {"a": decode_state(a.state()), "b": decode_state(b.state())}
    for _ in range(2):
        c.merge(states)
    assert {arm: seen_here(c, arm) for arm in ARMS} == pytest.approx(expected)
    c.merge({"a": states["a"]})
    half = {arm: seen_here(a, arm) for arm in ARMS}
    assert {arm: seen_here(c, arm) for arm in ARMS} == pytest.approx(half)
    c.merge({})
    assert {seen_here(c, arm) for arm in ARMS} == {0.0}


def test_evidence_that_does_not_grow_goes_on_ageing() -> None:
    """A replica that is gone fades away with what is seen here, merged again or not."""
    gone = ThompsonSampling(ARMS, rng=random.Random(0))  # noqa: S311  test data
    here = ThompsonSampling(ARMS, rng=random.Random(0))  # noqa: S311  test data
    for _ in range(20):
        gone.update(HERE, LONG, Outcome(20, 16 * 0.03, 16))
    state = decode_state(gone.state())
    here.merge({"gone": state})
    before = here.evidence(HERE, LONG)
    for _ in range(400):
        here.update(HERE, SHORT, Outcome(20, 16 * 0.03, 16))
        here.merge({"gone": state})
    assert here.evidence(HERE, LONG) < 0.6 * before


def test_states_that_cannot_be_used_are_refused(make: Make) -> None:
    """Newer, broken, of another kind, or with numbers that are none: and nothing is taken in."""
    policy = make()
    before = policy.state()
    good = decode_state(before)
    other = "exp3" if policy.kind != "exp3" else "ucb"
    for bad, message in (
        (b"", "are no policy's state"),
        (b"\x93\x01\x02\x03", "are no policy's state"),
        (msgspec.msgpack.encode({"version": STATE_VERSION + 1}), "of version 2, this Paceline"),
        (msgspec.msgpack.encode({"kind": "ucb"}), "are no policy's state"),
        (encode_state(msgspec.structs.replace(good, version=0)), "cannot be"),
        (encode_state(msgspec.structs.replace(good, kind=other)), f"is of a policy '{other}'"),
    ):
        with pytest.raises(ConfigError, match=message):
            policy.load(bad)
    assert policy.state() == before
    answer(policy, rates_of(LONG), num_requests=10)
    whole = decode_state(policy.state())
    rows = whole.keys[0].tables[0].rows
    name, row = next(iter(rows.items()))
    for number in (math.nan, math.inf, -1.0):
        rows[name] = [number, *row[1:]]
        with pytest.raises(ConfigError, match="numbers that cannot be"):
            policy.load(encode_state(whole))


@given(st.binary(max_size=60))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Nothing but a state is one."""
    with pytest.raises(ConfigError):
        decode_state(data)


def test_another_drafter_is_learned_anew(make: Make) -> None:
    """A reset drops arms with a model, keeps the others, and takes no evidence of the old one."""
    policy = make(drafter="d1")
    answer(policy, rates_of(BOTH), num_requests=100)
    old = decode_state(policy.state())
    policy.reset("d2")
    state = decode_state(policy.state())
    assert state.drafter == "d2"
    seen = {name for key in state.keys for table in key.tables for name in table.rows}
    assert not {name for name in seen if Arm.parse(name).has_model}
    assert NO_DRAFTS.name in seen
    other = make(drafter="d2")
    other.merge({"old": old})
    other.load(encode_state(old))
    loaded = decode_state(other.state())
    seen = {name for key in loaded.keys for table in key.tables for name in table.rows}
    assert seen
    assert not {name for name in seen if Arm.parse(name).has_model}


def test_a_forgotten_key_is_gone(make: Make) -> None:
    """Its evidence, what others had seen of it, and what it was held to."""
    policy = make()
    answer(policy, rates_of(LONG))
    answer(policy, rates_of(LONG), context=THERE)
    policy.merge({"other": decode_state(policy.state())})
    policy.forget("tenant:a")
    assert [key.key for key in decode_state(policy.state()).keys] == ["tenant:b"]
    fresh = make()
    policy.forget("tenant:b")
    assert policy.state() == fresh.state()


def test_unknown_arms_are_refused(make: Make) -> None:
    """The message names the arm and what there is."""
    policy = make()
    with pytest.raises(ConfigError, match="memory-7 is none of this policy's arms; they are none"):
        policy.update(HERE, Arm("memory", 7), Outcome(1, 1))


def test_names_without_end_are_bounded(make: Make) -> None:
    """Clients name workloads: the least recently used contexts and keys go."""
    policy = make()
    for number in range(1500):
        context = PolicyContext.of(key="tenant:a", workload=f"w{number}")
        policy.update(context, policy.pull(context), Outcome(16, 0.5, 16))
    for number in range(1200):
        context = PolicyContext.of(key=number)
        policy.update(context, policy.pull(context), Outcome(16, 0.5, 16))
    state = decode_state(policy.state())
    assert len(state.keys) <= 1024
    assert all(len(key.tables) <= 4 * 512 for key in state.keys)


@pytest.mark.parametrize("name", ["thompson", "ucb", "linear"])
def test_what_is_known_aside_is_learned(name: str) -> None:
    """Shorter drafts and none are known from the long one, without having been pulled."""
    policy = BANDITS[name](ARMS, rng=random.Random(0))  # noqa: S311  test data
    told = {SHORT: Outcome(30, 0.48, 16), NO_DRAFTS: Outcome(16, 0.48, 16)}
    for _ in range(30):
        policy.update(HERE, LONG, Outcome(20, 0.48, 16), told)
    assert policy.evidence(HERE, SHORT) == pytest.approx(policy.evidence(HERE, LONG))
    assert policy.evidence(HERE, BOTH) == 0.0
    pulled = Counter(policy.pull(HERE) for _ in range(50))
    assert pulled[SHORT] > pulled[LONG]


def test_a_new_context_starts_from_wider_ones() -> None:
    """A length never seen, and a workload never seen, begin with what is known at that load."""
    policy = DiscountedUCB(ARMS, rng=random.Random(0))  # noqa: S311  test data
    answer(policy, rates_of(LONG), num_requests=150)
    longer = PolicyContext.of(key="tenant:a", workload="w", num_requests=4, num_tokens=60_000)
    other = PolicyContext.of(key="tenant:a", workload="x", num_requests=4, num_tokens=3000)
    for context in (longer, other):
        assert policy.pull(context) == LONG
        assert policy.evidence(context, LONG) > 0
    loaded = PolicyContext.of(key="tenant:a", workload="w", num_requests=128, num_tokens=3000)
    assert policy.evidence(loaded, LONG) == 0


def test_a_line_carries_over_to_loads_not_seen() -> None:
    """Where drafts pay the less the more requests there are, none are pulled beyond."""
    policy = DiscountedLinUCB([LONG], rng=random.Random(0), explore=0.05)  # noqa: S311
    for _ in range(60):
        for batch in (1, 4, 16):
            context = PolicyContext.of(key="k", num_requests=batch)
            tokens = 16 * (2.0 - 0.22 * math.log2(batch))
            policy.update(context, LONG, Outcome(tokens, 0.48, 16))
            policy.update(context, NO_DRAFTS, Outcome(16, 0.48, 16))
    assert policy.pull(PolicyContext.of(key="k", num_requests=2)) == LONG
    assert policy.pull(PolicyContext.of(key="k", num_requests=256)) == NO_DRAFTS


def test_an_arm_stays_for_its_rounds() -> None:
    """Within them no pull is another, and what comes of them is taught as one."""
    bandit = ThompsonSampling(ARMS, rng=random.Random(0))  # noqa: S311  test data
    policy = Steady(bandit, hold_rounds=32, burn_in=0)
    first = policy.pull(HERE)
    while policy.pull(HERE) == first:  # the first time is shorter, as contexts are staggered
        policy.update(HERE, first, Outcome(2, 0.03))
    second = policy.pull(HERE)
    evidence = bandit.evidence(HERE, first)
    for _ in range(31):
        policy.update(HERE, second, Outcome(2, 0.03))
        assert policy.pull(HERE) == second
        assert bandit.evidence(HERE, first) == evidence
    policy.update(HERE, second, Outcome(2, 0.03))
    policy.pull(HERE)
    assert bandit.evidence(HERE, second) > 1.9


def test_burn_in_sees_every_arm_first() -> None:
    """No drafts, then the longest drafts, each until it is known enough."""
    policy = Steady(DiscountedUCB(ARMS, rng=random.Random(0)), burn_in=0.9)  # noqa: S311
    pulled = [policy.pull(HERE)]
    while len(pulled) < len(ARMS):
        policy.update(HERE, pulled[-1], Outcome(40, 0.48, 16))
        pulled.append(policy.pull(HERE))
    assert set(pulled) == set(ARMS)
    assert pulled[0] == NO_DRAFTS
    assert [arm.max_tokens for arm in pulled[1:]] == [8, 8, 2, 2]


@pytest.mark.parametrize("name", ["thompson", "ucb", "linear"])
def test_a_margin_keeps_an_arm(name: str) -> None:
    """An arm is left for one that is better by the margin, and for no other."""
    bandit = BANDITS[name](ARMS, rng=random.Random(0))  # noqa: S311  test data
    for _ in range(100):
        for arm in ARMS:
            tokens = {LONG: 21, SHORT: 20}.get(arm, 16)
            bandit.update(HERE, arm, Outcome(tokens, 0.48, 16))
    margins = [bandit.choose(HERE, SHORT, margin=margin) for margin in (0.0, 0.5)]
    assert margins == [LONG, SHORT]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 0.0}, "discount is 0.0; give more than 0"),
        ({"explore": -1.0}, "explore is -1.0"),
        ({"change_threshold": 0.0}, "change_threshold is 0.0"),
        ({"trial_share": 2.0}, "trial_share is 2.0"),
    ],
)
def test_bad_settings_are_named(options: dict[str, float], message: str) -> None:
    """Value and limit."""
    with pytest.raises(ConfigError, match=message):
        ThompsonSampling(ARMS, rng=random.Random(0), **options)  # noqa: S311


def test_bad_settings_of_other_kinds_are_named() -> None:
    """Value and limit."""
    rng = random.Random(0)  # noqa: S311  test data
    with pytest.raises(ConfigError, match=r"explore is 0.0; give more than 0"):
        Exp3S(ARMS, rng=rng, explore=0.0)
    with pytest.raises(ConfigError, match=r"share is 2.0"):
        Exp3S(ARMS, rng=rng, share=2.0)
    with pytest.raises(ConfigError, match=r"explore is inf"):
        DiscountedLinUCB(ARMS, rng=rng, explore=math.inf)
    bandit = ThompsonSampling(ARMS, rng=rng)
    with pytest.raises(ConfigError, match="hold_rounds is 0"):
        Steady(bandit, hold_rounds=0)
    with pytest.raises(ConfigError, match="margin is -1"):
        Steady(bandit, margin=-1)


def test_the_default_has_a_model_where_there_is_a_drafter() -> None:
    """And says what it is."""
    rng = random.Random(0)  # noqa: S311  test data
    assert {arm.sources for arm in default_policy(rng=rng).arms} == {"none", "memory"}
    policy = default_policy(rng=rng, drafter="d1")
    assert {arm.sources for arm in policy.arms} == {"none", "memory", "both"}
    assert repr(policy).startswith("Steady(DiscountedUCB(9 arms")
