"""The learner on a small target: it gets better, waits its turn, and goes on where it ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from journals import open_store
from learning import answered, sessions_of, small_learner, write_models
from paceline.caches.journal_store import JournalStore
from redis_server import RedisServer
from ring_language import RingLanguage

Sessions = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a drafter that has learned nothing."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sessions(models: Path) -> Sessions:
    """What the target said to a hundred prompts of six kinds."""
    return sessions_of(models / "target", 100)


@pytest.fixture(scope="module")
def spoken(learnable: Path, language: RingLanguage) -> Sessions:
    """What the learnable target said to two hundred prompts."""
    return answered(learnable / "target", language.prompts()[:200])


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[JournalStore]:
    """The journal of the tests' model."""
    made = open_store(redis_server.url)
    with closing(made.client):
        yield made


def test_what_is_said_makes_the_drafter_better(
    learnable: Path, spoken: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """The first version is the given one; a cycle later a better one runs, as the gate says."""
    small = small_learner(learnable, tmp_path, store, cycle={"passages": 80})
    assert "0 of 5 held-out sessions are there" in small.learner.consider()
    assert small.registry.state("shared").current == 1
    small.hear(spoken[:100])
    said = small.learner.consider()
    assert said.startswith("version 2 is better"), said
    version = small.registry.version("shared", 2)
    assert (version.state, version.parent) == ("current", 1)
    assert version.gate is not None
    assert version.gate.passed
    assert version.gate.after > version.gate.before + 1
    assert version.num_tokens > 500
    events = small.learner.figures.events
    assert (events["cycles"], events["published"]) == (1, 1)
    assert "new tokens are there" in small.learner.consider()
    assert events["promoted"] == 1
    assert small.learner.figures.base == 2


def test_held_out_sessions_are_never_taught_from(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """Lessons of a cycle are of other sessions than those that judge it."""
    small = small_learner(models, tmp_path, store, cycle={"passages": 1000})
    small.hear(sessions)
    small.learner.consider()
    held_out = len(small.replay.held_out())
    assert held_out > 10
    # probed for the decision, taught for the cycle, read to judge
    num_learned = len(sessions) - held_out
    assert sum(small.taught) <= 16 + num_learned + held_out
    assert sum(small.taught) > num_learned + held_out


def test_a_stop_in_the_middle_changes_nothing(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """Interrupted anywhere, the drafter that comes out is bit by bit the same."""
    from paceline.online.looks import StoppedError

    whole = small_learner(models, tmp_path / "whole", store)
    whole.hear(sessions)
    whole.learner.consider()
    expected = whole.registry.version("shared", 2)
    for at in (200, 3000):
        looks = iter(range(1, 1_000_000))
        stop = threading.Event()

        def look(at: int = at, looks: Iterator[int] = looks, stop: Any = stop) -> None:
            if next(looks) == at:
                stop.set()

        group = f"stopped-{at}"
        first = small_learner(models, tmp_path / group, store, hook=look, stop=stop, group=group)
        first.hear(sessions)
        with pytest.raises(StoppedError):
            first.learner.consider()
        assert first.learner.figures.events["interrupted"] == 1
        num_steps = first.learner.figures.events["steps"]
        first.replay.save()
        again = small_learner(models, tmp_path / group, store, group=group)
        assert again.learner.consider().startswith("version 2")
        assert num_steps + again.learner.figures.events["steps"] == 60
        assert again.registry.version(group, 2).checksum == expected.checksum


def test_a_stop_while_it_is_judged_loses_no_training(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """The next start judges what was trained, and finds the same."""
    from paceline.online.looks import StoppedError

    told: dict[str, Any] = {"cycle": {"epochs": 1}}
    whole = small_learner(models, tmp_path / "whole", store, **told)
    whole.hear(sessions)
    whole.learner.consider()
    stop, num_looks = threading.Event(), 0

    def look() -> None:
        nonlocal num_looks
        figures = first.learner.figures
        num_looks += figures.progress == 1.0 and figures.phase == "judging"
        if num_looks == 50:
            stop.set()

    told["group"] = "stopped"
    first = small_learner(models, tmp_path / "stopped", store, hook=look, stop=stop, **told)
    first.hear(sessions)
    with pytest.raises(StoppedError):
        first.learner.consider()
    assert first.learner.figures.events["steps"] == 10
    assert not first.registry.versions("stopped")[1:]
    first.replay.save()
    again = small_learner(models, tmp_path / "stopped", store, **told)
    assert again.learner.consider().startswith("version 2")
    assert again.learner.figures.events["steps"] == 0
    expected = whole.registry.version("shared", 2)
    found = again.registry.version("stopped", 2)
    assert (found.checksum, found.gate) == (expected.checksum, expected.gate)
    kinds = {"teaching", "training", "replaying", "resampling", "comparing", "lessons"}
    kinds |= {"checkpoint", "loading", "writing", "checking", "publishing"}
    assert whole.learner.figures.longest.keys() == kinds


def test_who_is_forgotten_is_not_learned_from(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """A cycle with somebody's words ends at once and leaves nothing; the next one has none."""
    looks = 0

    def forget() -> None:
        nonlocal looks
        looks += 1
        if looks == 2000:
            small.learner.forget()

    small = small_learner(models, tmp_path, store, hook=forget)
    small.hear(sessions)
    assert "forgotten" in small.learner.consider()
    assert small.learner.figures.events["dropped"] == 1
    assert not (tmp_path / "data" / "cycle").exists()
    assert small.registry.state("shared").current == 1
    small.hear(sessions, first=1000)
    assert small.learner.consider().startswith("version 2")


def test_nothing_is_learned_that_nobody_could_judge(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """With too few held-out sessions no cycle begins, however much is said."""
    small = small_learner(models, tmp_path, store, gate={"min_sessions": 90})
    small.hear(sessions)
    assert "of 90 held-out sessions are there" in small.learner.consider()
    assert small.taught == []


def test_what_is_not_better_is_rejected(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """The version is there, for people to see, and the learner waits for twice the traffic."""
    still = {"learning_rate": 1e-9, "epochs": 1}
    small = small_learner(models, tmp_path, store, cycle=still)
    small.hear(sessions)
    assert "version 2 is not better" in small.learner.consider()
    assert small.registry.version("shared", 2).state == "rejected"
    assert small.registry.state("shared").current == 1
    assert "of 200 new tokens" in small.learner.consider()


def test_what_seemed_better_is_gone_on_from(
    learnable: Path, spoken: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """Where the gate is not sure yet the next cycle adds to what the last one has learned."""
    unsure = {"confidence": 0.9999999}
    cycle = {"passages": 80, "epochs": 4}
    small = small_learner(learnable, tmp_path, store, gate=unsure, cycle=cycle)
    small.hear(spoken[:100])
    assert "version 2 is not better" in small.learner.consider()
    small.hear(spoken[100:], first=1000)
    assert "version 3 is not better" in small.learner.consider()
    second, third = (small.registry.version("shared", number) for number in (2, 3))
    assert (second.parent, third.parent) == (1, 1)
    assert third.num_tokens > 1.5 * second.num_tokens
    assert second.gate is not None
    assert third.gate is not None
    assert second.gate.after > second.gate.before + 0.5
    assert third.gate.after > second.gate.after + 0.2


def test_a_candidate_is_waited_for(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """While engines try one nothing is trained; taken back, it counts as a failure."""
    small = small_learner(models, tmp_path, store, judging={"canary": True})
    small.hear(sessions)
    small.learner.consider()
    assert small.registry.version("shared", 2).state == "candidate"
    assert "version 2 is being tried (candidate)" in small.learner.consider()
    assert small.registry.begin_canary("shared", 2, "one")
    assert "(canary)" in small.learner.consider()
    small.registry.roll_back("shared", reason="worse live")
    assert "of 200 new tokens" in small.learner.consider()
    assert small.learner.figures.events["rolled_back"] == 1
    small.replay.save()
    again = small_learner(models, tmp_path, store, judging={"canary": True})
    assert "of 200 new tokens" in again.learner.consider()


def test_a_change_of_traffic_is_not_waited_out(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """However long it would wait after cycles that came to nothing, if all stayed as it is."""
    small = small_learner(models, tmp_path, store, cycle={"min_new_tokens": 1000})
    small.hear(sessions)
    assert small.learner.consider().startswith("version 2 is better")
    small.learner.consider()
    small.learner._notes.patience = 8
    small.hear(sessions, first=1000)
    assert "of 8,000 new tokens are there, much like those before" in small.learner.consider()
    taught = sum(small.taught)
    assert "of 8,000 new tokens are there" in small.learner.consider()
    assert sum(small.taught) == taught, "it looks again after as many tokens only"
    small.hear(sessions_of(models / "target", 100, seed=1), first=2000)
    said = small.learner.consider()
    assert said.startswith("version 3"), said
    assert small.learner.figures.events["cycles"] == 2


def test_a_change_is_told_once(
    models: Path,
    sessions: Sessions,
    store: JournalStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever goes on as it has become is waited for as ever, also after a restart."""
    caplog.set_level("INFO", logger="paceline.learner")
    settings = {"min_new_tokens": 1000, "learning_rate": 1e-9, "epochs": 1}
    drafter = str(models / "target")  # all it says is accepted, so that a change can be told
    small = small_learner(models, tmp_path, store, cycle=settings, drafter=drafter)
    small.learner._notes.patience = 8
    small.hear(sessions)
    assert "much like those before" in small.learner.consider()
    turned = [(read, said[::-1]) for read, said in sessions_of(models / "target", 300, seed=1)]
    small.hear(turned[:100], first=1000)
    assert "version 2 is not better" in small.learner.consider()
    assert caplog.text.count("the traffic has changed") == 1
    assert "of 2,000 new tokens" in small.learner.consider(), "patience has begun anew"
    small.replay.save()
    again = small_learner(models, tmp_path, store, cycle=settings, drafter=drafter)
    again.learner._notes.patience = 8
    for number in (1, 2):
        again.hear(turned[100 * number : 100 * number + 100], first=1000 * (number + 1))
        assert "are there, much like those before" in again.learner.consider()
    assert caplog.text.count("the traffic has changed") == 1


def test_nothing_begins_where_nobody_is_served(
    models: Path, sessions: Sessions, store: JournalStore, tmp_path: Path
) -> None:
    """An update that saves no time is not worth idle time either."""
    small = small_learner(models, tmp_path, store, cycle={"horizon_seconds": 0.0})
    small.hear(sessions)
    assert "not more than" in small.learner.consider()
    assert small.learner.figures.events["not_worthwhile"] == 1
    assert small.learner.figures.events["cycles"] == 0
