"""The command `paceline bench workloads`."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.benchmarks.report import write_report
from paceline.benchmarks.workloads.run import WorkloadBenchSettings, run_workload_bench, table

DEFAULTS = WorkloadBenchSettings()


@click.command()
@click.option(
    "--traces",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of recorded agent traces.",
)
@click.option(
    "--max-per-kind",
    default=DEFAULTS.max_per_kind,
    show_default=True,
    type=click.IntRange(min=2),
    help="Most sessions of a kind.",
)
@click.option(
    "--orders",
    default=DEFAULTS.orders,
    show_default=True,
    type=click.IntRange(min=1),
    help="Random orders of arrival.",
)
@click.option(
    "--requests",
    default=DEFAULTS.requests,
    show_default=True,
    type=click.IntRange(min=1),
    help="Sessions of each wording that the proxy's naming is timed with.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the report."
)
def workloads(
    traces: Path, max_per_kind: int, orders: int, requests: int, json_file: Path | None
) -> None:
    """How well kinds of work are told apart by the wording of requests, and at what cost.

    Known kinds are source, agent and task family of recorded sessions. They are named three times:
    as recorded, with a line of its own in each session's system prompt, and with system prompts and
    tools removed; by fingerprint, by Paceline's clusters, and by scikit-learn's Birch and
    MiniBatchKMeans on the same features, each with its best parameter on the half of the tasks that
    is not reported on.
    """
    settings = WorkloadBenchSettings(max_per_kind=max_per_kind, orders=orders, requests=requests)
    report = run_workload_bench(traces, settings)
    write_report(report, json_file)
    click.echo(f"\n{table(report.figures)}")
