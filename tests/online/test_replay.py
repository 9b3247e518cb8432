"""A replay holds what may be learned from, of whom, within its bounds, across restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.caches.keys import Shelf
from paceline.caches.tombstones import Tombstone, subject_of
from paceline.errors import ConfigError
from paceline.online import replay_file
from paceline.online.passages import Passage
from paceline.online.prompts import is_held_out
from paceline.online.repeats import origin_of, without_learned
from paceline.online.replay import STATE, Replay, ReplaySettings
from sessions import NAMESPACE, Clock, settled, small_replay, turn


def fill(replay: Replay, num_sessions: int, *, tenant: str = "a", turns: int = 2) -> None:
    """Sessions of a few turns each, one after the other."""
    for number in range(num_sessions):
        name = f"{tenant}{number}"
        for each in range(turns):
            token = 1 + (number * turns + each) * 4
            replay.add(
                turn(
                    number * turns + each,
                    [token, token + 1],
                    [token + 2, token + 3],
                    tenant=tenant,
                    workload=f"w{number % 3}",
                    session=name,
                    num_before=each * 4,
                    at=100.0 + number,
                ),
                at=(number + 1, each),
            )


def everything(replay: Replay) -> list[Passage]:
    return replay.sample(10**6, np.random.default_rng(0))


def contents(passages: Iterable[Passage]) -> list[tuple[object, ...]]:
    names = ("tenant", "scope", "workload", "session", "begun_at", "finished_at")
    return sorted(
        (*(getattr(p, n) for n in names), p.token_ids.tolist(), p.is_said.tolist())
        for p in passages
    )


def test_only_what_may_be_learned_from_by_this_group_is_taken(tmp_path: Path) -> None:
    """The rest is passed over and counted by why."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    replay.add(turn(1, [1], [2], session="a", learn=False))
    replay.add(turn(2, [1], [2], session="b", drafter_group="bank"))
    replay.add(turn(3, [1], [2], session="c", drafter_group="shared"))
    replay.add(turn(4, [1], [2], session="d"))
    replay.add(turn(5, [1], [2], session="e", scope="tenant:a/adapter:sql"))
    stats = settled(replay, clock).stats()
    assert sorted(p.session for p in everything(replay)) == ["c", "d"]
    assert (stats["taken"], stats["skipped_not_learned"]) == (2, 1)
    assert (stats["skipped_other_group"], stats["skipped_adapter"]) == (1, 1)


def test_a_group_of_its_own_takes_only_its_own(tmp_path: Path) -> None:
    """The shared group's words do not reach another's drafter either."""
    replay = Replay(tmp_path, namespace=NAMESPACE, group="bank", clock=Clock())
    replay.add(turn(1, [1], [2]))
    replay.add(turn(2, [1], [2], drafter_group="bank"))
    assert replay.stats()["taken"] == 1


def test_a_session_waits_until_it_is_quiet(tmp_path: Path) -> None:
    """Turns that follow one another become one passage, not one each."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    replay.add(turn(1, [1, 2], [3], num_before=0))
    assert everything(replay) == []
    clock.now += 30
    replay.add(turn(2, [4], [5], num_before=3))
    clock.now += 40
    assert everything(replay) == []
    [passage] = everything(settled(replay, clock))
    assert passage.token_ids.tolist() == [1, 2, 3, 4, 5]


def test_requests_without_a_session_stand_alone(tmp_path: Path) -> None:
    """Each is a session of its own, and nothing waits for it."""
    replay = small_replay(tmp_path, Clock())
    replay.add(turn(1, [1, 2], [3], session=""))
    replay.add(turn(2, [4], [5], session=""))
    assert sorted(p.token_ids.tolist() for p in everything(replay)) == [[1, 2, 3], [4, 5]]
    assert replay.stats()["sessions"] == 0


def test_the_newest_are_measured_by_and_no_workload_is_left_out(tmp_path: Path) -> None:
    """Whatever sessions are called: of so many half are the newest, the rest of all by turns."""
    clock = Clock()
    replay = small_replay(tmp_path, clock, held_out_share=0.99, max_bytes=10**7)
    number = 0
    # the names of what comes last sort first
    for workload, prefix in (("old", "z"), ("older", "y"), ("new", "a")):
        for _ in range(40):
            clock.now += 10
            session = f"{prefix}{number}"
            given = {"workload": workload, "session": session, "at": clock.now}
            replay.add(turn(number, [1, 2, number], [4, 5, number], **given))
            number += 1
    settled(replay, clock)
    found = replay.held_out(12)
    assert len(found) == 12
    of_workload = Counter(it.workload for it in found)
    assert of_workload == {"new": 8, "old": 2, "older": 2}
    newest = sorted(replay.held_out(), key=lambda it: it.finished_at)[-6:]
    assert {it.session for it in newest} <= {it.session for it in found}
    assert contents(replay.held_out(10_000)) == contents(replay.held_out())


def test_held_out_sessions_are_never_learned_from(tmp_path: Path) -> None:
    """They are the same after a restart, all their turns are, and about as many as told."""
    clock = Clock()
    replay = small_replay(tmp_path, clock, held_out_share=0.2, max_bytes=10**7)
    fill(replay, 400)
    settled(replay, clock)
    learned = {p.session for p in everything(replay)}
    measured = [p.session for p in replay.held_out()]
    assert learned & set(measured) == set()
    assert learned | set(measured) == {f"a{n}" for n in range(400)}
    prompts = {f"a{n}": np.array([1 + 8 * n, 2 + 8 * n], np.int32) for n in range(400)}
    assert set(measured) == {
        name for name, its in prompts.items() if is_held_out(f"a\0{origin_of(its)}", 0.2)
    }
    assert 50 < len(set(measured)) < 110
    assert measured == sorted(measured)


def test_who_asks_the_same_is_on_the_same_side(tmp_path: Path) -> None:
    """Sessions that begin alike are one: all held out or none, however they go on."""
    clock = Clock()
    replay = small_replay(tmp_path, clock, held_out_share=0.3, max_bytes=10**7)
    for number in range(200):
        kind, session = number % 20, f"s{number}"
        first = turn(2 * number, [7, 8, 9, kind], [50 + kind], session=session, num_before=0)
        replay.add(first)
        read = [1000 + number]
        replay.add(turn(2 * number + 1, read, [2000 + number], session=session, num_before=5))
    settled(replay, clock)
    learned, measured = ({it.conversation for it in pool} for pool in replay._pools)
    assert not learned & measured
    assert len(learned | measured) == 20
    assert 2 <= len(measured) <= 12
    assert replay.stats()["held_out_sessions"] == len(measured)
    assert sum(len(pool) for pool in replay._pools) == 200


def test_what_goes_on_after_its_beginning_is_forgotten_stays_on_its_side(tmp_path: Path) -> None:
    """A session for which there was no room is known again by its passages, also after a restart;
    one of which nothing is held goes by its name."""
    clock = Clock()
    told = {"held_out_share": 0.5, "max_bytes": 10**7}
    replay = small_replay(tmp_path, clock, **told)
    for number in range(40):
        given = {"session": f"s{number}", "num_before": 0}
        replay.add(turn(number, [1, number], [2, number], **given))  # type: ignore[arg-type]
    settled(replay, clock)
    for name in list(replay._sessions):
        replay._drop_session(name)
    replay.save()
    replay = small_replay(tmp_path, clock, **told)
    sides = {it.session: it.conversation for it in replay.passages()}
    for number in range(40):
        given = {"session": f"s{number}", "num_before": 4}
        replay.add(turn(100 + number, [3], [4, number], **given))  # type: ignore[arg-type]
    replay.add(turn(200, [3], [4], session="new", num_before=4))
    settled(replay, clock)
    later = {it.session: it.conversation for it in replay.passages() if it.token_ids[0] == 3}
    assert later == sides | {"new": "a\0new"}
    learned, measured = ({it.session for it in pool} for pool in replay._pools)
    assert not learned & measured
    assert len(measured) > 5


def test_what_is_learned_from_as_well_measures_nothing(tmp_path: Path) -> None:
    """Held-out passages most of whose words stand in replies that are learned from are left out."""
    clock = Clock()
    replay = small_replay(tmp_path, clock, held_out_share=0.5, max_bytes=10**7)
    for number in range(80):  # asked with a date, so that no two begin alike
        said = [40, 41, 42, 43] if number % 2 else [100 + number, 41, 42, 43]
        replay.add(turn(number, [5, 6, 300 + number], said, session=f"s{number}", num_before=0))
    settled(replay, clock)
    assert any(it.token_ids[3] == 40 for it in replay._learned)
    assert any(it.token_ids[3] == 40 for it in replay._held_out)
    measured = replay.held_out()
    assert measured
    assert {it.session for it in measured} == {
        it.session for it in replay._held_out if it.token_ids[3] != 40
    }
    assert len(replay.held_out(4)) == 4


def test_half_of_a_passage_may_be_known() -> None:
    """Words that were only read do not count, nor does where a reply stands."""
    learned = passage([1, 2, 3, 4], [False, True, True, True])
    half = passage([9, 2, 3, 4, 9, 5, 6, 7], [False, *[True] * 3, False, *[True] * 3])
    most = passage([9, 2, 3, 4, 9, 5, 6], [False, *[True] * 3, False, *[True] * 2])
    read = passage([2, 3, 4, 8], [False, False, False, True])
    assert without_learned([half, most, read], [learned]) == [half, read]
    assert without_learned([], [learned]) == []
    assert without_learned([half], []) == [half]


def passage(token_ids: list[int], is_said: list[bool]) -> Passage:
    return Passage(
        token_ids=np.array(token_ids, np.int32),
        is_said=np.array(is_said),
        tenant="a",
        scope="tenant:a",
        workload="w",
        session="s",
        begun_at=0.0,
        finished_at=0.0,
    )


def test_many_sessions_stay_within_bounds(tmp_path: Path) -> None:
    """Memory for passages, for open sessions and on disk is bounded, however many come."""
    clock = Clock()
    bounds = {"max_bytes": 100_000, "held_out_bytes": 20_000, "session_bytes": 50_000}
    replay = small_replay(tmp_path, clock, held_out_share=0.2, **bounds)
    for number in range(20):
        fill(replay, 200, tenant=f"t{number}")
        stats = replay.stats()
        assert stats["held_bytes"] <= 100_000
        assert stats["held_out_bytes"] <= 20_000
        assert stats["session_bytes"] <= 50_000
    assert stats["evicted"] > 1000
    assert stats["taken"] == 20 * 200 * 2
    assert stats["sessions"] == 50_000 // 552
    replay.save()
    assert [f.name for f in tmp_path.iterdir()] == [STATE]
    assert (tmp_path / STATE).stat().st_size < 100_000
    assert {p.tenant for p in everything(replay)} == {f"t{n}" for n in range(20)}


def test_a_restart_goes_on_where_it_stood(tmp_path: Path) -> None:
    """Passages, sessions that go on, positions and samples are what they were."""
    clock = Clock()
    told = {"held_out_share": 0.2, "recent_passages": 5, "max_bytes": 15_000}
    replay = small_replay(tmp_path, clock, **told)
    fill(replay, 60, tenant="a")
    settled(replay, clock)
    replay.add(turn(900, [1, 2], [3], session="open", num_before=0), at=(99, 0))
    assert replay.save()
    assert not replay.save()
    again = small_replay(tmp_path, clock, **told)
    assert contents(again.passages()) == contents(replay.passages())
    bars = [{key: b.bar for key, b in r._learned.buckets.items()} for r in (replay, again)]
    assert bars[0] == bars[1]
    assert min(bars[0].values()) < 1
    assert again.positions == replay.positions == {Shelf("tenant:a", "a"): (99, 0)}
    assert contents(again.held_out()) == contents(replay.held_out())
    for seed in range(3):
        one, other = (r.sample(7, np.random.default_rng(seed)) for r in (replay, again))
        assert [p.digest for p in one] == [p.digest for p in other]
    for each in (replay, again):
        each.add(turn(901, [4], [5], session="open", num_before=3), at=(99, 1))
        settled(each, clock)
    assert contents(again.passages()) == contents(replay.passages())
    assert [1, 2, 3, 4, 5] in [p.token_ids.tolist() for p in again.passages()]


def test_what_comes_while_it_is_saved_is_saved_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds one moment, and a failed saving is made up for."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    replay.add(turn(1, [1, 2], [3], session="open", num_before=0), at=(1, 0))
    write = replay_file.write

    def slow(*arguments: Any) -> None:
        replay.add(turn(2, [4], [5], session="open", num_before=3), at=(2, 0))
        write(*arguments)

    monkeypatch.setattr(replay_file, "write", slow)
    assert replay.save()
    then = small_replay(tmp_path, clock)
    assert list(then.positions.values()) == [(1, 0)]
    [passage] = everything(settled(then, clock))
    assert passage.token_ids.tolist() == [1, 2, 3]
    monkeypatch.setattr(replay_file, "write", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replay.save()
    monkeypatch.setattr(replay_file, "write", write)
    assert replay.save()
    assert list(small_replay(tmp_path, clock).positions.values()) == [(2, 0)]


def test_large_token_ids_survive(tmp_path: Path) -> None:
    """Vocabularies beyond two bytes are saved whole."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    replay.add(turn(1, [151_000], [151_643], session=""))
    replay.save()
    [passage] = everything(small_replay(tmp_path, clock))
    assert passage.token_ids.tolist() == [151_000, 151_643]


@pytest.mark.parametrize("place", [0, 2, 5, 40, -1])
def test_a_damaged_file_is_started_anew_from(tmp_path: Path, place: int) -> None:
    """A changed byte is found, counted, and nothing of the file is used; neither is half a file."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    fill(replay, 30)
    settled(replay, clock).save()
    good = (tmp_path / STATE).read_bytes()
    data = bytearray(good)
    data[place] ^= 0x40
    for damaged in (bytes(data), good[: len(good) // 2], b""):
        (tmp_path / STATE).write_bytes(damaged)
        anew = small_replay(tmp_path, clock)
        assert anew.stats()["damaged"] == 1
        assert (anew.passages(), anew.positions) == ([], {})
    fill(anew, 30)
    settled(anew, clock).save()
    assert contents(small_replay(tmp_path, clock).passages()) == contents(replay.passages())


@pytest.mark.parametrize("changed", [{"namespace": "other"}, {"group": "bank"}])
def test_another_target_starts_anew(tmp_path: Path, changed: dict[str, str]) -> None:
    """What another model or tokenizer said, or another group, is not learned from."""
    clock = Clock()
    replay = small_replay(tmp_path, clock)
    fill(replay, 3)
    replay.save()
    told = {"namespace": NAMESPACE, "group": "shared"} | changed
    other = Replay.open(tmp_path, settings=replay.settings, clock=clock, **told)
    assert other.stats()["discarded"] == 1
    assert (other.passages(), other.positions, other.stats()["sessions"]) == ([], {}, 0)
    other.save()
    assert small_replay(tmp_path, clock).stats()["discarded"] == 1


SUBJECTS = {
    "tenant": subject_of(tenant="a"),
    "scope": subject_of(scope="tenant:a"),
    "session": subject_of(tenant="a", session="a1"),
    "session of the scope": subject_of(scope="tenant:a", session="a1"),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_forgotten_is_gone_and_stays_away(tmp_path: Path, name: str) -> None:
    """Passages, held-out ones and open sessions go at once; what had begun comes too late."""
    clock = Clock()
    gone: list[Passage] = []
    replay = small_replay(tmp_path, clock, on_gone=gone.append, held_out_share=0.3)
    fill(replay, 20)
    fill(replay, 5, tenant="b")
    settled(replay, clock)
    fill(replay, 20, turns=1)  # open again
    is_session = "session" in name
    covered = {p.session for p in replay.passages() if p.tenant == "a"}
    expected = {"a1"} if is_session else covered
    num_gone = replay.forget(Tombstone(SUBJECTS[name], before=500.0))
    assert {p.session for p in gone} == expected
    assert num_gone == len(gone) == replay.stats()["forgotten"]
    settled(replay, clock)
    assert {p.session for p in replay.passages() if p.tenant == "a"} == covered - expected
    assert len({p.session for p in replay.passages() if p.tenant == "b"}) == 5
    replay.add(turn(1, [1], [2], session="a1", started_at=499.0, at=900.0))
    assert replay.stats()["skipped_forgotten"] == 1
    replay.add(turn(2, [1], [2], session="a1", started_at=501.0, at=900.0))
    settled(replay, clock).save()
    again = small_replay(tmp_path, clock, held_out_share=0.3)
    assert [p.begun_at for p in again.passages() if p.session == "a1"] == [501.0]


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    """By the tenant's retention, or by our own bound where that is shorter."""
    clock = Clock(now=0.0)
    replay = small_replay(tmp_path, clock, max_age_seconds=1000.0)
    for tenant in ("short", "long", "none"):
        for at in (100.0, 700.0):
            replay.add(turn(1, [1], [2], tenant=tenant, session=f"{at}", started_at=at, at=at))
    clock.now = 900.0
    settled(replay, clock)
    clock.now = 1000.0
    assert replay.expire({"short": 600.0, "long": 5000.0}) == 1
    clock.now = 1101.0
    assert replay.expire({"short": 600.0, "long": 5000.0}) == 2
    assert {(p.tenant, p.begun_at) for p in replay.passages()} == {
        ("short", 700.0),
        ("long", 700.0),
        ("none", 700.0),
    }
    assert replay.tenants() == {"short", "long", "none"}
    clock.now = 2000.0
    replay.expire({})
    assert replay.tenants() == set()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"passage_tokens": 1}, "passage_tokens is 1"),
        ({"context_tokens": 1024}, "give 1 to 1023"),
        ({"session_tokens": 512}, "session_tokens is 512"),
        ({"held_out_share": 1.5}, "held_out_share is 1.5"),
        ({"quiet_seconds": 0.0}, "quiet_seconds is 0.0"),
        ({"recent_passages": 0}, "recent_passages is 0"),
    ],
)
def test_settings_out_of_range_are_named(told: dict[str, float], message: str) -> None:
    """With the value and what it may be."""
    with pytest.raises(ConfigError, match=message):
        ReplaySettings(**told)  # type: ignore[arg-type]
