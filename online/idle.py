"""When the machine has time to spare: the gate that learning waits at.

Sources say how loaded something is, 0 for idle, about 1 for full. The gate asks them in a thread of
its own and opens while the most loaded is below one mark; above a higher one it closes. Quick
sources can be read at any moment: whoever asks the gate sees at once what they say.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, Self

import msgspec

from paceline.errors import ConfigError
from paceline.online.idle_time import WAITING as NOTHING_TO_DO
from paceline.online.idle_time import IdleTime, Level, Spell

logger = logging.getLogger("paceline.idle")

STALE_SECONDS: Final = 10.0
GLANCE_SECONDS: Final = 0.015
"""Between two readings of quick sources."""
FIND_SECONDS: Final = 0.5
"""Between two searches of theirs."""
LOOKS_AGAIN: Final = 3
"""Looks at other sources, a glance apart, when quick ones say that the last request has ended: an
engine's metrics can be a moment behind."""


class LoadSource(Protocol):
    """Something whose load counts."""

    name: str

    def load(self) -> float | None:
        """How loaded it is, >= 0; None if that cannot be told at the moment.

        Called from one thread; may take a second. What it raises counts as unknown.
        """


class QuickSource(Protocol):
    """Something whose load can be read at any moment."""

    name: str

    def load(self) -> float:
        """How loaded it is now, >= 0. Takes microseconds, from any thread; never raises."""

    def busy_since(self) -> float | None:
        """`time.monotonic` when the load began that it has now, None if it has none."""

    def find(self) -> None:
        """Look for what there is to read, which may take milliseconds; from one thread."""


class IdleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When the gate is open.

    Attributes:
        low: load below which it opens.
        high: load above which it closes at once. One of 8 requests is 0.125.
        open_after_seconds: how long the load has to stay below `low` first.
        look_seconds: time between two looks at sources that have to be asked.
        unknown_is_idle: what a source that cannot be asked counts as. An engine that is away has
            no requests, but is as a rule about to start or to be repaired, and has the machine
            to itself for that: it counts as full unless this says otherwise.

    Raises:
        ConfigError: a value is out of range.
    """

    low: float = 0.1
    high: float = 0.12
    open_after_seconds: float = 0.1
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
        load: of the most loaded source by the last look or glance, infinite for an unknown one.
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
        quick: sources that count as well, and are read all the time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: Sequence[LoadSource],
        settings: IdleSettings | None = None,
        *,
        quick: Sequence[QuickSource] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = tuple(sources)
        self._quick = tuple(quick)
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
        self._asked_load = self._load, self._source
        """What those had that have to be asked, at the last look."""
        self._is_refused = False
        """Somebody was refused since the last glance, for what a quick source said."""
        self._ended_at: float | None = None
        """When quick sources fell below the low mark, until quiet is counted from there."""
        self._was_low = True
        self._num_looks_again = 0
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
        """Whether there is time to spare: what the last look found, and quick sources say now.

        O(quick sources), takes no lock. A look that hangs tells nothing: what was found longer than
        `STALE_SECONDS` ago is not believed.
        """
        if not self._is_open or self._clock() - self._looked_at > STALE_SECONDS:
            return False
        for source in self._quick:
            if source.load() > self._settings.high:
                self._is_refused = True
                return False
        return True

    def busy_since(self) -> float | None:
        """`time.monotonic` when what quick sources are loaded with began, None if they are not."""
        began = [since for source in self._quick if (since := source.busy_since()) is not None]
        return min(began, default=None)

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
        self._asked_load = max(found, default=(0.0, "nothing"))
        self._settle()

    def glance(self) -> bool:
        """Read quick sources and open or close.

        Where their load has just ended, the other sources are looked at at once; returns whether
        they were.
        """
        is_low = self._read()[0] < self._settings.low
        has_ended = is_low and (self._is_refused or not self._was_low)
        self._was_low = is_low
        if has_ended:
            self._ended_at, self._num_looks_again = self._clock(), LOOKS_AGAIN
        elif not is_low:
            self._ended_at, self._num_looks_again = None, 0
        is_behind = has_ended or self._asked_load[0] >= self._settings.low
        looks = is_behind and self._num_looks_again > 0
        self._num_looks_again = self._num_looks_again - 1 if looks else 0
        if looks:
            self.look()
        else:
            self._settle()
        return looks

    def _read(self) -> tuple[float, str]:
        """Load and name of the most loaded quick source."""
        found = [(source.load(), source.name) for source in self._quick]
        return max(found, default=(0.0, "nothing"))

    def _settle(self) -> None:
        """Open or close, by what was asked last and what quick sources say now."""
        with self._changed:
            self._account()
            self._looked_at = self._clock()
            was_open, was_refused = self._is_open, self._is_refused
            self._is_refused = False
            self._load, self._source = max(self._asked_load, self._read())
            if was_refused:  # by load that has ended since: what follows is quiet anew
                self._is_open, self._low_since = False, None
            self._is_open = self._decided(self._load)
            self._num_pauses += was_open and not self._is_open
            if was_refused or self._is_open != was_open:
                self._changed.notify_all()

    def _decided(self, load: float) -> bool:
        """Whether it is open at such a load; with the lock held."""
        if load >= self._settings.low:
            self._low_since = self._ended_at = None
            return self._is_open and load <= self._settings.high
        if self._low_since is None:
            self._low_since = self._clock() if self._ended_at is None else self._ended_at
            self._ended_at = None
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
        pause = GLANCE_SECONDS if self._quick else self._settings.look_seconds
        look_at = find_at = self._clock()
        while not self._stopping.is_set():
            if (now := self._clock()) >= find_at:
                find_at = now + FIND_SECONDS
                for source in self._quick:
                    source.find()
            has_looked = bool(self._quick) and self.glance()
            # asking is work for engines: while they say themselves that they have some, none does
            is_due = not self._quick or (now >= look_at and self._read()[0] <= self._settings.high)
            if is_due and not has_looked:
                self.look()
                has_looked = True
            if has_looked:
                look_at = self._clock() + self._settings.look_seconds
            self._stopping.wait(pause)


class _Use:
    """Somebody who works in idle time."""

    def __init__(self, gate: IdleGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._enter(1)

    def __exit__(self, *_exception: object) -> None:
        self._gate._enter(-1)
