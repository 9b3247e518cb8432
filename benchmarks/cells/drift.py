"""The command `paceline bench drift`: a workload that changes its kind within one context."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from paceline.benchmarks.cells.command import Engines, chosen_ways, run_ways
from paceline.benchmarks.cells.records import BANDIT, Cell
from paceline.benchmarks.cells.turns import Plan, Speeds, turn_figures, turn_table
from paceline.benchmarks.report import Report, write_json
from paceline.errors import ConfigError

WAYS: Final = ("fixed-2", "fixed-4", "fixed-16", "memory")
DEFAULTS: Final = Plan()


def turn_cell(
    kinds: tuple[str, str],
    in_flight: int,
    numbers: tuple[int, int],
    order: int,
    plan: Plan = DEFAULTS,
) -> Cell:
    """Requests of one kind, then of another, as one tenant's.

    Args:
        kinds: sources of the prompts, before the turn and after it.
        in_flight: requests that are answered at a time; as many more warm up.
        numbers: requests of each kind, the warm-up not counted.
        order: seed of the order of each kind's prompts.
        plan: how what comes after the turn is looked at.

    Raises:
        ConfigError: the kinds are the same, or there are too few requests of one.
    """
    (source, then), (before, after) = kinds, numbers
    if source == then:
        raise ConfigError(f"both kinds are {source!r}; name two, or nothing turns")
    if before < 2 * in_flight:
        raise ConfigError(
            f"--before is {before}; give at least {2 * in_flight}, twice --in-flight, so that what "
            "is counted before the turn is not the warm-up's"
        )
    if after < (least := plan.within + plan.window + in_flight):
        raise ConfigError(
            f"--after is {after}; give at least {least}: --within {plan.within}, one --window of "
            f"{plan.window} and the {in_flight} in flight at the end"
        )
    return Cell(source, in_flight, in_flight + before + after, in_flight, then, after, order)


@click.command()
@click.argument("traces", type=click.Path(path_type=Path))
@click.argument("first")
@click.argument("second")
@click.option(
    "--way",
    "ways",
    multiple=True,
    help="May be repeated; memory and fused also with the bandit above.  "
    f"[default: {', '.join(WAYS)}; with --drafter also fused]",
)
@click.option("--model", type=click.Path(path_type=Path), help="[default: SmolLM2-135M]")
@click.option("--drafter", type=click.Path(path_type=Path), help="For drafter and fused.")
@click.option("--in-flight", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--before", default=96, show_default=True, help="Requests of the first kind.")
@click.option("--after", default=144, show_default=True, help="Requests of the second kind.")
@click.option(
    "--within",
    default=DEFAULTS.within,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests by which the bandit is to be back.",
)
@click.option(
    "--window",
    default=DEFAULTS.window,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests that are looked at together.",
)
@click.option(
    "--output-tokens",
    default=48,
    show_default=True,
    type=click.IntRange(min=2),
    help="Of a reply at most, on average: from half to half as many more.",
)
@click.option(
    "--repeats",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Runs; each has an order of prompts of its own, cores are swapped each time.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def drift(
    traces: Path,
    first: str,
    second: str,
    ways: tuple[str, ...],
    model: Path | None,
    drafter: Path | None,
    in_flight: int,
    before: int,
    after: int,
    within: int,
    window: int,
    output_tokens: int,
    repeats: int,
    json_file: Path | None,
) -> None:
    """How soon the bandit is at the best way again, after a workload has changed its kind.

    A real vLLM answers prompts of the source FIRST, then of SECOND, as one tenant's and one
    workload's: the bandit's context stays, what it learned of it is wrong. Each way runs beside one
    that is off, a core each. Requests are counted by their ends, from the moment at which the first
    prompt of SECOND is taken up. The best way is that without a bandit, none left out, which says
    most tokens a second over all that comes after, each beside its own engine that is off. Needs
    two cores that nobody else uses.
    """
    named = ways or (*WAYS, *(["fused"] if drafter else []))
    chosen = chosen_ways(named, has_drafter=drafter is not None, bandit=True)
    if not any(way.endswith(BANDIT) for way in chosen):
        raise ConfigError(f"--way is {', '.join(chosen)}: none has a bandit; add memory{BANDIT}")
    plan = Plan(within, window)
    repeated = [
        (turn_cell((first, second), in_flight, (before, after), order, plan),)
        for order in range(repeats)
    ]
    results = run_ways(chosen, Engines(traces, model, drafter, output_tokens), repeated)
    name = repeated[0][0].name
    runs = {way: [(own[name], off[name]) for own, off in pairs] for way, pairs in results.items()}
    speeds = Speeds(runs, plan)
    click.echo(turn_table(speeds))
    settings = {
        "kinds": [first, second],
        "ways": chosen,
        "in_flight": in_flight,
        "requests": [before, after],
        "within": within,
        "window": window,
        "repeats": repeats,
        "output_tokens": output_tokens,
        "drafter": drafter.name if drafter else "",
    }
    if json_file is not None:
        report = Report(bench="drift", settings=settings, figures=turn_figures(speeds))
        write_json(report, json_file)
