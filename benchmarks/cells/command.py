"""The command `paceline bench cells`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import click
import msgspec

from paceline.benchmarks.cells.engine import environment
from paceline.benchmarks.cells.records import (
    BANDIT,
    FIXED,
    MAX_FIXED,
    OFF,
    Cell,
    CellResult,
    CellsSettings,
)
from paceline.benchmarks.report import Report, write_json
from paceline.errors import ConfigError

AGENT, CONTROL = "tau-bench", "spec-bench"
WAYS: Final = ("memory", "fixed-2", "fixed-4", "fixed-16")
IN_FLIGHT: Final = (1, 4, 16, 32)
PROMPTS_EACH: Final = {1: 16, 4: 12, 16: 6, 32: 5}
"""Prompts for each request in flight: one alone needs more of them to be told from noise."""
WARM_SHARE: Final = 0.25
NUM_ENGINES: Final = 2
"""Beside each other."""
WITH_BANDIT: Final = ("memory", "fused")
"""Ways that choose by time, so that a bandit can stand above them."""
WITH_DRAFTER: Final = ("drafter", "fused", f"fused{BANDIT}")


@contextmanager
def running_engine(settings: CellsSettings, log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """One engine's process, ended with the body."""
    command = [sys.executable, "-m", "paceline.benchmarks.cells.engine"]
    with subprocess.Popen(
        [*command, msgspec.json.encode(settings).decode()],
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def measure(pair: Sequence[CellsSettings], folder: Path) -> list[dict[str, CellResult]]:
    """Results by cell of engines that run beside each other.

    Raises:
        ConfigError: one of them ended.
    """
    results: list[dict[str, CellResult]] = [{} for _ in pair]
    with ExitStack() as stack:
        processes = []
        for settings in pair:
            log = stack.enter_context((folder / f"{settings.way}-{settings.core}.log").open("wb"))
            processes.append(stack.enter_context(running_engine(settings, log)))
        for process, settings in zip(processes, pair, strict=True):
            _line(process, settings, folder)
        for cell in pair[0].cells:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            for process, settings, found in zip(processes, pair, results, strict=True):
                line = _line(process, settings, folder)
                found[cell.name] = msgspec.json.decode(line, type=CellResult)
    return results


def _line(process: subprocess.Popen[str], settings: CellsSettings, folder: Path) -> str:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        log = (folder / f"{settings.way}-{settings.core}.log").read_text(errors="replace")
        raise ConfigError(f"the engine of {settings.way} ended:\n{log[-2000:]}")
    return line


@dataclass(frozen=True, slots=True)
class Engines:
    """What the engines of all ways have in common.

    Attributes:
        traces: folder of recorded traces.
        model: Hugging Face folder of the target; None: the packaged one.
        drafter: that of those ways that have one.
        output_tokens: of a reply at most, on average.
    """

    traces: Path
    model: Path | None
    drafter: Path | None
    output_tokens: int

    def told(self, way: str, target: Path, core: int, cells: tuple[Cell, ...]) -> CellsSettings:
        """What one of them is told."""
        drafter = self.drafter if way in WITH_DRAFTER else None
        return CellsSettings(
            traces=str(self.traces.absolute()),
            target=str(target.absolute()),
            way=way,
            drafter=str(drafter.absolute()) if drafter else "",
            core=core,
            cells=cells,
            output_tokens=self.output_tokens,
        )


Results = dict[str, list[list[dict[str, CellResult]]]]
"""Of each way, runs of (its own cells, those of the engine beside it)."""


def run_ways(ways: Sequence[str], engines: Engines, repeats: Sequence[tuple[Cell, ...]]) -> Results:
    """Each way beside an engine that is off, in the cells of each repeat; cores are swapped.

    Raises:
        ConfigError: a way cannot be, there is one core only, or an engine ended.
    """
    check_ways(ways, engines.drafter)
    cores = sorted(os.sched_getaffinity(0))[:NUM_ENGINES]
    if len(cores) < NUM_ENGINES:
        raise ConfigError("one core is allowed; two are needed, one for each engine")
    results: Results = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="paceline-cells-") as scratch:
        target = engines.model or _exported(Path(scratch))
        for repeat, wanted in enumerate(repeats):
            for way in ways:
                pair = [
                    engines.told(each, target, cores[(place + repeat) % NUM_ENGINES], wanted)
                    for place, each in enumerate((way, OFF))
                ]
                results[way].append(measure(pair, Path(scratch)))
    return results


def figures(results: Mapping[str, Sequence[list[dict[str, CellResult]]]]) -> dict[str, float]:
    """Times the speed without speculation, by way and cell, and what follows from them.

    Args:
        results: of each way, runs of (its own, that of the engine beside it).
    """
    found: dict[str, float] = {}
    ratios: dict[str, dict[str, float]] = {}
    for way, runs in results.items():
        ratios[way] = {}
        for name in runs[0][0]:
            of_cell = sorted(mine[name].speed / off[name].speed for mine, off in runs)
            ratios[way][name] = of_cell[len(of_cell) // 2]
            found[f"{way}.{name}.times_off"] = ratios[way][name]
            mine, off = runs[0][0][name], runs[0][1][name]
            found[f"{way}.{name}.off_tokens_per_second"] = off.speed
            found[f"{way}.{name}.accepted_per_drafted"] = (
                mine.accepted_tokens / mine.draft_tokens if mine.draft_tokens else float("nan")
            )
            same = [mine[name].digest == off[name].digest for mine, off in runs]
            found[f"{way}.{name}.identical"] = sum(same) / len(same)
        found[f"{way}.least_times_off"] = min(ratios[way].values())
        found[f"{way}.mean_times_off"] = sum(ratios[way].values()) / len(ratios[way])
    fixed = {way: each for way, each in ratios.items() if way.startswith(FIXED)}
    for way, each in ratios.items():
        if fixed and way not in fixed:
            best = {name: max(1.0, *(other[name] for other in fixed.values())) for name in each}
            found[f"{way}.least_times_best_fixed"] = min(each[n] / best[n] for n in each)
            overall = max(1.0, *(sum(other.values()) / len(other) for other in fixed.values()))
            found[f"{way}.mean_times_best_fixed_overall"] = found[f"{way}.mean_times_off"] / overall
    return found


def make_cells(
    sources: Sequence[str], in_flight: Sequence[int], prompts_factor: float
) -> tuple[Cell, ...]:
    """Every workload under every load, the lightest first."""
    cells = []
    for number in in_flight:
        each = PROMPTS_EACH.get(number, 6)
        num_prompts = max(4 * number, round(number * each * prompts_factor))
        num_warm = max(1, round(num_prompts * WARM_SHARE))
        cells += [Cell(source, number, num_prompts, num_warm) for source in sources]
    return tuple(cells)


def chosen_ways(ways: Sequence[str], *, has_drafter: bool, bandit: bool) -> list[str]:
    """The ways to run, each once.

    Args:
        ways: that are named; without any `WAYS`, and fused where there is a drafter.
        has_drafter: whether one is given.
        bandit: whether each that chooses by time is also run with the bandit above it.
    """
    chosen = list(ways) or [*WAYS, *(["fused"] if has_drafter else [])]
    if bandit:
        chosen += [f"{way}{BANDIT}" for way in chosen if way in WITH_BANDIT]
    return list(dict.fromkeys(chosen))


def check_ways(ways: Sequence[str], drafter: Path | None) -> None:
    """Raises ConfigError where one is unknown, or wants a drafter that is not there."""
    for way in ways:
        number = way.removeprefix(FIXED)
        if way.startswith(FIXED) and number.isdigit() and 1 <= int(number) <= MAX_FIXED:
            continue
        if way not in ("drafter", *WITH_BANDIT, *(f"{each}{BANDIT}" for each in WITH_BANDIT)):
            raise ConfigError(
                f"--way is {way!r}; give memory, fused, drafter, or fixed-K with K from 1 to "
                f"{MAX_FIXED}; the first two also with {BANDIT} behind"
            )
        if way in WITH_DRAFTER and drafter is None:
            raise ConfigError(f"--way {way} needs --drafter FOLDER")


@click.command()
@click.argument("traces", type=click.Path(path_type=Path))
@click.option(
    "--way",
    "ways",
    multiple=True,
    help=f"May be repeated.  [default: {', '.join(WAYS)}; with --drafter also fused]",
)
@click.option("--bandit", is_flag=True, help="Run memory and fused also with the bandit above.")
@click.option("--model", type=click.Path(path_type=Path), help="[default: SmolLM2-135M]")
@click.option("--drafter", type=click.Path(path_type=Path), help="For drafter and fused.")
@click.option("--source", "sources", multiple=True, help=f"[default: {AGENT}, {CONTROL}]")
@click.option("--in-flight", multiple=True, type=int, help="[default: 1, 4, 16, 32]")
@click.option("--prompts-factor", default=1.0, show_default=True, help="Times as many prompts.")
@click.option(
    "--output-tokens",
    default=48,
    show_default=True,
    help="Of a reply at most, on average: from half to half as many more.",
)
@click.option("--repeats", default=1, show_default=True, help="Runs; cores are swapped each time.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def cells(
    traces: Path,
    ways: tuple[str, ...],
    bandit: bool,
    model: Path | None,
    drafter: Path | None,
    sources: tuple[str, ...],
    in_flight: tuple[int, ...],
    prompts_factor: float,
    output_tokens: int,
    repeats: int,
    json_file: Path | None,
) -> None:
    """Throughput of vLLM in every cell of load, in that of the same vLLM without speculation.

    Each way runs beside one that is off, a core each, in the same cell at the same time. Needs two
    cores that nobody else uses.
    """
    chosen = chosen_ways(ways, has_drafter=drafter is not None, bandit=bandit)
    wanted = make_cells(sources or (AGENT, CONTROL), in_flight or IN_FLIGHT, prompts_factor)
    engines = Engines(traces, model, drafter, output_tokens)
    found = figures(run_ways(chosen, engines, [wanted] * repeats))
    click.echo(_table(found, chosen, [cell.name for cell in wanted]))
    settings = {
        "ways": chosen,
        "repeats": repeats,
        "output_tokens": output_tokens,
        "drafter": drafter.name if drafter else "",
        "cells": {cell.name: [cell.num_prompts, cell.num_warm] for cell in wanted},
    }
    if json_file is not None:
        write_json(Report(bench="cells", settings=settings, figures=found), json_file)


def _table(found: Mapping[str, float], ways: Sequence[str], names: Sequence[str]) -> str:
    width = max(map(len, names))
    lines = [f"{'times off':<{width}}  {'  '.join(f'{way:>9}' for way in ways)}"]
    for name in names:
        row = "  ".join(f"{found[f'{way}.{name}.times_off']:9.2f}" for way in ways)
        lines.append(f"{name:<{width}}  {row}")
    rest = [name for name in found if "_off" in name or "_best_" in name]
    rest = [name for name in rest if name.count(".") == 1]
    return "\n".join([*lines, "", *(f"{name} {found[name]:.3f}" for name in rest)])


def _exported(folder: Path) -> Path:
    from paceline.adapters.embedded.packaged import export_packaged_model

    return export_packaged_model(folder / "smollm2")
