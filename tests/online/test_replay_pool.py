"""What is kept to learn from is bounded, fair, and a uniform sample of the past."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from paceline.online.passages import Passage
from paceline.online.replay_pool import MAX_WORKLOADS, BucketKey, Pool

SIZE = 100


def passage(number: int, tenant: str = "a", workload: str = "w", num_tokens: int = SIZE) -> Passage:
    is_said = np.zeros(num_tokens, np.bool_)
    is_said[1:] = True
    return Passage(
        token_ids=np.full(num_tokens, number, np.int32),
        is_said=is_said,
        tenant=tenant,
        scope=f"tenant:{tenant}",
        workload=workload,
        session=f"s{number}",
        begun_at=float(number),
        finished_at=float(number),
    )


ONE = passage(0).num_bytes


def pool(num: int, *, max_recent: int = 10, recent_share: float = 0.5) -> Pool:
    return Pool(num * ONE, max_recent=max_recent, recent_share=recent_share)


def check(held: Pool) -> None:
    """All counts are what they count."""
    everything = list(held)
    assert held.num_bytes == sum(p.num_bytes for p in everything)
    assert held.num_said == sum(p.num_said for p in everything)
    for bucket in held.buckets.values():
        assert bucket.num_bytes == sum(p.num_bytes for p in bucket)
        assert bucket.num_recent_bytes == sum(p.num_bytes for p in bucket.recent)


def test_the_bound_holds_and_the_newest_stay() -> None:
    """However many come; what goes is told, once."""
    held, gone = pool(40), []
    for number in range(500):
        gone += held.add(passage(number))
        assert held.num_bytes <= 40 * ONE
    check(held)
    kept = sorted(int(p.token_ids[0]) for p in held)
    assert kept[-10:] == list(range(490, 500))
    assert sorted([*kept, *(int(p.token_ids[0]) for p in gone)]) == list(range(500))


def test_what_is_older_is_a_uniform_sample() -> None:
    """Each passage that ever left the newest has the same chance to be held, early or late."""
    counts: Counter[int] = Counter()
    for start in range(300):
        held = pool(30)
        for number in range(200):
            held.add(passage(number + 1000 * start))
        [bucket] = held.buckets.values()
        counts.update(int(p.token_ids[0]) % 1000 // 19 for _, _, p in bucket.kept)
    found = np.array([counts[i] for i in range(10)], np.float64)  # 190 of 200 have left
    expected = found.sum() / 10
    assert found.sum() == 300 * 20
    # chi-squared of 9 degrees: beyond 27.9 once in a thousand
    assert float(((found - expected) ** 2 / expected).sum()) < 27.9


def test_a_sample_that_has_been_smaller_stays_uniform() -> None:
    """Room that comes back is not filled with late passages only."""
    early = late = 0
    for start in range(200):
        held = pool(50)
        for number in range(100):
            held.add(passage(number + 1000 * start))
            held.add(passage(number + 1000 * start, "b"))
        held.remove(lambda p: p.tenant == "b")
        for number in range(100, 200):
            held.add(passage(number + 1000 * start))
        [bucket] = held.buckets.values()
        places = [int(p.token_ids[0]) % 1000 for _, _, p in bucket.kept]
        early += sum(place < 95 for place in places)
        late += sum(95 <= place < 190 for place in places)
    assert 0.45 < early / (early + late) < 0.55


def test_a_small_tenant_keeps_all_it_has() -> None:
    """Who needs less than an equal share is not crowded out, whatever names others invent."""
    held = pool(60)
    for number in range(10):
        held.add(passage(number, "small"))
    for number in range(1000):
        held.add(passage(number, "large", f"w{number % 30}"))
    for number in range(1000):
        held.add(passage(number, "greedy"))
    sizes = Counter(p.tenant for p in held)
    assert sizes["small"] == 10
    assert abs(sizes["large"] - sizes["greedy"]) <= 1
    check(held)


def test_workloads_of_a_tenant_share_equally() -> None:
    """The one that holds most gives up first."""
    held = pool(40)
    for number in range(400):
        held.add(passage(number, workload="a lot"))
    for number in range(15):
        held.add(passage(number, workload="few"))
    sizes = Counter(p.workload for p in held)
    assert sizes == {"a lot": 25, "few": 15}


def test_names_without_end_take_no_room_without_end() -> None:
    """Of one tenant's workloads the least recently written to goes."""
    held = pool(10_000)
    gone = [p for n in range(MAX_WORKLOADS + 5) for p in held.add(passage(n, workload=f"w{n}"))]
    assert len(held.buckets) == MAX_WORKLOADS
    assert [p.workload for p in gone] == [f"w{n}" for n in range(5)]
    check(held)


def test_removed_passages_are_gone_and_counted() -> None:
    """Newest and older alike, and an empty bucket with them."""
    held = pool(100)
    for number in range(50):
        held.add(passage(number, "ab"[number % 2]))
    gone = held.remove(lambda p: p.tenant == "a")
    assert len(gone) == 25
    assert {p.tenant for p in held} == {"b"}
    assert list(held.buckets) == [BucketKey("b", "w")]
    check(held)


def sample(held: Pool, num: int, seed: int, temper: float = 0.5, mix: float = 0.5) -> list[Passage]:
    return held.sample(num, np.random.default_rng(seed), temper=temper, recent_mix=mix)


def test_a_sample_depends_on_its_seed_alone() -> None:
    """The same seed gives the same passages, another one others, none twice."""
    held = pool(200)
    for number in range(150):
        held.add(passage(number, "abc"[number % 3]))
    first, again, other = (sample(held, 40, seed) for seed in (1, 1, 2))
    assert [p.digest for p in first] == [p.digest for p in again]
    assert [p.digest for p in first] != [p.digest for p in other]
    assert len({p.digest for p in first}) == 40
    assert len({p.digest for p in sample(held, 1000, 3)}) == 150


@pytest.mark.parametrize(("temper", "low", "high"), [(1.0, 0.86, 0.94), (0.0, 0.44, 0.56)])
def test_workloads_come_by_a_tempered_share(temper: float, low: float, high: float) -> None:
    """With 1 as their tokens are, with 0 alike."""
    held = pool(10_000, max_recent=1000)
    for number in range(2000):
        held.add(passage(number, workload="few" if number % 10 == 0 else "many"))
    found = [p.workload for seed in range(20) for p in sample(held, 50, seed, temper)]
    assert low < found.count("many") / len(found) < high


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_recent_ones_come_as_often_as_told(mix: float) -> None:
    """By the setting, whatever there is more of."""
    held = pool(500, max_recent=50)
    for number in range(500):
        held.add(passage(number))
    found = [p.begun_at >= 450 for seed in range(40) for p in sample(held, 25, seed, mix=mix)]
    assert abs(sum(found) / len(found) - mix) < 0.06
