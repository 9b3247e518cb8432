"""`paceline bench index`: what the draft memory costs, beside Arctic Inference's, in one run.

For each size and round each memory is filled and asked in a process of its own, by turns, so that
resident memory is its own and a drifting machine touches both alike. Held-out text comes from
behind what was remembered. Figures are medians over the rounds; ratios are taken within a round.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
import numpy as np

from paceline.benchmarks.index_sides import ArcticSide, PacelineSide, Side, resident_bytes
from paceline.benchmarks.index_text import Text, load_text, tokenize_traces
from paceline.benchmarks.peers.arctic import default_folder, load_suffix_cache
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

PROMPT_TOKENS: Final = 1024
OUTPUT_TOKENS: Final = 256
BATCH: Final = 256
BATCH_PROMPT_TOKENS: Final = 512
LONG_PROMPT_TOKENS: Final = 131_072
SIDES: Final = ("paceline", "arctic")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBenchSettings:
    """How much is asked.

    Attributes:
        sizes: tokens remembered.
        rounds: times that each size is measured; figures are medians over them.
        calls: proposals timed on each kind of text.
        starts: long prompts started.
        batches: batches proposed for.
        with_arctic: whether the peer is measured too.
        peers: folder that the peer is built in.
        seed: of the choice of text.
    """

    sizes: tuple[int, ...]
    rounds: int = 3
    calls: int = 4000
    starts: int = 9
    batches: int = 30
    with_arctic: bool = True
    peers: Path
    seed: int = 0


def run_index_bench(text: Text, settings: IndexBenchSettings) -> Report:
    """Measure every size, round and memory; starts a process for each."""
    if settings.with_arctic:
        load_suffix_cache(settings.peers)  # built before anything is timed
    sides = SIDES if settings.with_arctic else SIDES[:1]
    jobs = [
        (round_, size, side)
        for round_ in range(settings.rounds)
        for size in settings.sizes
        for side in sides
    ]
    turns: dict[tuple[int, str], list[dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        click.progressbar(jobs, label="draft memories", item_show_func=_describe) as bar,
    ):
        file = Path(scratch) / "text.npy"
        np.save(file, text.token_ids)
        for round_, size, side in bar:
            measured = _in_a_process(side, file, size, settings, settings.seed + round_)
            turns.setdefault((size, side), []).append(measured)
    shown = {**asdict(settings), "peers": "", "text_tokens": len(text.token_ids)}
    return Report(bench="index", settings=shown, figures=_figures(turns, settings))


def _describe(job: tuple[int, int, str] | None) -> str:
    return "" if job is None else f"{job[2]}, {job[1]:,} tokens"


def _in_a_process(
    side: str, file: Path, size: int, settings: IndexBenchSettings, seed: int
) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measure, side, file, size, settings, seed).result()


def measure(
    side_name: str, file: Path, size: int, settings: IndexBenchSettings, seed: int
) -> dict[str, float]:
    """All figures of one memory at one size, in this process."""
    held, unseen = load_text(file).split(size)
    rng = np.random.default_rng(seed)
    side: Side = (
        PacelineSide(size + size // 8) if side_name == "paceline" else ArcticSide(settings.peers)
    )
    figures = _insert(side, held)
    for name, text in (("unseen", unseen), ("held", held)):
        times = _propose(side, text, settings.calls, rng)
        figures |= _quantiles(f"propose_{name}_us", times, 1e6)
    figures |= _start(side, unseen, settings.starts)
    figures |= _batch(side, unseen, settings.batches, rng)
    if isinstance(side, PacelineSide):
        figures |= _beside_writers(side, unseen, settings.calls, seed)
    return figures


def _insert(side: Side, held: Text) -> dict[str, float]:
    sequences = list(held.sequences())
    num_tokens = sum(map(len, sequences))
    before = resident_bytes()
    started = time.perf_counter()
    side.insert(sequences)
    seconds = time.perf_counter() - started
    return {
        "insert_ns_per_token": 1e9 * seconds / num_tokens,
        "resident_bytes_per_token": (resident_bytes() - before) / num_tokens,
        "counted_bytes_per_token": side.counted_bytes() / num_tokens,
    }


def _propose(side: Side, text: Text, calls: int, rng: np.random.Generator) -> list[float]:
    """Seconds of each proposal while requests write a stretch of the text."""
    times: list[float] = []
    while len(times) < calls:
        begin = int(rng.integers(0, len(text.token_ids) - 4 * PROMPT_TOKENS))
        said = text.stretch(begin, PROMPT_TOKENS + OUTPUT_TOKENS)
        request = side.begin(said[:PROMPT_TOKENS])
        batch, done = [request], PROMPT_TOKENS
        while done < len(said):
            started = time.perf_counter()
            side.timed_propose(batch)
            times.append(time.perf_counter() - started)
            accepted = _accepted(side.propose(batch)[0], said[done:].tolist())
            side.commit(request, said[done : done + accepted + 1])
            done += accepted + 1
        side.finish(request)
    return times[:calls]


def _accepted(draft: list[int], said: list[int]) -> int:
    most = min(len(draft), len(said))
    return next((i for i in range(most) if draft[i] != said[i]), most)


def _start(side: Side, text: Text, starts: int) -> dict[str, float]:
    starting: list[float] = []
    ending: list[float] = []
    for i in range(starts):
        prompt = text.stretch(i * 1000, LONG_PROMPT_TOKENS)
        started = time.perf_counter()
        request = side.begin(prompt)
        begun = time.perf_counter()
        side.finish(request)
        ending.append(time.perf_counter() - begun)
        starting.append(begun - started)
    return {
        "start_tokens": float(len(prompt)),
        "start_ms": 1e3 * median(starting),
        "finish_ms": 1e3 * median(ending),
    }


def _batch(side: Side, text: Text, batches: int, rng: np.random.Generator) -> dict[str, float]:
    begins = rng.integers(0, len(text.token_ids) - 4 * PROMPT_TOKENS, BATCH).tolist()
    said = [text.stretch(begin, BATCH_PROMPT_TOKENS + batches + 1) for begin in begins]
    requests = [side.begin(tokens[:BATCH_PROMPT_TOKENS]) for tokens in said]
    times = []
    for step in range(BATCH_PROMPT_TOKENS, BATCH_PROMPT_TOKENS + batches):
        started = time.perf_counter()
        side.timed_propose(requests)
        times.append(time.perf_counter() - started)
        for request, tokens in zip(requests, said, strict=True):
            side.commit(request, tokens[step : step + 1])
    for request in requests:
        side.finish(request)
    return {"batch_256_ms": 1e3 * median(times), "batch_256_max_ms": 1e3 * max(times)}


def _beside_writers(side: PacelineSide, text: Text, calls: int, seed: int) -> dict[str, float]:
    """Proposals on the same text without a writer, then beside two kinds of them."""
    figures: dict[str, float] = {}
    for kind in ("quiet", "append", "begin"):
        rng = np.random.default_rng(seed)
        if kind == "quiet":
            times = _propose(side, text, calls, rng)
        else:
            with side.busy(kind, text):
                times = _propose(side, text, calls, rng)
        figures |= _quantiles(f"beside_{kind}_us", times, 1e6)
    for kind in ("append", "begin"):
        for quantile in ("p50", "p99"):
            quiet = figures[f"beside_quiet_us_{quantile}"]
            figures[f"beside_{kind}_{quantile}_over_quiet"] = (
                figures[f"beside_{kind}_us_{quantile}"] / quiet
            )
    return figures


def _quantiles(name: str, seconds: list[float], unit: float) -> dict[str, float]:
    times = np.sort(seconds)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {
        f"{name}_mean": unit * float(np.mean(times)),
        # on a machine that is shared, a call that loses its core for a while outweighs all others
        f"{name}_mean_of_fastest_99_percent": unit
        * float(np.mean(times[: -(-len(times) * 99 // 100)])),
        f"{name}_p50": unit * float(p50),
        f"{name}_p99": unit * float(p99),
    }


def _figures(
    turns: dict[tuple[int, str], list[dict[str, float]]], settings: IndexBenchSettings
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for (size, side), rounds in turns.items():
        for name in rounds[0]:
            figures[f"{size}.{side}.{name}"] = median(turn[name] for turn in rounds)
    for size in settings.sizes:
        theirs = turns.get((size, "arctic"), [])
        for name in theirs[0] if theirs else ():
            ratios = [
                arctic[name] / ours[name] if ours[name] else math.nan
                for ours, arctic in zip(turns[size, "paceline"], theirs, strict=True)
            ]
            if name != "start_tokens":
                figures[f"{size}.arctic_over_paceline.{name}"] = median(ratios)
    return figures


def _parse_sizes(_context: object, _option: object, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(float(size)) for size in value.split(","))
    except ValueError as error:
        raise ConfigError(f"--sizes is {value!r}; give numbers with commas: 1e5,1e6") from error
    if min(sizes) < 1000:  # noqa: PLR2004 -- a request's prompt and output
        raise ConfigError(f"--sizes is {value!r}; give at least 1000 tokens each")
    return sizes


def _positive(_context: object, option: click.Parameter, value: int) -> int:
    if value < 1:
        raise ConfigError(f"--{option.name} is {value}; give at least 1")
    return value


@click.command("index")
@click.option("--tokens", type=click.Path(path_type=Path), help=".npy of int32, -1 between files.")
@click.option("--traces", type=click.Path(path_type=Path), help="Or a folder of recorded traces,")
@click.option("--tokenizer", help="and the tokenizer that reads them (Hugging Face name, folder).")
@click.option("--sizes", default="1e5,1e6,1e7", show_default=True, callback=_parse_sizes)
@click.option("--rounds", default=3, show_default=True, callback=_positive)
@click.option("--calls", default=4000, show_default=True, callback=_positive)
@click.option("--arctic/--no-arctic", default=True, help="Compare with arctic-inference 0.3.0.")
@click.option("--peers", type=click.Path(path_type=Path), help="Folder that it is built in.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def index(
    tokens: Path | None,
    traces: Path | None,
    tokenizer: str | None,
    sizes: tuple[int, ...],
    rounds: int,
    calls: int,
    arctic: bool,
    peers: Path | None,
    json_file: Path | None,
) -> None:
    """What the draft memory costs: insert, bytes, propose, start, batch; quiet and beside writers.

    The text is --tokens FILE.npy, or --traces FOLDER with --tokenizer NAME.
    """
    make = _text_source(tokens, traces, tokenizer, max(sizes))
    settings = IndexBenchSettings(
        sizes=sizes,
        rounds=rounds,
        calls=calls,
        with_arctic=arctic,
        peers=peers or default_folder(),
    )
    write_report(run_index_bench(make(), settings), json_file)


def _text_source(
    tokens: Path | None, traces: Path | None, tokenizer: str | None, largest: int
) -> Callable[[], Text]:
    if tokens is not None and traces is None:
        return lambda: load_text(tokens)
    if tokens is None and traces is not None and tokenizer is not None:
        return lambda: tokenize_traces(traces, tokenizer, largest + largest // 10 + 300_000)
    raise ConfigError("give the text: --tokens FILE.npy, or --traces FOLDER and --tokenizer NAME")
