"""When the machine has time to spare: the gate that learning waits at.

Sources say how loaded something is, 0 for idle, about 1 for full. The gate asks them in a thread of
its own and opens while the most loaded is below one mark; above a higher one it closes.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import msgspec

from paceline.errors import ConfigError
from paceline.online.idle_time import WAITING as NOTHING_TO_DO
from paceline.online.idle_time import IdleTime, Level, Spell

logger = logging.getLogger("paceline.idle")

PROBE_SECONDS: Final = 1.0
STALE_SECONDS: Final = 10.0
MAX_METRICS_BYTES: Final = 8_388_608
RUNNING: Final = ("vllm:num_requests_running", "paceline_engine_running")
WAITING: Final = ("vllm:num_requests_waiting", "paceline_engine_waiting")
"""Gauges of vLLM, and of the embedded engine."""


class LoadSource(Protocol):
    """Something whose load counts."""

    name: str

    def load(self) -> float | None:
        """How loaded it is, >= 0; None if that cannot be told at the moment.

        Called from one thread; may take a second. What it raises counts as unknown.
        """


class ServedLoad:
    """An engine's requests: those that run by how many are full load, those that wait as full.

    Args:
        url: of the engine, without ``/metrics``: vLLM, or the embedded engine.
        full_requests: as many running ones are a load of 1.
        own: how many requests of ours the engine may have had since it was called last; these are
            no load.
        fetch: gives the text of a URL; raises OSError where it cannot.

    Raises:
        ConfigError: the URL is not one, or `full_requests` is less than 1.
    """

    def __init__(
        self,
        url: str,
        *,
        full_requests: int = 8,
        own: Callable[[], int] = lambda: 0,
        fetch: Callable[[str], str] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise ConfigError(f"{url!r} is no address of an engine; give http://HOST:PORT")
        if full_requests < 1:
            raise ConfigError(f"full_requests is {full_requests}; give 1 or more")
        self.name = f"requests at {urlsplit(url).netloc.rpartition('@')[2]}"
        self._url = f"{url.rstrip('/')}/metrics"
        self._full_requests = full_requests
        self._own = own
        self._fetch = _fetched if fetch is None else fetch

    def load(self) -> float | None:
        """See `LoadSource`; None if the engine is away or shows no such metrics."""
        try:
            text = self._fetch(self._url)
        except OSError:
            return None
        running, waiting = _gauge(text, RUNNING), _gauge(text, WAITING) or 0.0
        own = self._own()  # after the answer: whatever it counts of ours has begun by now
        if running is None:
            return None
        theirs = max(0.0, running - own)
        return theirs / self._full_requests + max(0.0, waiting - max(0.0, own - running))


class GpuLoad:
    """How much of the time a GPU has computed lately, by NVML. What learns on it counts as well.

    After an error NVML is begun anew at the next look, for a GPU that was lost or a driver that was
    reloaded; until then its load is unknown.

    Args:
        index: which GPU, in NVML's order (by PCI bus), whatever CUDA may see of them.
        nvml: the module `pynvml`; imported if None.

    Raises:
        ConfigError: NVML, its Python binding or that GPU is missing, or it does not tell (as where
            it is divided into instances).
    """

    def __init__(self, index: int = 0, *, nvml: Any = None) -> None:
        self.name = f"GPU {index}"
        self._index = index
        self._handle: Any = None
        self._is_begun = False
        try:
            self._nvml = import_module("pynvml") if nvml is None else nvml
            self.load()
        except Exception as error:  # whatever NVML raises: there is nothing to ask
            raise ConfigError(
                f"the load of GPU {index} cannot be read ({error}); install nvidia-ml-py, or leave "
                "it to the engines' requests"
            ) from error

    def load(self) -> float | None:
        """See `LoadSource`."""
        nvml = self._nvml
        try:
            if self._handle is None:
                nvml.nvmlInit()
                self._is_begun = True
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            return float(nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except Exception:
            self._end()
            raise

    def _end(self) -> None:
        self._handle = None
        if self._is_begun:
            self._is_begun = False
            with suppress(Exception):  # as broken as what brought us here
                self._nvml.nvmlShutdown()


class LoadAverage:
    """Processes that want a CPU, a core each for a load of 1, without what we use ourselves.

    Args:
        own_cores: cores that we use, to be left out; by default what this process and its ended
            children took since the last look.
        average: the system's load average over one minute.
        num_cores: of the machine; counted if None.
        cpu_seconds: CPU time of this process so far.
        clock: monotonic seconds.
    """

    name = "load average"

    def __init__(
        self,
        *,
        own_cores: Callable[[], float] | None = None,
        average: Callable[[], float] = lambda: os.getloadavg()[0],
        num_cores: int | None = None,
        cpu_seconds: Callable[[], float] = lambda: sum(os.times()[:4]),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._average = average
        self._num_cores = num_cores or os.cpu_count() or 1
        self._own_cores = own_cores or _OwnCores(cpu_seconds, clock)

    def load(self) -> float | None:
        """See `LoadSource`."""
        return max(0.0, self._average() - self._own_cores()) / self._num_cores


class _OwnCores:
    """Cores that this process uses, smoothed as the system's load average over a minute is."""

    def __init__(self, cpu_seconds: Callable[[], float], clock: Callable[[], float]) -> None:
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._seen = cpu_seconds(), clock()
        self._cores = 0.0

    def __call__(self) -> float:
        used, now = self._cpu_seconds(), self._clock()
        seconds = now - self._seen[1]
        if seconds > 0:
            kept = math.exp(-seconds / 60)
            self._cores = kept * self._cores + (1 - kept) * (used - self._seen[0]) / seconds
            self._seen = used, now
        return self._cores


class IdleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When the gate is open.

    Attributes:
        low: load below which it opens.
        high: load above which it closes at once.
        open_after_seconds: how long the load has to stay below `low` first.
        look_seconds: time between two looks.
        unknown_is_idle: what a source that cannot be asked counts as. An engine that is away has
            no requests, but is as a rule about to start or to be repaired, and has the machine
            to itself for that: it counts as full unless this says otherwise.

    Raises:
        ConfigError: a value is out of range.
    """

    low: float = 0.1
    high: float = 0.3
    open_after_seconds: float = 0.5
    look_seconds: float = 0.2
    unknown_is_idle: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ConfigError(f"low is {self.low} and high {self.high}; give 0 <= low < high")
        if self.open_after_seconds < 0 or not self.look_seconds > 0:
            raise ConfigError(
                f"open_after_seconds is {self.open_after_seconds} and look_seconds "
                f"{self.look_seconds}; give 0 or more, and more than 0"
            )


class IdleStats(NamedTuple):
    """What the gate has seen since its start.

    Attributes:
        idle_seconds: in which it was open.
        used_seconds: of them, in which somebody said to be working (`IdleGate.using`).
        busy_seconds: in which it was closed.
        num_pauses: how often it closed.
        num_unknown: looks at which a source could not be asked.
        load: of the most loaded source at the last look, infinite for one that is unknown.
        source: which that is.
        spells: all of these seconds by load, gate and what was done (`IdleGate.note`).
    """

    idle_seconds: float
    used_seconds: float
    busy_seconds: float
    num_pauses: int
    num_unknown: int
    load: float
    source: str
    spells: dict[Spell, float]

    @property
    def used_share(self) -> float:
        """Part of the idle time that was used, 0 if there was none."""
        return self.used_seconds / self.idle_seconds if self.idle_seconds else 0.0

    @property
    def busy_share(self) -> float:
        """Part of all time in which it was closed."""
        return self.busy_seconds / max(self.busy_seconds + self.idle_seconds, 1e-9)


class IdleGate:
    """Opens while all sources are idle; closed until the first look.

    Args:
        sources: whose most loaded counts; none at all is always idle.
        settings: when it opens and closes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: Sequence[LoadSource],
        settings: IdleSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = tuple(sources)
        self._settings = IdleSettings() if settings is None else settings
        self._clock = clock
        self._changed = threading.Condition()
        self._is_open = False
        self._low_since: float | None = None
        self._num_users = 0
        self._at = self._looked_at = clock()
        self._idle = self._used = self._busy = 0.0
        self._time, self._phase = IdleTime(), NOTHING_TO_DO
        self._num_pauses = self._num_unknown = 0
        self._load, self._source = math.inf, "not looked yet"
        self._away: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._look_until_stopped, name="paceline-idle", daemon=True
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop looking; the gate is closed from now on, and nobody waits at it any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        with self._changed:
            self._account()
            self._is_open = False
            self._changed.notify_all()

    def is_open(self) -> bool:
        """Whether there is time to spare; what the last look found. O(1), takes no lock.

        A look that hangs tells nothing: what was found longer than `STALE_SECONDS` ago is not
        believed.
        """
        return self._is_open and self._clock() - self._looked_at <= STALE_SECONDS

    def wait_until_open(self, stop: threading.Event) -> bool:
        """Wait for time to spare; False if `stop` was set, or the gate has been closed for good."""
        with self._changed:
            while not (self.is_open() or stop.is_set() or self._stopping.is_set()):
                self._changed.wait(self._settings.look_seconds)
            return self.is_open() and not stop.is_set()

    def note(self, phase: str) -> None:
        """Say what is done from now on, one of `paceline.online.idle_time.PHASES`."""
        with self._changed:
            self._account()
            self._phase = phase

    def using(self) -> _Use:
        """In its ``with`` block idle time counts as used."""
        return _Use(self)

    def stats(self) -> IdleStats:
        """What it has seen so far."""
        with self._changed:
            self._account()
            return IdleStats(
                idle_seconds=self._idle,
                used_seconds=self._used,
                busy_seconds=self._busy,
                num_pauses=self._num_pauses,
                num_unknown=self._num_unknown,
                load=self._load,
                source=self._source,
                spells=self._time.seconds(),
            )

    def look(self) -> None:
        """Ask all sources and open or close; what the thread does every so often."""
        found = [(self._asked(source), source.name) for source in self._sources]
        load, name = max(found, default=(0.0, "nothing"))
        with self._changed:
            self._account()
            self._looked_at = self._clock()
            self._load, self._source = load, name
            was_open = self._is_open
            self._is_open = self._decided(load)
            self._num_pauses += was_open and not self._is_open
            self._changed.notify_all()

    def _decided(self, load: float) -> bool:
        """Whether it is open after a look; with the lock held."""
        if load >= self._settings.low:
            self._low_since = None
            return self._is_open and load <= self._settings.high
        if self._low_since is None:
            self._low_since = self._clock()
        waited = self._clock() - self._low_since
        return self._is_open or waited >= self._settings.open_after_seconds

    def _asked(self, source: LoadSource) -> float:
        try:
            load = source.load()
        except Exception as error:  # noqa: BLE001  counted as unknown: the gate must not stay as it is for ever
            logger.debug("%s: %s: %s", source.name, type(error).__name__, error)
            load = None
        if load is not None and math.isfinite(load):
            self._away.discard(source.name)
            return load
        self._num_unknown += 1
        counts_as = 0.0 if self._settings.unknown_is_idle else math.inf
        if source.name not in self._away:
            self._away.add(source.name)
            logger.warning(
                "%s cannot be asked and counts as %s",
                source.name,
                "idle" if self._settings.unknown_is_idle else "full: learning waits",
            )
        return counts_as

    def _account(self) -> None:
        """Count the time since the last call for what has held since; with the lock held.

        What no look has seen, as where the process was stopped, was not open (`is_open`).
        """
        now = self._clock()
        seen_until = min(max(self._at, self._looked_at + STALE_SECONDS), now)
        self._count(seen_until - self._at, self._level(), self._is_open)
        self._count(now - seen_until, "full", False)
        self._at = now

    def _count(self, seconds: float, level: Level, is_open: bool) -> None:
        if not seconds:
            return
        self._time.add(Spell(level, is_open, self._phase), seconds)
        if not is_open:
            self._busy += seconds
            return
        self._idle += seconds
        if self._num_users:
            self._used += seconds

    def _level(self) -> Level:
        """How loaded the most loaded source was at the last look."""
        if self._load < self._settings.low:
            return "idle"
        return "some" if self._load <= self._settings.high else "full"

    def _enter(self, change: int) -> None:
        with self._changed:
            self._account()
            self._num_users += change

    def _look_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(self._settings.look_seconds)


class _Use:
    """Somebody who works in idle time."""

    def __init__(self, gate: IdleGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._enter(1)

    def __exit__(self, *_exception: object) -> None:
        self._gate._enter(-1)


def _gauge(text: str, names: Sequence[str]) -> float | None:
    """Sum of the first gauge that Prometheus's text holds, over its labels; None if none is there.

    Raises:
        ValueError: its value is no number.
    """
    for name in names:
        found = re.findall(
            rf"^{re.escape(name)}(?:\{{[^\n]*\}})?[ \t]+(\S+)", text, flags=re.MULTILINE
        )
        if found:
            return sum(float(value) for value in found)
    return None


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as response:  # noqa: S310  scheme checked
        data: bytes = response.read(MAX_METRICS_BYTES)
    return data.decode("utf-8", "replace")
