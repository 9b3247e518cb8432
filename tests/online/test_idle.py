"""The gate is open while there is time to spare, and says how much of it was used."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.errors import ConfigError
from paceline.online.idle import STALE_SECONDS, IdleGate, IdleSettings
from paceline.online.idle_time import Spell, idle_to_use
from paceline.online.load_sources import GpuLoad, LoadAverage, ServedLoad
from paceline.processes import free_port
from sessions import Clock
from waiting import wait_until


class Source:
    """As loaded as it is told."""

    def __init__(self, load: float | None = 0.0, name: str = "told") -> None:
        self.told = load
        self.name = name

    def load(self) -> float | None:
        if self.told == -1:
            raise RuntimeError("broken")
        return self.told


SETTINGS = IdleSettings(low=0.1, high=0.5, open_after_seconds=2.0)


def gate(clock: Clock, *sources: Source, settings: IdleSettings = SETTINGS) -> IdleGate:
    return IdleGate(sources, settings, clock=clock)


def look(made: IdleGate, clock: Clock, seconds: float = 1.0) -> bool:
    clock.now += seconds
    made.look()
    return made.is_open()


def test_it_opens_after_quiet_and_closes_at_once() -> None:
    """Below the low mark for a while it opens, above the high one it closes, between it stays."""
    clock, source = Clock(), Source()
    made = gate(clock, source)
    assert not made.is_open()
    assert [look(made, clock) for _ in range(3)] == [False, False, True]
    source.told = 0.4
    assert look(made, clock)
    source.told = 0.6
    assert not look(made, clock)
    source.told = 0.4
    assert [look(made, clock) for _ in range(5)] == [False] * 5
    source.told = 0.05
    assert [look(made, clock) for _ in range(3)] == [False, False, True]
    assert made.stats().num_pauses == 1


def test_quiet_that_is_broken_is_counted_anew() -> None:
    """One busy look in between, and the wait begins again."""
    clock, source = Clock(), Source()
    made = gate(clock, source)
    found = []
    for load in (0.0, 0.0, 0.2, 0.0, 0.0, 0.0):
        source.told = load
        found.append(look(made, clock))
    assert found == [False] * 5 + [True]


def test_the_most_loaded_source_counts() -> None:
    """All have to be idle."""
    clock = Clock()
    sources = Source(0.0, "one"), Source(0.2, "other")
    made = gate(clock, *sources)
    assert [look(made, clock) for _ in range(5)] == [False] * 5
    assert (made.stats().load, made.stats().source) == (0.2, "other")
    sources[1].told = 0.0
    assert [look(made, clock) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, -1])
@pytest.mark.parametrize("counts_as_idle", [False, True])
def test_what_cannot_be_asked_is_full_unless_told(
    unknown: float | None, counts_as_idle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that is away closes the gate; it is logged once, and counted each time."""
    clock, source = Clock(), Source()
    settings = IdleSettings(
        low=0.1, high=0.5, open_after_seconds=0.0, unknown_is_idle=counts_as_idle
    )
    made = gate(clock, source, settings=settings)
    assert look(made, clock)
    source.told = unknown
    assert [look(made, clock) for _ in range(3)] == [counts_as_idle] * 3
    assert made.stats().num_unknown == 3
    assert caplog.text.count("told cannot be asked") == 1
    source.told = 0.0
    assert look(made, clock)


def test_a_look_that_hangs_closes_it() -> None:
    """What was found long ago is not believed."""
    clock = Clock()
    made = gate(clock, Source(), settings=IdleSettings(open_after_seconds=0.0))
    assert look(made, clock)
    clock.now += STALE_SECONDS + 0.1
    assert not made.is_open()
    assert look(made, clock)


def test_idle_time_is_accounted_for() -> None:
    """Open, closed, and of the open time what was used, once however many use it."""
    clock, source = Clock(), Source()
    made = gate(clock, source, settings=IdleSettings(open_after_seconds=0.0))
    look(made, clock, 5)
    clock.now += 2
    with made.using(), made.using():
        clock.now += 6
        source.told = 0.9
        look(made, clock, 0)
        clock.now += 7  # goes on although it is closed: not idle time
    look(made, clock, 3)
    stats = made.stats()
    assert (stats.idle_seconds, stats.used_seconds, stats.busy_seconds) == (8.0, 6.0, 15.0)
    assert (stats.used_share, stats.num_pauses) == (0.75, 1)


def test_time_is_told_by_load_gate_and_phase() -> None:
    """Idle begins with the look that finds it, used is what work gets of it once the gate opens."""
    clock, source = Clock(), Source(0.9)
    made = gate(clock, source)
    look(made, clock)
    made.note("training")
    for load, seconds in ((0.9, 4.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.3, 5.0)):
        source.told = load
        look(made, clock, seconds)
    made.note("storing")
    source.told = 0.0
    look(made, clock, 7.0)
    clock.now += 2.0
    made.note("waiting")
    clock.now += 3.0
    spells = made.stats().spells
    assert spells == {
        Spell("full", False, "waiting"): 1.0,
        Spell("full", False, "training"): 5.0,
        Spell("idle", False, "training"): 2.0,
        Spell("idle", True, "training"): 5.0,
        Spell("some", True, "storing"): 7.0,
        Spell("idle", True, "storing"): 2.0,
        Spell("idle", True, "waiting"): 3.0,
    }
    assert idle_to_use(spells) == (9.0, 5.0)


def test_time_that_no_look_has_seen_is_not_idle() -> None:
    """As of a process that was stopped: what is told of it is that the gate was closed."""
    clock, source = Clock(), Source()
    made = gate(clock, source, settings=IdleSettings(open_after_seconds=0.0))
    look(made, clock, 1.0)
    made.note("training")
    clock.now += STALE_SECONDS + 30.0
    stats = made.stats()
    assert (stats.idle_seconds, stats.busy_seconds) == (STALE_SECONDS, 31.0)
    assert stats.spells[Spell("full", False, "training")] == 30.0


def test_who_waits_is_woken() -> None:
    """By an open gate, by the stop, and by the end of it all."""
    clock, source = Clock(), Source(0.9)
    made = gate(clock, source, settings=IdleSettings(open_after_seconds=0.0, look_seconds=0.01))
    found: list[bool] = []
    stop = threading.Event()

    def wait() -> threading.Thread:
        thread = threading.Thread(target=lambda: found.append(made.wait_until_open(stop)))
        thread.start()
        return thread

    with made:
        first = wait()
        wait_until(lambda: made.stats().load == 0.9)
        assert found == []
        source.told = 0.0
        first.join(10)
        assert found == [True]
        source.told = 0.9
        wait_until(lambda: not made.is_open())
        second = wait()
        stop.set()
        second.join(10)
        assert found == [True, False]
        stop.clear()
        third = wait()
    third.join(10)
    assert found == [True, False, False]
    assert not made.is_open()


VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
"""
EMBEDDED = """# TYPE paceline_engine_running gauge
paceline_engine_running 2
# TYPE paceline_engine_waiting gauge
paceline_engine_waiting 0
"""


@pytest.fixture
def metrics() -> Iterator[SimpleNamespace]:
    """A server that shows what it is told at /metrics."""
    shown = SimpleNamespace(text="", url="")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(shown.text.encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shown.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield shown
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (VLLM, 4 / 8 + 2),
        (EMBEDDED, 2 / 8),
        ("process_cpu_seconds_total 3\n", None),
        ("", None),
    ],
)
def test_engines_tell_how_many_requests_they_have(
    metrics: SimpleNamespace, text: str, load: float | None
) -> None:
    """VLLM over its engines, and the embedded engine; another server tells nothing."""
    metrics.text = text
    assert ServedLoad(metrics.url, full_requests=8).load() == load


def test_an_engine_that_is_away_is_unknown() -> None:
    """Nobody listens there."""
    assert ServedLoad(f"http://127.0.0.1:{free_port()}").load() is None


@pytest.mark.parametrize(
    ("running", "waiting", "own", "load"),
    [
        (1, 0, 1, 0.0),
        (0, 1, 1, 0.0),
        (3, 0, 1, 1.0),
        (1, 1, 1, 1.0),
        (0, 0, 1, 0.0),
        (2, 0, 0, 1.0),
    ],
)
def test_what_a_teacher_asks_is_not_load(running: int, waiting: int, own: int, load: float) -> None:
    """Our request is the engine's first; without that an engine of few requests would be full."""
    text = f"vllm:num_requests_running {running}.0\nvllm:num_requests_waiting {waiting}.0\n"
    source = ServedLoad("http://engine", full_requests=2, own=lambda: own, fetch=lambda _url: text)
    assert source.load() == load


def test_our_own_work_is_not_load() -> None:
    """What this process takes itself is left out of the load average, smoothed as that is."""
    clock, used = Clock(), Clock(0.0)
    source = LoadAverage(average=lambda: 1.5, num_cores=2, cpu_seconds=used, clock=clock)
    assert source.load() == 0.75
    for _ in range(20):
        clock.now += 30
        used.now += 30
        load = source.load()
    assert load == pytest.approx(0.25, abs=0.001)
    clock.now += 600
    assert source.load() == pytest.approx(0.75, abs=0.001)


def test_a_gpu_tells_how_busy_it_is() -> None:
    """By NVML's figure; where there is none the message says what to do."""
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=40 + handle),
    )
    assert GpuLoad(1, nvml=nvml).load() == 0.41
    nvml.nvmlInit = lambda: 1 / 0
    with pytest.raises(ConfigError, match="load of GPU 0 cannot be read"):
        GpuLoad(0, nvml=nvml)


@pytest.mark.parametrize("told", [{"low": 0.3}, {"low": -1.0}, {"look_seconds": 0.0}])
def test_marks_that_make_no_sense_are_refused(told: dict[str, float]) -> None:
    """The low mark lies below the high one."""
    with pytest.raises(ConfigError):
        IdleSettings(**told)  # type: ignore[arg-type]
