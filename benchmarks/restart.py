"""`paceline bench restart`: how well does an engine draft right after its start?

One engine serves the first half of a scope's recorded requests; between them other engines of the
tenant publish other text, until Redis holds as many tokens as wanted. The second half is drafted by
that engine, which saw everything, and by new ones: each reads the journal for so long and then no
more, so that its figure is that of the moment. *phrases* has read the statistics of the journal and
no record, *cold* has nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np
import numpy.typing as npt

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.sharing import open_shared_journal
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.fleet import Engine, redis_or_embedded, tokens_per_step, wait_for
from paceline.benchmarks.index_text import load_text
from paceline.benchmarks.replay.command import (
    ReplaySettings,
    find_sources,
    load_all_scopes,
    user_cache_folder,
)
from paceline.benchmarks.replay.drafters.tiers import TiersDrafter
from paceline.benchmarks.replay.episodes import Scope
from paceline.benchmarks.replay.run import Request, Tally, requests_of
from paceline.benchmarks.report import Report, write_report
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.journal import COUNT_SECONDS, KEEPER_SECONDS, Journal
from paceline.caches.journal_keeper import StoreLimits
from paceline.caches.tier_settings import MemorySettings
from paceline.errors import ConfigError

RECORD_TOKENS: Final = 500
RECORD_PROMPT: Final = 300
RECORDS_PER_SESSION: Final = 20
QUEUED_RECORDS: Final = 1024
TIMEOUT_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSettings:
    """What is measured.

    Attributes:
        size: tokens in Redis when engines start.
        moments: seconds after the start.
    """

    size: int = 10_000_000
    moments: tuple[float, ...] = (0.5, 1.0, 2.0)


class OtherText:
    """What other engines of the tenant publish: consecutive stretches of a text.

    Args:
        token_ids: int32; borders (-1) are left out.
        tenant: who says it.
    """

    def __init__(self, token_ids: npt.NDArray[np.int32], tenant: str) -> None:
        self._tokens = np.ascontiguousarray(token_ids[token_ids >= 0])
        self._tenant = tenant
        self._number = 0
        if len(self._tokens) < RECORD_TOKENS:
            raise ConfigError(
                f"--tokens holds {len(self._tokens)} tokens; give at least {RECORD_TOKENS}"
            )

    def next(self) -> SequenceRecord:
        """The next record, finished now; the text begins anew at its end."""
        first = self._number * RECORD_TOKENS % (len(self._tokens) - RECORD_TOKENS + 1)
        self._number += 1
        info = RequestInfo(request_id=uuid.uuid4().hex, tenant=self._tenant)
        return SequenceRecord(
            request_id=info.request_id,
            scope=info.scope,
            tenant=info.tenant,
            workload="",
            session=f"other {self._number // RECORDS_PER_SESSION}",
            origin="others",
            token_ids=self._tokens[first : first + RECORD_TOKENS],
            num_prompt=RECORD_PROMPT,
            finished_at=time.time(),
        )


def run_restart_bench(
    redis_url: str,
    scope: Scope,
    token_ids: npt.NDArray[np.int32],
    settings: RestartSettings,
) -> dict[str, float]:
    """tokens/step of the second half, by the engine that saw everything and by new ones."""
    requests = list(requests_of(scope))
    first, second = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    model = ModelFingerprint(model=f"paceline bench {uuid.uuid4().hex}", tokenizer="")
    memory = MemorySettings.of_capacity(settings.size + settings.size // 4)
    engine = Engine(redis_url, model, memory)
    try:
        others = OtherText(token_ids, scope.name)
        num_stored = _fill(redis_url, model, engine, first, others, settings.size)
    finally:
        engine.journal.close()
    _seal(redis_url, model, others)
    kept = _replay(engine.speculator, second, "kept")
    figures = {"stored_tokens": float(num_stored), "kept/tokens_per_step": kept}
    moments = {f"after_{seconds:g}s": seconds for seconds in settings.moments}
    for name in ("cold", "phrases", *moments):
        speculator = Speculator(memory=memory)
        if name == "phrases":
            _read_phrases(redis_url, model, speculator)
        elif name in moments:
            num_read = _read(redis_url, model, speculator, moments[name], settings.size)
            figures[f"{name}/read_tokens"] = num_read
        figures[f"{name}/tokens_per_step"] = _replay(speculator, second, name)
        figures[f"{name}/of_kept"] = figures[f"{name}/tokens_per_step"] / kept
    return figures


def _fill(
    redis_url: str,
    model: ModelFingerprint,
    engine: Engine,
    requests: Sequence[Request],
    others: OtherText,
    size: int,
) -> int:
    """Let the engine serve requests and others say the rest; returns the tokens published."""
    served = TiersDrafter(engine.speculator)
    journal = open_shared_journal(
        Speculator(), redis_url, model, origin="others", on_record=_ignore
    )
    journal.start()
    num_published = num_records = 0
    with closing(journal), click.progressbar(requests, label="filling Redis") as bar:
        for number, request in enumerate(bar, start=1):
            served.start(request.request_id, request.session_id, request.scope, request.prompt_ids)
            served.commit(request.request_id, request.output_ids)
            served.finish(request.request_id)
            while num_published < size * number // len(requests):
                record = others.next()
                journal.publish(record)
                num_published += len(record.token_ids)
                num_records += 1
                if num_records % QUEUED_RECORDS == 0:
                    _flush(journal)
                    wait_for("the others' records", partial(engine.has_received, num_records))
        _flush(journal)
        _flush(engine.journal)
        wait_for("the others' last record", partial(engine.has_received, num_records))
        time.sleep(COUNT_SECONDS)  # until counts of phrases are written
    return engine.speculator.stats()["shared_tokens"]


def _flush(journal: Journal) -> None:
    if not journal.flush(TIMEOUT_SECONDS):
        raise ConfigError(f"Redis did not take the records within {TIMEOUT_SECONDS:.0f} s")


def _seal(redis_url: str, model: ModelFingerprint, others: OtherText) -> None:
    """Seal what is sealed after a minute, as most of a tenant's memory is."""
    limits = StoreLimits(seal_after_seconds=0.0)
    journal = open_shared_journal(
        Speculator(), redis_url, model, origin="sealer", on_record=_ignore, limits=limits
    )
    journal.start()
    with closing(journal):
        journal.publish(others.next())  # what it leaves behind tells that the tail is full
        _flush(journal)
        sealed = -1
        while (now := journal.stats()["sealed"]) != sealed:
            sealed = now
            time.sleep(KEEPER_SECONDS + 1)


def _read(
    redis_url: str, model: ModelFingerprint, speculator: Speculator, seconds: float, size: int
) -> float:
    """Read the journal for a while; returns how many tokens that were."""
    num_read = 0

    def absorb(record: SequenceRecord) -> None:
        nonlocal num_read
        if time.perf_counter() < end:
            speculator.absorb(record)
            num_read += len(record.token_ids)

    def absorb_again(record: SequenceRecord) -> None:
        if time.perf_counter() < end:
            speculator.absorb_again(record)

    end = time.perf_counter() + seconds
    journal = open_shared_journal(
        speculator,
        redis_url,
        model,
        on_record=absorb,
        on_again=absorb_again,
        warm_up_tokens=2 * size,
    )
    journal.start()
    with closing(journal):
        time.sleep(max(end - time.perf_counter(), 0))
    return float(num_read)


def _read_phrases(redis_url: str, model: ModelFingerprint, speculator: Speculator) -> None:
    """Read the statistics, and draft from them for good."""
    journal = open_shared_journal(
        speculator,
        redis_url,
        model,
        on_record=_ignore,
        on_again=_ignore,
        on_warmed_up=_stay,
        warm_up_tokens=1,
    )
    journal.start()
    with closing(journal):
        wait_for("an engine's start", journal.warmed_up.is_set)


def _replay(speculator: Speculator, requests: Sequence[Request], name: str) -> float:
    speculator.attach_journal(_NoJournal())  # what this one says, the next must not find
    tally = Tally(time.perf_counter_ns)
    with click.progressbar(requests, label=f"{name:<13}") as bar:
        for request in bar:
            tally.replay(TiersDrafter(speculator), request)
    return tokens_per_step(tally.counts())


class _NoJournal:
    def publish(self, record: SequenceRecord) -> None:
        """Nobody reads it."""


def _ignore(_record: SequenceRecord) -> None:
    pass


def _stay() -> None:
    pass


def _parse_moments(_context: object, _option: object, value: str) -> tuple[float, ...]:
    try:
        moments = tuple(float(moment) for moment in value.split(","))
    except ValueError as error:
        raise ConfigError(f"--moments is {value!r}; give seconds with commas: 0.5,2") from error
    if min(moments) <= 0:
        raise ConfigError(f"--moments is {value!r}; give more than 0 seconds each")
    return moments


@click.command("restart")
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--tokens",
    required=True,
    type=click.Path(path_type=Path),
    help="What else the tenant says: .npy of int32, -1 between files.",
)
@click.option("--size", default=1e7, show_default=True, help="Tokens in Redis at the start.")
@click.option("--moments", default="0.5,1,2", show_default=True, callback=_parse_moments)
@click.option(
    "--episodes", type=click.IntRange(min=2), default=40, show_default=True, help="The first ones."
)
@click.option("--tokenizer", help="Hugging Face folder or name.  [default: SmolLM2]")
@click.option("--redis", "redis_url", help="Redis to use.  [default: an embedded Valkey]")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for token ids.  [default: ~/.cache/paceline/replay]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def restart(
    trace: Path,
    tokens: Path,
    size: float,
    moments: tuple[float, ...],
    episodes: int,
    tokenizer: str | None,
    redis_url: str | None,
    state: Path | None,
    json_file: Path | None,
) -> None:
    """How well an engine drafts right after its start; no model runs.

    TRACE is a trace file; the scope with the most recorded replies in it is replayed.
    """
    if size < 1:
        raise ConfigError(f"--size is {size:g}; give at least 1 token")
    settings = ReplaySettings(
        sources=find_sources((trace,)),
        drafters=(),
        episodes=episodes,
        tokenizer=tokenizer,
        state=state or user_cache_folder(),
        peers=Path(),
    )
    scope = max(load_all_scopes(settings), key=lambda scope: scope.num_output_tokens)
    measured = RestartSettings(size=int(size), moments=moments)
    text = load_text(tokens)
    with redis_or_embedded(redis_url) as url:
        figures = run_restart_bench(url, scope, text.token_ids, measured)
    shown = {**settings.as_json(), **asdict(measured), "scope": scope.name}
    write_report(Report(bench="restart", settings=shown, figures=figures), json_file)
