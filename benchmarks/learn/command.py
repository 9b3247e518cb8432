"""The command `paceline bench learn`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from paceline.benchmarks.learn.options import (
    branches_option,
    dtype_option,
    run_options,
    two_cores,
)
from paceline.benchmarks.learn.plot import draw
from paceline.benchmarks.learn.records import Workload
from paceline.benchmarks.learn.run import LearnBenchSettings, LearnRun, figures
from paceline.benchmarks.report import Report, write_report

WORKLOADS: Final = ("tau-bench:tau-airline", "intercode-sql")


@click.command()
@click.argument("traces", type=click.Path(path_type=Path))
@click.option(
    "--drafter",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the drafter to begin with, distilled on something else.",
)
@click.option("--target", default="smollm2", show_default=True)
@dtype_option
@click.option("--workload", default=WORKLOADS[0], show_default=True, help="SOURCE[:TASKS].")
@click.option("--then", default=WORKLOADS[1], show_default=True, help="What traffic turns to.")
@click.option("--tokens", default=200_000, show_default=True, help="Said in the first workload.")
@click.option("--then-tokens", default=50_000, show_default=True, help="And in the second.")
@click.option("--mark-tokens", default=10_000, show_default=True, help="Said between two marks.")
@click.option("--chunk-tokens", default=5_000, show_default=True, help="Between two pauses.")
@click.option("--pause-seconds", default=180.0, show_default=True, help="Longest pause.")
@click.option("--held-out", default=48, show_default=True, help="Prompts to measure by.")
@click.option("--context-tokens", default=384, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--in-flight", default=8, show_default=True)
@click.option("--draft-tokens", default=8, show_default=True)
@branches_option
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it there.")
@run_options
def learn(
    traces: Path,
    drafter: Path,
    target: str,
    workload: str,
    then: str,
    tokens: int,
    then_tokens: int,
    work: Path | None,
    plot: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """A drafter that learns from what is served, beside the same one frozen.

    Prompts of recorded agents are asked through the proxy; the engine's own replies are what is
    learned from, in pauses between. Each mark replays both drafters on the target's replies to
    prompts of other tasks. Needs two cores.
    """
    cores = two_cores()
    settings = LearnBenchSettings(
        traces=str(traces.absolute()),
        target=target,
        drafter=str(drafter.absolute()),
        workloads=(Workload.parse(workload), Workload.parse(then)),
        tokens=(tokens, then_tokens),
        **options,
    )
    with tempfile.TemporaryDirectory(prefix="paceline-learn-") as scratch:
        folder = work.absolute() if work is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        run = LearnRun(settings, folder, cores)
        frozen, learned = run.run()
    if plot is not None:
        draw(run.marks, plot)
    said = msgspec.to_builtins(settings)
    said["traces"], said["drafter"] = traces.name, drafter.name
    said["workloads"] = [each.name for each in settings.workloads]
    report = Report("learn", said, figures(run.marks, frozen, learned))
    write_report(report, json_file)
