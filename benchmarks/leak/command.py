"""The command `paceline bench leak`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec

from paceline.benchmarks.leak.classify import CLASSIFIERS, FEATURES, accuracy
from paceline.benchmarks.leak.prompts import make_prompts, read_prompts
from paceline.benchmarks.leak.recordings import (
    Recordings,
    RecordSettings,
    read_recordings,
    record,
    write_recordings,
)
from paceline.benchmarks.leak.ways import (
    SHAPES,
    WAYS,
    Shaping,
    WayResult,
    costs,
    crowd,
    go,
    running,
)
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

MIN_PROMPTS: Final = 2
MIN_REPEATS: Final = 2
MAX_FOLDS: Final = 4


class LeakSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured.

    Attributes:
        shaping: the proxy's.
        folds: parts of the repeats, each named by what was learned of the others.
        concurrency: streams replayed at a time.
        crowd: padded streams at once, for the cost of a tick; 0 leaves it out.
    """

    shaping: Shaping = Shaping()
    folds: int = 4
    concurrency: int = 8
    crowd: int = 1000


def run_leak(recordings: Recordings, settings: LeakSettings, folder: Path) -> dict[str, float]:
    """Replay the recordings in every way, listen, and name their prompts; the figures."""
    with (
        click.progressbar(length=2 * len(recordings.streams), label="replaying") as bar,
        running(recordings, settings.shaping, folder) as proxy,
    ):

        async def all_ways() -> tuple[dict[str, WayResult], dict[str, float]]:
            results = {
                way: await go(
                    proxy, recordings, way, concurrency=settings.concurrency, on_done=bar.update
                )
                for way in WAYS
            }
            crowded = {
                f"crowd_{shape}_{name}": value
                for shape in (SHAPES if settings.crowd else ())
                for name, value in (
                    await crowd(proxy, recordings.longest, shape, settings.crowd)
                ).items()
            }
            return results, crowded

        results, crowded = asyncio.run(all_ways())
    return figures(results, folds=settings.folds) | crowded


def figures(results: dict[str, WayResult], *, folds: int) -> dict[str, float]:
    """Flat figures: how often prompts are named rightly, and what each way costs."""
    traces = results["open"].traces
    flat = {
        "chance": 1 / len({trace.prompt for trace in traces}),
        "streams": float(len(traces)),
        "differing": float(sum(result.num_differing for result in results.values())),
    }
    for way, result in results.items():
        for kind in FEATURES:
            for classifier in CLASSIFIERS:
                flat[f"{way}_{kind}_{classifier}"] = accuracy(
                    result.traces, kind, classifier, folds=folds
                )
    for shape in SHAPES:
        found = costs(results[shape], results["open"])
        flat |= {f"{shape}_{name}": value for name, value in found.items()}
    return flat


@click.command("leak")
@click.option(
    "--prompts",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder with prompts (*.jsonl.gz, `turns` in each line).  [default: made up]",
)
@click.option("--num-prompts", default=20, show_default=True, help="Prompts to tell apart.")
@click.option("--repeats", default=8, show_default=True, help="Streams of each prompt.")
@click.option("--output-tokens", default=64, show_default=True, help="Most tokens of a reply.")
@click.option("--temperature", default=0.3, show_default=True, help="Of the target.")
@click.option("--model", default="", help="Folder of the target.  [default: the packaged one]")
@click.option("--seed", default=1, show_default=True, help="Chooses the prompts.")
@click.option(
    "--recordings",
    "recordings_file",
    type=click.Path(path_type=Path),
    help="Use the streams in this file; if it does not exist, keep them there.",
)
@click.option("--interval-ms", default=100, show_default=True, help="Between two ticks.")
@click.option("--bytes-per-tick", default=4096, show_default=True, help="Of a padded stream.")
@click.option("--round-ticks", default=10, show_default=True, help="A padded end's multiple.")
@click.option("--concurrency", default=8, show_default=True, help="Streams replayed at a time.")
@click.option(
    "--crowd", default=1000, show_default=True, help="Streams at once, to measure ticks; 0: none."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def leak(
    folder: Path | None,
    num_prompts: int,
    repeats: int,
    output_tokens: int,
    temperature: float,
    model: str,
    seed: int,
    recordings_file: Path | None,
    interval_ms: int,
    bytes_per_tick: int,
    round_ticks: int,
    concurrency: int,
    crowd: int,
    json_file: Path | None,
) -> None:
    """What times and sizes of streams' packets tell of the prompt, shaped and not.

    The embedded engine answers every prompt several times, with drafts and without. Its streams are
    replayed through a real proxy, byte for byte at their times, for an eavesdropper who trains a
    classifier on some of the repeats and names the prompts of the others.
    """
    _check("--num-prompts", num_prompts, MIN_PROMPTS)
    _check("--repeats", repeats, MIN_REPEATS)
    _check("--concurrency", concurrency, 1)
    how = RecordSettings(
        repeats=repeats, output_tokens=output_tokens, temperature=temperature, model=model
    )
    settings = LeakSettings(
        shaping=Shaping(
            interval_ms=interval_ms, bytes_per_tick=bytes_per_tick, round_ticks=round_ticks
        ),
        folds=min(MAX_FOLDS, repeats),
        concurrency=concurrency,
        crowd=crowd,
    )
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        if recordings_file is not None and recordings_file.exists():
            recordings = read_recordings(recordings_file)
        else:
            if folder is None:
                prompts = make_prompts(num_prompts, seed=seed)
            else:
                prompts = read_prompts(folder, num_prompts, seed=seed)
            recordings = _record(prompts, how, Path(scratch))
            if recordings_file is not None:
                write_recordings(recordings, recordings_file)
        flat = run_leak(recordings, settings, Path(scratch))
    told = msgspec.to_builtins({"replay": settings, "recorded": recordings.how})
    # a folder by its name: where it lies on this machine tells a reader nothing
    told["recorded"]["model"] = Path(recordings.how.model).name
    write_report(Report(bench="leak", settings=told, figures=flat), json_file)


def _record(prompts: list[str], how: RecordSettings, folder: Path) -> Recordings:
    count = len(prompts) * (1 + 2 * how.repeats)
    with click.progressbar(length=count, label="recording") as bar:
        return record(prompts, how, folder / "engine.log", on_done=bar.update)


def _check(option: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{option} is {value}; give at least {least}")
