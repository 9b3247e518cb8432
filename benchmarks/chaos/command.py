"""`paceline bench chaos`: engines on one store; what is lost, doubled or delayed when things die.

Engines without a model draft, commit and finish requests at a steady pace. After a quiet stretch
engines and the store are killed (SIGKILL), connections cut, the wire between them slowed down or
frozen, at random. At the end everything heals, and every record is accounted for.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click
import msgspec

from paceline.benchmarks.chaos.engine import EngineJob
from paceline.benchmarks.chaos.judge import Life, judge, step_figures
from paceline.benchmarks.chaos.wire import Wire
from paceline.benchmarks.report import Report, write_report
from paceline.caches import ModelFingerprint
from paceline.caches.embedded_store import SOCKET_NAME, EmbeddedStore
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_store import BEGINNING, JournalStore
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.caches.shelf_reading import RecordDecoder, records_after
from paceline.errors import ConfigError
from paceline.processes import ChildProcess

SETTLE_SECONDS: Final = 10.0
LEAST_PAUSE, MOST_PAUSE = 4.0, 12.0
"""Seconds between two accidents."""
RSS_SETTLE_SECONDS: Final = 60.0
"""Age from which on an engine's memory should stay what it is: its ring is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosSettings:
    """What happens.

    Attributes:
        engines: at a time, at least 2.
        quiet_seconds: before anything dies.
        chaos_seconds: while things do.
        heal_seconds: after that, before everything is counted.
        seed: of the accidents.
    """

    engines: int = 3
    quiet_seconds: float = 60.0
    chaos_seconds: float = 600.0
    heal_seconds: float = 30.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.engines < 2:  # noqa: PLR2004 -- one has nobody to share with
            raise ConfigError(f"--engines is {self.engines}; give at least 2")
        if self.quiet_seconds <= 0 or self.chaos_seconds <= 0:
            raise ConfigError(
                f"--quiet is {self.quiet_seconds}, --seconds {self.chaos_seconds}; give more than 0"
            )


class Fleet:
    """Engines on one wire to one store.

    Args:
        folder: for everything they write.
        settings: what happens.
    """

    def __init__(self, folder: Path, settings: ChaosSettings) -> None:
        self.accidents: Counter[str] = Counter()
        self.rss: dict[str, list[tuple[float, float]]] = {}
        self.model = ModelFingerprint(model=f"chaos {uuid.uuid4().hex}", tokenizer="chaos")
        self._folder = folder
        self._rng = random.Random(settings.seed)  # noqa: S311 -- no secret
        self._store = EmbeddedStore(folder / "store")
        self._store.start()
        self._wire = Wire(self._connect)
        self._engines: dict[str, tuple[ChildProcess, float]] = {}
        for _ in range(settings.engines):
            self.start_engine()

    @property
    def url(self) -> str:
        """Of the store itself, beside the wire."""
        return self._store.url

    def start_engine(self) -> None:
        """A new engine, which has to learn everything from the store."""
        origin = f"engine{len(list(self._folder.glob('engine*')))}"
        folder = self._folder / origin
        folder.mkdir()
        job = EngineJob(
            url=f"redis://127.0.0.1:{self._wire.port}",
            model=self.model.model,
            origin=origin,
            folder=str(folder),
            seed=self._rng.randrange(1 << 30),
        )
        (folder / "job").write_bytes(msgspec.json.encode(job))
        command = [sys.executable, "-m", "paceline.benchmarks.chaos.engine", str(folder / "job")]
        process = ChildProcess(origin, command, log=folder / "log")
        process.start()
        self._engines[origin] = process, time.time()

    def pause(self) -> float:
        """Seconds until the next accident."""
        return self._rng.uniform(LEAST_PAUSE, MOST_PAUSE)

    def have_an_accident(self) -> None:
        """One of what can happen, over when this returns, its consequences aside."""
        accident = self._rng.choice(("engine", "store", "cut", "frozen", "slow"))
        self.accidents[accident] += 1
        if accident == "engine":
            origin = self._rng.choice(sorted(self._engines))
            self._engines.pop(origin)[0].kill()
            self.start_engine()
        elif accident == "store":
            with closing(RedisAddress(self.url).connect()) as client:
                os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)
            time.sleep(self._rng.uniform(0.2, 3.0))
            self._store.start()
        elif accident == "cut":
            self._wire.cut()
        elif accident == "frozen":
            self._wire.is_dead = True
            time.sleep(self._rng.uniform(1.0, 8.0))
            self._wire.is_dead = False
        else:
            self._wire.delay_seconds = self._rng.uniform(0.01, 0.2)
            time.sleep(5.0)
            self._wire.delay_seconds = 0.0

    def watch(self, seconds: float) -> None:
        """Let time pass, noting memory; an engine that ended by itself ends the run."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for origin, (process, started_at) in self._engines.items():
                if process.exit_code is not None:
                    raise ConfigError(f"{origin} ended by itself with code {process.exit_code}")
                age = time.time() - started_at
                self.rss.setdefault(origin, []).append((age, rss_bytes(process.pid)))
            time.sleep(min(left, 1.0))

    def end(self) -> None:
        """End all engines in order: all fall silent before any stops following the others."""
        for process, _ in self._engines.values():
            os.kill(process.pid, signal.SIGUSR1)
        self.watch(SETTLE_SECONDS)
        for process, _ in self._engines.values():
            os.kill(process.pid, signal.SIGTERM)
        for process, _ in self._engines.values():
            process.wait()

    def lives(self) -> list[Life]:
        """Everybody who ever lived."""
        return [Life.read(folder) for folder in sorted(self._folder.glob("engine*"))]

    def close(self) -> None:
        """Stop what still runs."""
        for process, _ in self._engines.values():
            process.stop(grace_seconds=0.0)
        self._wire.close()
        self._store.stop()

    def _connect(self) -> socket.socket:
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(str(self._folder / "store" / SOCKET_NAME))
        except OSError:
            far.close()
            raise
        return far


def run_chaos(settings: ChaosSettings, folder: Path) -> Report:
    """Quiet, chaos, healing, judgement."""
    fleet = Fleet(folder, settings)
    try:
        fleet.watch(SETTLE_SECONDS)
        quiet = time.time()
        fleet.watch(settings.quiet_seconds)
        chaos = time.time()
        while (left := chaos + settings.chaos_seconds - time.time()) > 0:
            fleet.watch(min(left, fleet.pause()))
            fleet.have_an_accident()
        healed = time.time()
        fleet.watch(settings.heal_seconds)
        fleet.end()
        lives = fleet.lives()
        figures = judge(lives, list(stored_ids(fleet)))
        windows = {"quiet": (quiet, chaos), "chaos": (chaos, healed)}
        figures |= step_figures(lives, windows)
        figures["step_p99_added_ms"] = figures["chaos.step_p99_ms"] - figures["quiet.step_p99_ms"]
        figures |= {f"accidents.{name}": float(n) for name, n in sorted(fleet.accidents.items())}
        figures |= rss_figures(fleet.rss)
    finally:
        fleet.close()
    return Report(bench="chaos", settings=asdict(settings), figures=figures)


def stored_ids(fleet: Fleet) -> Iterator[str]:
    """Request ids of everything in the store."""
    with closing(RedisAddress(fleet.url).connect()) as client:
        store = JournalStore(client, JournalKeys(namespace_of(fleet.model)))
        decoder = RecordDecoder(Counter())
        for shelf, _ in store.shelves():
            for stored in records_after(store, shelf, BEGINNING, decoder):
                yield stored.record.request_id


def rss_figures(rss: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Memory of the engine that lived longest, once its ring was full and at its end."""
    longest = max(rss.values(), key=lambda samples: samples[-1][0])
    settled = [size for age, size in longest if age >= RSS_SETTLE_SECONDS]
    if not settled:
        return {}
    return {
        "rss.longest_life_s": longest[-1][0],
        "rss.settled_mb": settled[0] / 1e6,
        "rss.end_mb": settled[-1] / 1e6,
    }


def rss_bytes(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


@click.command("chaos")
@click.option("--engines", default=3, show_default=True, help="Engines at a time.")
@click.option("--quiet", default=60.0, show_default=True, help="Seconds before anything dies.")
@click.option("--seconds", default=600.0, show_default=True, help="Seconds while things do.")
@click.option("--seed", default=1, show_default=True, help="Of the accidents.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def chaos(engines: int, quiet: float, seconds: float, seed: int, json_file: Path | None) -> None:
    """What is lost, doubled or delayed while engines and the store die."""
    settings = ChaosSettings(engines=engines, quiet_seconds=quiet, chaos_seconds=seconds, seed=seed)
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        write_report(run_chaos(settings, Path(folder)), json_file)
