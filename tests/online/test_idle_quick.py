"""The gate closes with the first request and opens a moment after the last, without asking."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from idle_doors import Doors
from paceline.load_file import EngineFiles, EngineLoad
from paceline.online.idle import LOOKS_AGAIN, IdleGate, IdleSettings
from paceline.online.idle_time import Spell
from paceline.online.learner_settings import LearnerSettings, LoadSettings
from paceline.online.load_sources import ToldLoad
from paceline.online.looks import Looks
from paceline.online.service import quick_sources
from sessions import Clock
from waiting import wait_until


class Told:
    """A quick source that is as loaded as it is told."""

    name = "told"

    def __init__(self) -> None:
        self.now = 0.0
        self.num_read = self.num_found = 0

    def load(self) -> float:
        self.num_read += 1
        return self.now

    def busy_since(self) -> float | None:
        return 5.0 if self.now else None

    def find(self) -> None:
        self.num_found += 1


class Asked:
    """A source that has to be asked, and can be behind."""

    name = "asked"

    def __init__(self) -> None:
        self.loads = [0.0]
        self.num_asked = 0

    def load(self) -> float:
        self.num_asked += 1
        return self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]


class Gate:
    """A gate by a clock that is moved by hand, open to begin with."""

    def __init__(self, **settings: float) -> None:
        self.clock, self.told, self.asked = Clock(), Told(), Asked()
        self.gate = IdleGate(
            [self.asked], IdleSettings(**settings), quick=[self.told], clock=self.clock
        )
        self.gate.look()
        self.glance(10.0)
        assert self.gate.is_open()

    def glance(self, seconds: float = 0.0) -> bool:
        self.clock.now += seconds
        self.gate.glance()
        return self.gate.is_open()


ONE = 1 / 8


def test_one_request_closes_it_at_once_and_without_a_look() -> None:
    """By the defaults; whoever asks the gate next hears of it."""
    it = Gate()
    it.told.now = ONE
    assert not it.gate.is_open()
    assert (it.asked.num_asked, it.gate.busy_since()) == (1, 5.0)
    assert not it.glance()
    assert (it.gate.stats().load, it.gate.stats().source) == (ONE, "told")
    assert it.gate.stats().num_pauses == 1


def test_it_opens_so_long_after_the_last_request() -> None:
    """Counted from its end, at which the others are asked, once."""
    it = Gate(open_after_seconds=2.0)
    it.told.now = ONE
    it.glance(1.0)
    assert it.asked.num_asked == 1
    it.told.now = 0.0
    found = [it.glance(0.5) for _ in range(5)]
    assert found == [False] * 4 + [True]
    assert it.asked.num_asked == 2
    assert it.gate.busy_since() is None


def test_quiet_that_is_broken_is_counted_anew_also_between_glances() -> None:
    """Somebody was refused for a request that no glance has seen: quiet begins behind it."""
    it = Gate(open_after_seconds=2.0)
    it.told.now = ONE
    assert not it.gate.is_open()
    it.told.now = 0.0
    assert [it.glance(1.0) for _ in range(3)] == [False, False, True]
    assert it.gate.stats().num_pauses == 1
    it.told.now = ONE
    it.glance(1.0)
    it.told.now = 0.0
    it.glance(1.0)
    it.told.now = ONE
    it.glance(1.0)
    it.told.now = 0.0
    assert [it.glance(1.0) for _ in range(3)] == [False, False, True]


def test_an_engine_whose_metrics_are_behind_is_asked_again() -> None:
    """A few times; one that stays loaded keeps the gate closed, and is asked as ever then."""
    it = Gate(open_after_seconds=0.0)
    it.told.now = ONE
    it.glance(1.0)
    it.told.now, it.asked.loads = 0.0, [ONE, ONE, 0.0]
    assert [it.glance(0.1) for _ in range(3)] == [False, False, True]
    assert it.asked.num_asked == 4
    it.told.now = ONE
    it.glance(1.0)
    it.told.now, it.asked.loads = 0.0, [ONE]
    assert not any(it.glance(0.1) for _ in range(10))
    assert it.asked.num_asked == 4 + LOOKS_AGAIN
    it.asked.loads = [0.0]
    it.gate.look()
    assert it.gate.is_open()


def test_quiet_of_others_is_not_counted_from_an_old_end() -> None:
    """What was loaded when the last request had ended has to be quiet for as long itself."""
    it = Gate(open_after_seconds=2.0)
    it.told.now = ONE
    it.glance(1.0)
    it.told.now, it.asked.loads = 0.0, [0.9]
    it.glance(1.0)
    it.glance(50.0)
    it.asked.loads = [0.0]
    it.gate.look()
    assert [it.glance(1.0) for _ in range(2)] == [False, True]


def test_time_is_told_by_what_quick_sources_say() -> None:
    """A level changes with the glance that sees it, not with the next look."""
    it = Gate(open_after_seconds=1.0)
    it.gate.note("training")
    before = it.gate.stats().spells
    it.glance(4.0)
    for load, seconds in ((ONE, 0.0), (ONE, 3.0), (0.0, 0.0), (0.0, 1.0), (0.11, 0.0), (0.0, 5.0)):
        it.told.now = load
        it.glance(seconds)
    found = {it_: its - before.get(it_, 0.0) for it_, its in it.gate.stats().spells.items()}
    assert {spell: seconds for spell, seconds in found.items() if seconds} == {
        Spell("idle", True, "training"): 4.0,
        Spell("full", False, "training"): 3.0,
        Spell("idle", False, "training"): 1.0,
        Spell("some", True, "training"): 5.0,
    }


def test_engines_are_not_asked_while_they_tell_of_requests() -> None:
    """By the gate's own thread: many glances, and no look until the request has ended."""
    told, asked = Told(), Asked()
    settings = IdleSettings(open_after_seconds=0.0, look_seconds=0.001)
    with IdleGate([asked], settings, quick=[told]) as gate:
        assert gate.wait_until_open(threading.Event())
        told.now = ONE
        wait_until(lambda: gate.stats().load == ONE)
        before, read = asked.num_asked, told.num_read
        wait_until(lambda: told.num_read > read + 20)
        assert asked.num_asked == before
        told.now = 0.0
        assert gate.wait_until_open(threading.Event())
        assert asked.num_asked > before
        wait_until(lambda: told.num_found > 1)


def test_files_of_engines_close_the_gate(tmp_path: Path) -> None:
    """Found while the gate runs, as they come; without any it is as it was."""
    settings = IdleSettings(open_after_seconds=0.0, look_seconds=0.01)
    files = EngineFiles(tmp_path)
    with IdleGate([Asked()], settings, quick=[ToldLoad(files)]) as gate:
        assert gate.wait_until_open(threading.Event())
        load = EngineLoad(tmp_path)
        load.begin("a")
        wait_until(lambda: not gate.is_open())
        stats = gate.stats()
        assert gate.busy_since() is not None
        load.end("a")
        assert gate.wait_until_open(threading.Event())
        load.begin("b")
        assert not gate.is_open()
        load.close()
        assert gate.wait_until_open(threading.Event())
    assert stats.num_unknown == 0
    files.close()


def test_parts_that_went_on_beside_a_request_are_timed() -> None:
    """From its beginning, or the part's where that came later; not what waits anyway."""
    clock = Clock(0.0)

    class Busy(Doors):
        def busy_since(self) -> float | None:
            return since

    looks = Looks(Busy(2, 3, 4, 6), threading.Event(), clock=clock)
    with looks.running("training"):
        since: float | None = 1.5
        clock.now = 2.0
        looks.pause()
        clock.now = 5.0
        looks.rest()
        clock.now = 6.0
        assert not looks.may_go_on()
        since = None
        clock.now = 20.0
        looks.pause()  # open
        looks.pause()  # closed, nobody says since when
    assert looks.reactions == (3, 0.5 + 3.0 + 1.0, 3.0)


@pytest.mark.parametrize(
    ("told", "num"),
    [
        (LoadSettings(engines=("http://e:1",)), 1),
        (LoadSettings(engines=("http://e:1",), files=False), 0),
        (LoadSettings(gpus=(0,)), 0),
    ],
)
def test_files_count_where_requests_do(told: LoadSettings, num: int, tmp_path: Path) -> None:
    """Beside engines, unless they are switched off; requests are a load as metrics' are."""
    settings = LearnerSettings(
        redis_url="r", registry=str(tmp_path), data="d", model="m", target="t", load=told
    )
    load = EngineLoad(tmp_path)
    load.begin("a")
    files = EngineFiles(tmp_path)
    files.find()
    assert [source.load() for source in quick_sources(settings, files)] == [ONE] * num
    load.close()
    files.close()


def test_the_clock_of_files_is_the_looks(tmp_path: Path) -> None:
    """Reactions are told in `time.monotonic` by default, as engines tell their beginnings."""
    load, files = EngineLoad(tmp_path), EngineFiles(tmp_path)
    settings = IdleSettings(open_after_seconds=0.0)
    gate = IdleGate([], settings, quick=[ToldLoad(files)])
    files.find()
    gate.look()
    looks = Looks(gate, threading.Event())
    began = time.monotonic()
    with looks.running("training"):
        load.begin("a")
        assert not looks.may_go_on()
    assert looks.reactions.num == 1
    assert 0 <= looks.reactions.longest_seconds <= time.monotonic() - began
    load.close()
    files.close()
