"""Keeps an engine's drafter the one that its group's registry names, and tries new ones.

One thread an engine. About once a second it asks the registry what the group should run, loads
what is new and hands it to the engine, which swaps between two rounds. A candidate is tried by one
engine (`DrafterRegistry.begin_canary`), which has traffic: it compares what the new version gets
right with what the one before did (`paceline.policies.canary`) and promotes it for all engines or
rolls it back and drafts with the one before again.

Whatever fails leaves the engine with the drafter that it has. While Redis is away a canary is
judged all the same, and the registry told afterwards.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from paceline.adapters.drafter_figures import DrafterFigures, WatchCounts
from paceline.adapters.drafter_files import check_sum
from paceline.adapters.drafter_swap import DrafterHost, Swap
from paceline.adapters.failures import FailureLog
from paceline.caches.drafter_registry import DrafterVersion, GroupState, LiveFigures
from paceline.caches.journal_client import UNREACHABLE
from paceline.errors import ConfigError, DamagedDrafterError
from paceline.policies.canary import CanaryRules, Judgement, Seen, judge

logger = logging.getLogger("paceline.drafter")

LOOK_SECONDS: Final = 1.0
"""How often the registry is asked: one script."""
LONGEST_LOOK_SECONDS: Final = 30.0
"""The same while Redis is away, at most."""
REPORT_SECONDS: Final = 5.0
"""How often the registry is told how the drafter does."""
RETRY_SECONDS: Final = 10.0
"""How soon a version is tried again that could not be loaded."""
MOST_TRIES: Final = 3
"""After so many in a row that found its files damaged, a current version is rolled back."""
JUDGE_ROUNDS: Final = 10
"""Rounds of a new version between two judgements."""
CLOSE_SECONDS: Final = 5.0
STARTED_WITH: Final = 0
"""Version of what the engine was started with."""


class Registry(Protocol):
    """What is used of a `DrafterRegistry`."""

    def state(self, group: str) -> GroupState:
        """What the group should run."""

    def versions(self, group: str) -> list[DrafterVersion]:
        """All there are."""

    def version(self, group: str, version: int) -> DrafterVersion:
        """One of them."""

    def begin_canary(self, group: str, version: int, replica: str) -> bool:
        """Claim a candidate."""

    def promote(self, group: str, version: int, *, reason: str) -> DrafterVersion:
        """Have all replicas run it."""

    def roll_back(self, group: str, *, reason: str, version: int | None = None) -> GroupState:
        """Have none run it."""

    def report(self, group: str, figures: LiveFigures) -> None:
        """How the version that runs does here."""

    def live(self, group: str) -> list[LiveFigures]:
        """How versions do on all replicas."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A version, and what `DrafterHost.load` made of it; None where it was not loaded here."""

    version: int
    model: Any = None


@dataclass(slots=True)
class _Canary:
    """A candidate that is tried here.

    Attributes:
        version: which.
        before: the way back.
        elsewhere: how the version before did on other replicas and, at least, at the gate.
        num_judged: of its rounds at the last judgement.
    """

    version: int
    before: _Held
    elsewhere: Seen | None
    num_judged: float = 0.0


class DrafterWatch:
    """Looks after the drafter of one engine.

    Args:
        open_registry: a registry for the calling thread; may raise what `UNREACHABLE` lists.
        host: the engine.
        group: whose drafter the engine runs.
        replica: name of the engine, another for each process.
        folder: drafter that the engine was started with; None if with none.
        model: what `host.load` would make of it, where that is at hand.
        rules: when a canary is judged.
        look_seconds: see `LOOK_SECONDS`.
        report_seconds: see `REPORT_SECONDS`.
        clock: Unix seconds.
    """

    def __init__(
        self,
        open_registry: Callable[[], Registry],
        host: DrafterHost,
        *,
        group: str,
        replica: str,
        folder: Path | None = None,
        model: Any = None,
        rules: CanaryRules | None = None,
        look_seconds: float = LOOK_SECONDS,
        report_seconds: float = REPORT_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts = WatchCounts()
        self.failures = FailureLog(logger, "looking after the drafter")
        self._open = open_registry
        self._host = host
        self._group = group
        self._replica = replica
        self._folder = folder
        self._rules = rules
        self._look_seconds = look_seconds
        self._report_seconds = report_seconds
        self._clock = clock
        self._registry: Registry | None = None
        self._running = _Held(STARTED_WITH, model)
        self._offered: Swap | None = None
        self._canary: _Canary | None = None
        self._owed: list[Callable[[Registry], object]] = []
        """What the registry is still to be told of canaries that have ended."""
        self._tried: dict[int, tuple[int, float]] = {}
        """Of versions that could not be loaded: how often, and when they are tried again."""
        self._looked_at = -1
        """Generation at which there was no candidate to try."""
        self._num_rounds = 0
        self._report_at = 0.0
        self._swap_seconds = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="paceline-drafter", daemon=True)

    @property
    def version(self) -> int:
        """That drafts; 0 for what the engine was started with."""
        return self._running.version

    def figures(self) -> DrafterFigures:
        """How it goes, from any thread."""
        canary = self._canary
        return DrafterFigures(
            self._group,
            self.version,
            canary is not None and canary.version == self.version,
            self.counts,
            self._swap_seconds,
            self._host.tally.totals(),
        )

    def begin(self) -> None:
        """Draft with the group's current version, if there is one that can be had now.

        Call before the engine's first round, on the thread that will run it.
        """
        self._attempt(self._begin)
        self._registry = None  # the thread's own object is not this thread's

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def close(self) -> None:
        """Stop; the drafter that runs stays. A canary that is not decided is another's to try."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def look(self) -> bool:
        """Look once; False if the registry cannot be reached. Never raises."""
        return self._attempt(self._look)

    def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except UNREACHABLE as error:
            self.counts.unreachable += 1
            self._registry = None
            logger.debug("the drafters' registry is away: %s", error)
            return False
        except Exception as error:  # noqa: BLE001  counted: the drafter that runs stays
            self.failures.record(error)
        return True

    def _begin(self) -> None:
        registry = self._opened()
        state = registry.state(self._group)
        if state.current and (held := self._loaded(registry, state.current)) is not None:
            self._offer(held)
            self._host.settle()
            self._settle()

    def _look(self) -> None:
        self._settle()
        if self._canary is not None:
            self._judge(self._canary)
        registry = self._opened()
        while self._owed:
            self._pay(registry, self._owed[0])
            del self._owed[0]
        self._report(registry)
        state = registry.state(self._group)
        if self._canary is not None:
            self._keep_canary(self._canary, state)
        if self._canary is None and self._follow(registry, state):
            self._try_candidate(registry, state)

    def _opened(self) -> Registry:
        if self._registry is None:
            self._registry = self._open()
        return self._registry

    def _settle(self) -> None:
        """See what has become of the drafter that was handed over."""
        swap = self._offered
        if swap is None or not swap.is_done:
            return
        self._offered = None
        if swap.error is None:
            self.counts.swaps += 1
            self._swap_seconds = swap.seconds
            self._running = _Held(swap.version, swap.model)
            logger.info("drafting with version %d of %s", swap.version, self._group)
            return
        self._failed(swap.version, swap.error)
        if self._canary is not None and self._canary.version == swap.version:
            self._end_canary(self._canary, f"it cannot be put into place: {swap.error}")

    def _offer(self, held: _Held) -> None:
        self._offered = Swap(held.version, held.model, before=self._running.model)
        self._host.offer(self._offered)

    def _withdraw(self) -> bool:
        """Nothing is on its way to the engine any more; False if the engine has it."""
        if self._offered is None:
            return True
        if not self._host.withdraw(self._offered):
            return False
        self._offered = None
        return True

    def _follow(self, registry: Registry, state: GroupState) -> bool:
        """Run what the group runs; whether it does."""
        coming = self._offered.version if self._offered is not None else self.version
        if coming != state.current and self._withdraw():
            if self.version == state.current:
                return True
            held = self._loaded(registry, state.current)
            if held is not None:
                self._offer(held)
        return self._offered is None and self.version == state.current

    def _loaded(self, registry: Registry, number: int) -> _Held | None:
        """A version that the group runs, checked; None if it cannot be had, or not yet again."""
        if number == STARTED_WITH and self._folder is None:
            return _Held(STARTED_WITH)
        num_tries, retry_at = self._tried.get(number, (0, 0.0))
        if self._clock() < retry_at:
            return None
        version = None if number == STARTED_WITH else registry.version(self._group, number)
        try:
            return _Held(number, self._load(version))
        except DamagedDrafterError as error:
            self._failed(number, error)
            if num_tries + 1 >= MOST_TRIES and version is not None:
                self.counts.rollbacks += 1
                registry.roll_back(self._group, version=number, reason=str(error))
        except Exception as error:  # noqa: BLE001  counted: the drafter that runs stays
            self._failed(number, error)
        return None

    def _load(self, version: DrafterVersion | None) -> Any:
        """What the host makes of a version, None: of what the engine was started with."""
        if version is None:
            assert self._folder is not None
            return self._host.load(self._folder)
        folder = Path(version.folder)
        check_sum(folder, version.checksum)
        return self._host.load(folder)

    def _failed(self, number: int, error: Exception) -> None:
        self.counts.failures += 1
        num_tries, _ = self._tried.get(number, (0, 0.0))
        self._tried[number] = num_tries + 1, self._clock() + RETRY_SECONDS
        logger.error("version %d of %s is not drafted with: %s", number, self._group, error)

    def _try_candidate(self, registry: Registry, state: GroupState) -> None:
        """Claim the newest candidate, if there is one and this engine has traffic to try it on."""
        num_rounds, self._num_rounds = self._num_rounds, self._host.num_rounds
        if state.canary or state.generation == self._looked_at or num_rounds == self._num_rounds:
            return
        candidates = [
            each
            for each in registry.versions(self._group)
            if each.state == "candidate" and each.version > state.current
        ]
        if not candidates:
            self._looked_at = state.generation
            return
        newest = candidates[-1]
        elsewhere = _seen_elsewhere(registry.live(self._group), self.version)
        if elsewhere is None and newest.gate is not None:
            elsewhere = Seen(1.0, newest.gate.agreement_before)
        if not self._has_way_back(registry):
            return
        if not registry.begin_canary(self._group, newest.version, self._replica):
            return
        self.counts.canaries += 1
        logger.info(
            "version %d of %s is tried on %s, beside version %d%s",
            newest.version,
            self._group,
            self._replica,
            self.version,
            f" ({newest.reason})" if newest.reason else "",
        )
        try:
            model = self._load(newest)
        except Exception as error:  # noqa: BLE001  counted: the version is taken back
            self._failed(newest.version, error)
            self._take_back(newest.version, f"it cannot be loaded: {error}")
            return
        self._canary = _Canary(newest.version, self._running, elsewhere)
        self._host.judge(is_judging=True)
        self._offer(_Held(newest.version, model))

    def _has_way_back(self, registry: Registry) -> bool:
        """Whether the version that runs can be swapped in again; it is read for that."""
        running = self._running
        if running.model is None and (running.version != STARTED_WITH or self._folder is not None):
            held = self._loaded(registry, running.version)
            if held is None:
                return False
            self._running = held
        return True

    def _judge(self, canary: _Canary) -> None:
        if self.version != canary.version:
            return  # the engine has not taken it yet
        since = self._host.tally.strata(canary.version)
        num_rounds = sum(each.num_rounds for each in since.values())
        if num_rounds < canary.num_judged + JUDGE_ROUNDS:
            return
        canary.num_judged = num_rounds
        before = self._host.tally.strata(canary.before.version)
        found = judge(before, since, rules=self._rules, elsewhere=canary.elsewhere)
        if found.verdict == "worse":
            self._end_canary(canary, _described(found))
        elif found.verdict == "fine":
            self._keep(canary, _described(found))

    def _keep(self, canary: _Canary, reason: str) -> None:
        """The canary is as good as the version before: everybody may have it."""
        logger.info(
            "version %d of %s is kept by %s: %s",
            canary.version,
            self._group,
            self._replica,
            reason,
        )
        self.counts.promotions += 1
        self._stop_judging()
        group, version = self._group, canary.version
        self._owed.append(lambda registry: registry.promote(group, version, reason=reason))

    def _end_canary(self, canary: _Canary, reason: str) -> None:
        """Draft with the version before again, and take the canary back."""
        self._retreat(canary)
        self._take_back(canary.version, reason)

    def _retreat(self, canary: _Canary) -> None:
        self._stop_judging()
        if self._withdraw() and self.version != canary.before.version:
            self._offer(canary.before)

    def _take_back(self, version: int, reason: str) -> None:
        logger.warning(
            "version %d of %s is rolled back by %s: %s", version, self._group, self._replica, reason
        )
        self.counts.rollbacks += 1
        group = self._group
        self._owed.append(
            lambda registry: registry.roll_back(group, version=version, reason=reason)
        )

    def _stop_judging(self) -> None:
        self._canary = None
        self._host.judge(is_judging=False)

    def _keep_canary(self, canary: _Canary, state: GroupState) -> None:
        """Leave a canary that is not ours any more: somebody promoted, took back or claimed."""
        if (state.canary, state.canary_replica) == (canary.version, self._replica):
            return
        logger.info(
            "version %d of %s is not tried on %s any more",
            canary.version,
            self._group,
            self._replica,
        )
        if state.current == canary.version:
            self._stop_judging()
        else:
            self._retreat(canary)

    def _pay(self, registry: Registry, told: Callable[[Registry], object]) -> None:
        try:
            told(registry)
        except ConfigError as error:  # somebody has decided otherwise meanwhile
            logger.warning("the registry has another opinion: %s", error)

    def _report(self, registry: Registry) -> None:
        now = self._clock()
        if now < self._report_at:
            return
        self._report_at = now + self._report_seconds
        seen = self._host.tally.total(self.version)
        registry.report(
            self._group,
            LiveFigures(
                replica=self._replica,
                version=self.version,
                num_rounds=int(seen.num_rounds),
                num_agreed=int(seen.num_agreed),
                accepted_length=seen.accepted_length,
                updated_at=now,
            ),
        )

    def _run(self) -> None:
        wait = self._look_seconds
        while not self._closing.wait(wait):
            is_there = self.look()
            wait = self._look_seconds if is_there else min(2 * wait, LONGEST_LOOK_SECONDS)


def _seen_elsewhere(live: list[LiveFigures], version: int) -> Seen | None:
    """What replicas say of a version together; None if none says anything."""
    total = sum(
        (
            Seen(each.num_rounds, each.num_agreed, each.num_rounds * each.accepted_length)
            for each in live
            if each.version == version
        ),
        Seen(),
    )
    return total if total.num_rounds else None


def _described(found: Judgement) -> str:
    return (
        f"its first token was right in {found.seen.agreement:.3f} of "
        f"{found.seen.num_rounds:.0f} rounds, {found.expected:.3f} with the version before "
        f"(evidence that it is worse: {found.log_evidence:+.1f})"
    )
