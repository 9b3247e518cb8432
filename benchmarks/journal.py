"""`paceline bench journal`: what sharing the memory costs and how fast it is.

Engines are processes of their own, each with a draft memory and a journal, on one Redis. *Lag*:
one publishes at a rate, another notes when it could draft from each record, on the same clock.
*Publish*: what a call takes that an engine's step makes, and what with Redis away.
*CPU*: the share of a core that each process takes for it, whatever else the machine does.
*Bytes*: what `MEMORY USAGE` says of the journal's keys. *Start*: a new engine on a filled Redis,
until its first drafts are possible (the newest tokens are there) and until everything is read.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from paceline.adapters.sharing import open_shared_journal
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.index_text import load_text, tokenize_traces
from paceline.benchmarks.report import Report, write_report
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.journal import KEEPER_SECONDS, Journal
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_keeper import StoreLimits
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, Shelf, namespace_of
from paceline.caches.tier_settings import MemorySettings
from paceline.errors import ConfigError
from paceline.processes import free_port

SCOPE: Final = "tenant:bench"
TENANT: Final = "bench"
FILL_BATCH: Final = 2000
TIMEOUT_SECONDS: Final = 300.0
SETTLE_SECONDS: Final = 2.0
AWAY_RECORDS: Final = 1000
AWAY_PAUSE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalBenchSettings:
    """What is measured.

    Attributes:
        rate: output tokens published a second.
        seconds: how long.
        output_tokens: of one request.
        prompt_tokens: new ones of one request, recorded beside its output.
        sizes: tokens in Redis when an engine starts.
    """

    rate: float = 5000.0
    seconds: float = 30.0
    output_tokens: int = 200
    prompt_tokens: int = 300
    sizes: tuple[int, ...] = (1_000_000, 10_000_000)

    @property
    def record_tokens(self) -> int:
        """Tokens of one record."""
        return self.output_tokens + self.prompt_tokens


class Records:
    """Records of consecutive stretches of a text.

    Args:
        token_ids: int32; borders (-1) are left out.
        settings: sizes of prompt and output.
        origin: who says them.
    """

    def __init__(
        self, token_ids: npt.NDArray[np.int32], settings: JournalBenchSettings, origin: str
    ) -> None:
        self._tokens = np.ascontiguousarray(token_ids[token_ids >= 0])
        self._settings = settings
        self._origin = origin
        self._at = 0

    def next(self) -> SequenceRecord:
        """The next one, finished now."""
        length = self._settings.record_tokens
        if self._at + length > len(self._tokens):
            self._at = 0
        tokens = self._tokens[self._at : self._at + length]
        self._at += length
        return SequenceRecord(
            request_id=uuid.uuid4().hex,
            scope=SCOPE,
            tenant=TENANT,
            workload="auto-0123456789abcdef",
            session=f"key:{self._at // (20 * length)}",
            origin=self._origin,
            token_ids=tokens,
            num_prompt=self._settings.prompt_tokens,
            finished_at=time.time(),
        )


def run_journal_bench(
    redis_url: str, token_ids: npt.NDArray[np.int32], settings: JournalBenchSettings
) -> Report:
    """Measure everything on one Redis, which must hold nothing else that matters to its speed."""
    figures = measure_lag(redis_url, token_ids, settings)
    for size in settings.sizes:
        figures |= measure_start(redis_url, token_ids, settings, size)
    shown = {**asdict(settings), "text_tokens": len(token_ids)}
    return Report(bench="journal", settings=shown, figures=figures)


def measure_lag(
    redis_url: str, token_ids: npt.NDArray[np.int32], settings: JournalBenchSettings
) -> dict[str, float]:
    """One engine publishes, another follows."""
    model = _model()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    follower = context.Process(target=_follow, args=(redis_url, model, theirs))
    follower.start()
    try:
        assert ours.recv() == "ready"
        with _cleaned(redis_url, model) as store:
            before = _server_cpu(store)
            publisher_share, calls = _publish(redis_url, model, token_ids, settings)
            server = (_server_cpu(store) - before) / settings.seconds
            ours.send("stop")
            lags, follower_share = ours.recv()
    finally:
        follower.join(SETTLE_SECONDS)
        if follower.is_alive():
            follower.kill()
    p50, p99 = np.quantile(lags, [0.5, 0.99])
    away, _ = measure_away(token_ids, settings)
    return {
        **_quantiles("publish", calls),
        **_quantiles("publish_redis_away", away),
        "lag.records": float(len(lags)),
        "lag.p50_ms": 1e3 * float(p50),
        "lag.p99_ms": 1e3 * float(p99),
        "lag.max_ms": 1e3 * max(lags),
        "cpu.publisher_percent": 100 * publisher_share,
        "cpu.follower_percent": 100 * follower_share,
        "cpu.redis_percent": 100 * server,
    }


def _publish(
    redis_url: str,
    model: ModelFingerprint,
    token_ids: npt.NDArray[np.int32],
    settings: JournalBenchSettings,
) -> tuple[float, list[float]]:
    """Publish at the rate.

    Returns the share of a core that this process took, and the seconds of each `publish`.
    """
    records = Records(token_ids, settings, "publisher")
    interval = settings.output_tokens / settings.rate
    calls: list[float] = []
    with _journal(redis_url, model, Speculator(), "publisher") as journal:
        journal.warmed_up.wait(TIMEOUT_SECONDS)
        time.sleep(SETTLE_SECONDS)
        started, cpu = time.perf_counter(), time.process_time()
        for number in range(round(settings.seconds / interval)):
            time.sleep(max(started + number * interval - time.perf_counter(), 0))
            record = records.next()
            begun = time.perf_counter()
            journal.publish(record)
            calls.append(time.perf_counter() - begun)
        _flush(journal)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        time.sleep(SETTLE_SECONDS)
    return share, calls


def measure_away(
    token_ids: npt.NDArray[np.int32], settings: JournalBenchSettings
) -> tuple[list[float], int]:
    """Seconds of each `publish` while nobody listens where Redis should be, and what was dropped.

    What an engine's step pays for a Redis that is gone, its queue full.
    """
    records = Records(token_ids, settings, "publisher")
    calls: list[float] = []
    url = f"redis://127.0.0.1:{free_port()}"
    with _journal(url, _model(), Speculator(), "publisher", queue_records=64) as journal:
        for _ in range(AWAY_RECORDS):
            record = records.next()
            time.sleep(AWAY_PAUSE_SECONDS)
            begun = time.perf_counter()
            journal.publish(record)
            calls.append(time.perf_counter() - begun)
        return calls, journal.stats()["dropped"]


def _quantiles(name: str, seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return {
        f"{name}.p50_us": 1e6 * float(p50),
        f"{name}.p99_us": 1e6 * float(p99),
        f"{name}.max_us": 1e6 * max(seconds),
    }


def _follow(redis_url: str, model: ModelFingerprint, pipe: Connection[Any, Any]) -> None:
    """In a process of its own: note how late each record can be drafted from."""
    speculator = Speculator()
    lags: list[float] = []

    def absorb(record: SequenceRecord) -> None:
        speculator.absorb(record)
        lags.append(time.time() - record.finished_at)

    with _journal(redis_url, model, speculator, "follower", absorb) as journal:
        journal.warmed_up.wait(TIMEOUT_SECONDS)
        time.sleep(SETTLE_SECONDS)
        pipe.send("ready")
        started, cpu = time.perf_counter(), time.process_time()
        pipe.recv()
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        pipe.send((lags, share))


def measure_start(
    redis_url: str, token_ids: npt.NDArray[np.int32], settings: JournalBenchSettings, size: int
) -> dict[str, float]:
    """Fill Redis with `size` tokens, measure what they take, start an engine on them."""
    model = _model()
    with _cleaned(redis_url, model) as store:
        _fill(
            redis_url, model, Records(token_ids, settings, "filler"), size // settings.record_tokens
        )
        held = store.tenant_sizes(TENANT)
        num_bytes = sum(
            int(store.client.memory_usage(key, samples=0)) for key in _keys(store, model)
        )
        sealed = sum(s.num_bytes for s in store.segments(Shelf(SCOPE, TENANT)))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        engine = context.Process(target=_start, args=(redis_url, model, size, theirs))
        engine.start()
        first, whole, cpu, tokens = ours.recv()
        engine.join()
    return {
        f"{size}.redis_bytes_per_token": num_bytes / held.num_tokens,
        f"{size}.accounted_bytes_per_token": held.num_bytes / held.num_tokens,
        f"{size}.sealed_share": sealed / held.num_bytes,
        f"{size}.start_first_drafts_s": first,
        f"{size}.start_whole_s": whole,
        f"{size}.start_cpu_s": cpu,
        f"{size}.start_tokens": float(tokens),
    }


def _fill(redis_url: str, model: ModelFingerprint, records: Records, num_records: int) -> None:
    limits = StoreLimits(seal_after_seconds=0.0)
    with _journal(redis_url, model, Speculator(), "filler", limits=limits) as journal:
        journal.warmed_up.wait(TIMEOUT_SECONDS)
        with click.progressbar(range(0, num_records, FILL_BATCH), label="filling Redis") as bar:
            for begin in bar:
                for _ in range(min(FILL_BATCH, num_records - begin)):
                    journal.publish(records.next())
                _flush(journal)
        _wait_for_sealing(journal)


def _flush(journal: Journal) -> None:
    if not journal.flush(TIMEOUT_SECONDS):
        raise ConfigError(f"Redis did not take the records within {TIMEOUT_SECONDS:.0f} s")


def _wait_for_sealing(journal: Journal) -> None:
    sealed = -1
    while (now := journal.stats()["sealed"]) != sealed:
        sealed = now
        time.sleep(KEEPER_SECONDS + 1)


def _start(redis_url: str, model: ModelFingerprint, size: int, pipe: Connection[Any, Any]) -> None:
    """In a process of its own: read back what Redis holds."""
    speculator = Speculator(memory=MemorySettings.of_capacity(size + size // 4))
    moments: list[float] = []
    head = min(262_144, size // 4)
    taken = 0

    def absorb(record: SequenceRecord) -> None:
        nonlocal taken
        speculator.absorb(record)
        taken += len(record.token_ids)
        if not moments and taken >= head // 2:
            moments.append(time.perf_counter() - started)

    started, cpu = time.perf_counter(), time.process_time()
    with _journal(
        redis_url, model, speculator, "starter", absorb, warm_up_tokens=size, head_tokens=head
    ) as journal:
        journal.warmed_up.wait(TIMEOUT_SECONDS)
        whole = time.perf_counter() - started
        pipe.send((moments[0], whole, time.process_time() - cpu, taken))


@contextmanager
def _journal(
    redis_url: str,
    model: ModelFingerprint,
    speculator: Speculator,
    origin: str,
    absorb: Any = None,
    **options: Any,
) -> Iterator[Journal]:
    journal = open_shared_journal(
        speculator,
        redis_url,
        model,
        origin=origin,
        on_record=absorb or speculator.absorb,
        **options,
    )
    journal.start()
    try:
        yield journal
    finally:
        journal.close()


@contextmanager
def _cleaned(redis_url: str, model: ModelFingerprint) -> Iterator[JournalStore]:
    """The model's journal; its keys are removed afterwards."""
    with closing(RedisAddress(redis_url).connect()) as client:
        store = JournalStore(client, JournalKeys(namespace_of(model)))
        try:
            yield store
        finally:
            for key in _keys(store, model):
                client.delete(key)


def _keys(store: JournalStore, model: ModelFingerprint) -> list[bytes]:
    return list(store.client.scan_iter(f"paceline:*{{{namespace_of(model)}}}*", count=1000))


def _server_cpu(store: JournalStore) -> float:
    answer = store.client.info("cpu")
    return float(answer["used_cpu_user"]) + float(answer["used_cpu_sys"])


def _model() -> ModelFingerprint:
    """A model that nobody else has."""
    return ModelFingerprint(model=f"paceline bench {uuid.uuid4().hex}", tokenizer="bench")


def _parse_sizes(_context: object, _option: object, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(float(size)) for size in value.split(","))
    except ValueError as error:
        raise ConfigError(f"--sizes is {value!r}; give numbers with commas: 1e6,1e7") from error
    if min(sizes) < 10_000:  # noqa: PLR2004 -- some requests' worth
        raise ConfigError(f"--sizes is {value!r}; give at least 10000 tokens each")
    return sizes


@click.command("journal")
@click.option("--tokens", type=click.Path(path_type=Path), help=".npy of int32, -1 between files.")
@click.option("--traces", type=click.Path(path_type=Path), help="Or a folder of recorded traces,")
@click.option("--tokenizer", help="and the tokenizer that reads them (Hugging Face name, folder).")
@click.option("--redis", "redis_url", help="Redis to use.  [default: an embedded Valkey]")
@click.option("--rate", default=5000.0, show_default=True, help="Output tokens a second.")
@click.option("--seconds", default=30.0, show_default=True, help="How long they are published.")
@click.option("--sizes", default="1e6,1e7", show_default=True, callback=_parse_sizes)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def journal(
    tokens: Path | None,
    traces: Path | None,
    tokenizer: str | None,
    redis_url: str | None,
    rate: float,
    seconds: float,
    sizes: tuple[int, ...],
    json_file: Path | None,
) -> None:
    """What sharing the memory costs: lag, CPU, bytes in Redis, a restarted engine's start.

    The text is --tokens FILE.npy, or --traces FOLDER with --tokenizer NAME.
    """
    if rate <= 0 or seconds <= 0:
        raise ConfigError(f"--rate is {rate}, --seconds is {seconds}; give more than 0")
    settings = JournalBenchSettings(rate=rate, seconds=seconds, sizes=sizes)
    if tokens is not None and traces is None:
        text = load_text(tokens)
    elif tokens is None and traces is not None and tokenizer is not None:
        text = tokenize_traces(traces, tokenizer, max(sizes))
    else:
        raise ConfigError(
            "give the text: --tokens FILE.npy, or --traces FOLDER and --tokenizer NAME"
        )
    if redis_url is not None:
        write_report(run_journal_bench(redis_url, text.token_ids, settings), json_file)
        return
    with (
        tempfile.TemporaryDirectory(prefix="paceline-") as folder,
        EmbeddedStore(Path(folder)) as store,
    ):
        write_report(run_journal_bench(store.url, text.token_ids, settings), json_file)
