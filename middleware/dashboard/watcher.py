"""Looking at everything again and again, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from paceline.errors import JournalError
from paceline.middleware.dashboard.samples import Samples, ScrapeError, scrape
from paceline.middleware.dashboard.settings import DashboardSettings, EngineAddress
from paceline.middleware.dashboard.standing import (
    ReplicaRow,
    TenantRow,
    TierRow,
    quantile,
    replica_row,
    tenant_rows,
    tier_rows,
)
from paceline.middleware.dashboard.stored import ModelStored, read_stored
from paceline.middleware.dashboard.totals import HISTORY_SECONDS, History, Point, Totals

logger = logging.getLogger("paceline.dashboard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the pages show.

    Attributes:
        at: Unix time of the look.
        points: of the last quarter of an hour.
        recent: what was added in it.
        tokens_per_second: between the last two looks.
        first_token_seconds: median over all streams since the proxy began, None without any.
        tenants: their workloads.
        tiers: of memory.
        replicas: in the configuration's order.
        models: what Redis holds.
        problem: why the proxy's metrics or Redis could not be read, "" if they could.
    """

    at: float
    points: list[Point]
    recent: Totals
    tokens_per_second: float
    first_token_seconds: float | None
    tenants: list[TenantRow]
    tiers: list[TierRow]
    replicas: list[ReplicaRow]
    models: list[ModelStored]
    problem: str


class Watcher:
    """Keeps the latest `Snapshot`.

    Args:
        settings: what is looked at, and how often.
        clock: Unix time in seconds.
    """

    def __init__(
        self, settings: DashboardSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._history = History()
        self._latest: Snapshot | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="paceline-dashboard", daemon=True)

    @property
    def latest(self) -> Snapshot | None:
        """What the last look has shown; None before the first. From any thread."""
        return self._latest

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def look(self) -> Snapshot:
        """Look once. What cannot be reached is named in the result."""
        now = self._clock()
        problems: list[str] = []
        proxy = Samples()
        try:
            proxy = scrape(self._settings.proxy_url, admin_key=self._settings.admin_key)
        except ScrapeError as error:
            problems.append(f"the proxy's figures are missing: {error}")
        replicas: list[ReplicaRow] = []
        shown: dict[str, Samples] = {}
        for engine in self._settings.engines:
            samples, problem = _look_at(engine)
            replicas.append(replica_row(engine.name, samples, problem, proxy))
            if samples is not None:
                shown[engine.name] = samples
        self._history.look(now, [(name, Totals.of(each)) for name, each in shown.items()])
        models: list[ModelStored] = []
        if self._settings.redis_url:
            try:
                models = read_stored(self._settings.redis_url)
            except JournalError as error:
                problems.append(f"what Redis holds is missing: {error}")
        engines, points = Samples.joined(shown.values()), self._history.points()
        self._latest = Snapshot(
            at=now,
            points=points,
            recent=self._history.over(HISTORY_SECONDS)[1],
            tokens_per_second=points[-1].tokens_per_second if points else 0.0,
            first_token_seconds=quantile(proxy, "paceline_proxy_first_token_seconds"),
            tenants=tenant_rows(engines, proxy),
            tiers=tier_rows(engines),
            replicas=replicas,
            models=models,
            problem="; ".join(problems),
        )
        return self._latest

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception:  # logged: the next look may go better
                logger.exception("a look at the figures failed")
            self._stopped.wait(self._settings.interval_seconds)


def _look_at(engine: EngineAddress) -> tuple[Samples | None, str]:
    """What an engine shows, and why some of it is missing."""
    parts: list[Samples] = []
    problem = ""
    for url in engine.urls:
        try:
            parts.append(scrape(url))
        except ScrapeError as error:
            problem = str(error)
    return (Samples.joined(parts) if parts else None), problem
