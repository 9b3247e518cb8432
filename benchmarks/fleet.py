"""`paceline bench fleet`: do several engines on one Redis draft as one that saw everything?

Recorded agents' replies (docs/replay.md) drafted by one engine; by two that take turns, session by
session as the proxy routes them, or request by request; and by one that is restarted half-way and
reads its memory back. Engines are real: a `Speculator`, its journal, one Redis. A request begins
when what was finished before has reached every engine: requests of agents are seconds apart, a
record takes a tenth of one.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.sharing import open_shared_journal
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.benchmarks.replay.command import (
    ReplaySettings,
    find_sources,
    load_all_scopes,
    user_cache_folder,
)
from paceline.benchmarks.replay.counts import Counts
from paceline.benchmarks.replay.episodes import Scope
from paceline.benchmarks.replay.run import Tally, requests_of
from paceline.benchmarks.report import Report, write_report
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.tier_settings import MemorySettings
from paceline.errors import ConfigError

TENANT: Final = "bench"
WAIT_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.005
FIRST_HALF, SECOND_HALF = 0, 1


class Engine:
    """One engine: a draft memory that shares what it serves.

    Args:
        redis_url: where.
        model: whose tokens; engines of one fleet have the same.
        memory: what it may hold; the defaults if None.
    """

    def __init__(
        self, redis_url: str, model: ModelFingerprint, memory: MemorySettings | None = None
    ) -> None:
        self.speculator = Speculator(memory=memory)
        self.num_received = self.num_published = 0
        self.journal = open_shared_journal(
            self.speculator, redis_url, model, on_record=self._absorb
        )
        self.speculator.attach_journal(self)
        self.journal.start()
        wait_for("an engine's start", self.journal.warmed_up.is_set)

    def publish(self, record: SequenceRecord) -> None:
        """Hand a record to the journal."""
        self.num_published += 1
        self.journal.publish(record)

    def has_received(self, count: int) -> bool:
        """Whether as many records have come from others."""
        return self.num_received >= count

    def _absorb(self, record: SequenceRecord) -> None:
        self.speculator.absorb(record)
        self.num_received += 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scope's requests are served.

    Attributes:
        name: of the figures.
        num_engines: engines that take turns.
        by_request: whether they do at each request instead of at each session.
        restarts: whether the engines are replaced by new ones half-way.
    """

    name: str
    num_engines: int = 1
    by_request: bool = False
    restarts: bool = False


PLANS: Final = (
    Plan("one"),
    Plan("two_by_session", num_engines=2),
    Plan("two_by_request", num_engines=2, by_request=True),
    Plan("restarted", restarts=True),
)


class Fleet:
    """A drafter (`replay.base.Drafter`) that is several engines.

    Args:
        redis_url: where they meet.
        plan: who serves what.
    """

    def __init__(self, redis_url: str, plan: Plan) -> None:
        self._url = redis_url
        self._plan = plan
        # nobody else's: each fleet begins cold
        self._model = ModelFingerprint(model=f"paceline bench {uuid.uuid4().hex}", tokenizer="")
        self._engines: list[Engine] = []
        self._sessions: dict[str, int] = {}
        self._serving: dict[int, int] = {}
        self._open()

    def _open(self) -> None:
        self._engines = [Engine(self._url, self._model) for _ in range(self._plan.num_engines)]

    def close(self) -> None:
        """Stop every engine."""
        for engine in self._engines:
            engine.journal.close()

    def restart(self) -> None:
        """Replace every engine by a new one, which has what Redis has."""
        self.close()
        self._open()

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Open a request at the engine whose turn it is."""
        turn = request_id if self._plan.by_request else self._turn_of(session_id)
        self._serving[request_id] = turn % len(self._engines)
        info = RequestInfo(request_id=str(request_id), tenant=TENANT, session=session_id)
        self._speculator(request_id).begin(info, prompt_ids)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one."""
        (tree,) = self._speculator(request_id).propose([str(request_id)], max_tokens=max_tokens)
        return Draft(tree.token_ids.tolist(), tree.parent.tolist(), tree.prob.tolist())

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append verified tokens."""
        self._speculator(request_id).commit(str(request_id), token_ids)

    def finish(self, request_id: int) -> None:
        """Close a request and let the others get it."""
        served_by = self._serving.pop(request_id)
        engine = self._engines[served_by]
        others = [other for other in self._engines if other is not engine]
        wanted = [other.num_received + 1 for other in others]
        before = engine.num_published
        engine.speculator.finish(str(request_id))
        if engine.num_published > before:
            for other, count in zip(others, wanted, strict=True):
                wait_for("a record's delivery", partial(other.has_received, count))

    def memory(self) -> Memory | None:
        """Not measured here."""
        return None

    def _turn_of(self, session_id: str) -> int:
        return self._sessions.setdefault(session_id, len(self._sessions))

    def _speculator(self, request_id: int) -> Speculator:
        return self._engines[self._serving[request_id]].speculator


def replay_plan(
    redis_url: str, plan: Plan, scope: Scope, advance: Callable[[int], None]
) -> tuple[Counts, Counts]:
    """Counts of the first and of the second half of a scope's requests."""
    requests = list(requests_of(scope))
    tallies = (Tally(time.perf_counter_ns), Tally(time.perf_counter_ns))
    fleet = Fleet(redis_url, plan)
    try:
        for number, request in enumerate(requests):
            half = SECOND_HALF if 2 * number >= len(requests) else FIRST_HALF
            if plan.restarts and half == SECOND_HALF and 2 * (number - 1) < len(requests):
                fleet.restart()
            tallies[half].replay(fleet, request)
            advance(len(request.output_ids))
    finally:
        fleet.close()
    return tallies[0].counts(), tallies[1].counts()


def run_fleet_bench(redis_url: str, scopes: Sequence[Scope]) -> dict[str, float]:
    """tokens/step of every plan and source; of the second half too, where a restart shows."""
    figures: dict[str, float] = {}
    for plan in PLANS:
        totals: dict[str, tuple[Counts, Counts]] = {}
        length = sum(scope.num_output_tokens for scope in scopes)
        with click.progressbar(length=length, label=f"{plan.name:<15}") as bar:
            for scope in scopes:
                halves = replay_plan(redis_url, plan, scope, bar.update)
                known = totals.setdefault(scope.source, (Counts(), Counts()))
                for total, counted in zip(known, halves, strict=True):
                    total.merge(counted)
        for source, (first, second) in totals.items():
            whole = Counts()
            whole.merge(first)
            whole.merge(second)
            figures[f"{source}/{plan.name}/tokens_per_step"] = tokens_per_step(whole)
            figures[f"{source}/{plan.name}/drafted_per_step"] = whole.drafted / whole.steps
            figures[f"{source}/{plan.name}/second_half"] = tokens_per_step(second)
    return figures | _ratios(figures)


def _ratios(figures: dict[str, float]) -> dict[str, float]:
    """Each plan's figures over those of one engine that saw everything."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        source, plan, figure = name.split("/")
        if plan != PLANS[0].name and figure != "drafted_per_step":
            alone = figures[f"{source}/{PLANS[0].name}/{figure}"]
            found[f"{source}/{plan}/{figure}_of_one"] = value / alone
    return found


def tokens_per_step(counts: Counts) -> float:
    """What a verification commits in the mean; NaN where there was none."""
    return counts.committed / counts.steps if counts.steps else float("nan")


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Wait until something holds, for half a minute at most."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ConfigError(f"{what} took more than {WAIT_SECONDS:.0f} s; is Redis busy?")
        time.sleep(POLL_SECONDS)


@contextmanager
def redis_or_embedded(url: str | None) -> Iterator[str]:
    """A Redis to use: the one given, or an embedded Valkey that ends with the context."""
    if url is not None:
        yield url
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="paceline-"))
        yield stack.enter_context(EmbeddedStore(Path(folder))).url


@click.command("fleet")
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Each model's first episodes.",
)
@click.option("--tokenizer", help="Hugging Face folder or name.  [default: SmolLM2]")
@click.option("--redis", "redis_url", help="Redis to use.  [default: an embedded Valkey]")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for token ids.  [default: ~/.cache/paceline/replay]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def fleet(
    traces: tuple[Path, ...],
    episodes: int,
    tokenizer: str | None,
    redis_url: str | None,
    state: Path | None,
    json_file: Path | None,
) -> None:
    """Whether engines that share a Redis draft as one that saw everything; no model runs.

    TRACES are trace files, or folders that hold them.
    """
    settings = ReplaySettings(
        sources=find_sources(traces),
        drafters=(),
        episodes=episodes,
        tokenizer=tokenizer,
        state=state or user_cache_folder(),
        peers=Path(),
    )
    scopes = load_all_scopes(settings)
    with redis_or_embedded(redis_url) as url:
        figures = run_fleet_bench(url, scopes)
    write_report(Report(bench="fleet", settings=settings.as_json(), figures=figures), json_file)
