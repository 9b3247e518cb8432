"""`paceline bench drafters`: memory alone, and with each of some drafters beside it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import numpy as np
import numpy.typing as npt

from paceline.benchmarks.learn.options import branches_option, dtype_option, two_cores
from paceline.benchmarks.learn.prompts import read_prompts
from paceline.benchmarks.learn.records import Asked, Speed, SpeedWork, Workload
from paceline.benchmarks.learn.stack import run_worker
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

OFF: Final = "off"
MEMORY: Final = "memory"
WARM_SHARE: Final = 0.25
NUM_RESAMPLES: Final = 2000
INTERVAL: Final = (2.5, 97.5)
"""Percents between which 95 % of a bootstrap's resamples lie."""


def measured(work: SpeedWork, names: Sequence[str], repeats: int, folder: Path) -> dict[str, Speed]:
    """Speeds by name; turns of all repeats, each of which begins with engines anew.

    Args:
        work: with the drafters.
        names: of them, in their order.
        repeats: processes, one after the other.
        folder: for logs.
    """
    runs = [
        msgspec.convert(run_worker(work, folder), list[Speed], strict=False) for _ in range(repeats)
    ]
    return {name: _joined([run[i] for run in runs]) for i, name in enumerate(names)}


def _joined(speeds: Sequence[Speed]) -> Speed:
    return Speed(
        num_tokens=tuple(num for speed in speeds for num in speed.num_tokens),
        seconds=tuple(each for speed in speeds for each in speed.seconds),
        tokens_per_round=statistics.fmean(speed.tokens_per_round for speed in speeds),
        digest=" ".join(sorted({speed.digest for speed in speeds})),
    )


def figures(speeds: Mapping[str, Speed], beside: str) -> dict[str, float]:
    """Flat names to numbers; how many times the speed of one they have, with a 95 % interval."""
    found: dict[str, float] = {}
    digests = {speed.digest for speed in speeds.values()}
    for name, its in speeds.items():
        found[f"{name}.tokens_per_second"] = its.tokens_per_second
        found[f"{name}.tokens_per_round"] = its.tokens_per_round
        times, low, high = times_as_fast(its, speeds[beside])
        found[f"{name}.times_{beside}"] = times
        found[f"{name}.times_{beside}.low"] = low
        found[f"{name}.times_{beside}.high"] = high
    is_one = len(digests) == 1 and " " not in next(iter(digests))
    return found | {"identical": float(is_one)}


def times_as_fast(speed: Speed, beside: Speed) -> tuple[float, float, float]:
    """How many times as fast, and the 95 % interval of a bootstrap over turns.

    Args:
        speed: of one engine.
        beside: of the other, turn by turn the same prompts.
    """
    rng = np.random.default_rng(0)
    turns = len(speed.seconds)
    drawn = rng.integers(0, turns, (NUM_RESAMPLES, turns))

    def rates(its: Speed) -> npt.NDArray[np.float64]:
        num_tokens, seconds = np.array(its.num_tokens), np.array(its.seconds)
        found: npt.NDArray[np.float64] = num_tokens[drawn].sum(1) / seconds[drawn].sum(1)
        return found

    low, high = np.percentile(rates(speed) / rates(beside), INTERVAL)
    return speed.tokens_per_second / beside.tokens_per_second, float(low), float(high)


def speed_work(
    target: str,
    dtype: str,
    drafters: Sequence[str | None],
    prompts: Sequence[Asked],
    *,
    output: int,
    in_flight: int,
    draft: int,
    branches: int,
    core: int,
    min_probability: float = 0.1,
    apart: bool = False,
) -> SpeedWork:
    """What is measured; the first quarter of the prompts warms up."""
    return SpeedWork(
        target=target,
        dtype=dtype,
        drafters=tuple(drafters),
        prompts=tuple(prompts),
        output_tokens=output,
        in_flight=in_flight,
        draft_tokens=draft,
        branches=branches,
        min_probability=min_probability,
        apart=apart,
        num_warm=round(WARM_SHARE * len(prompts)),
        core=core,
    )


@click.command("drafters")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option(
    "--drafter",
    "folders",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Its folder; may be repeated.",
)
@click.option("--target", default="smollm2", show_default=True)
@dtype_option
@click.option("--workload", default="tau-bench:tau-airline", show_default=True)
@click.option("--held-out", default=48, show_default=True, help="Prompts of the last sessions.")
@click.option("--context-tokens", default=192, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--in-flight", default=4, show_default=True)
@click.option("--draft-tokens", default=8, show_default=True)
@branches_option
@click.option("--min-probability", default=0.1, show_default=True, help="Less is not drafted.")
@click.option(
    "--apart", is_flag=True, help="Each request is of a tenant of its own, without memory."
)
@click.option("--repeats", default=1, show_default=True, help="With engines anew.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def drafters(
    traces: Path,
    folders: tuple[Path, ...],
    target: str,
    dtype: str,
    workload: str,
    held_out: int,
    context_tokens: int,
    output_tokens: int,
    in_flight: int,
    draft_tokens: int,
    branches: int,
    min_probability: float,
    apart: bool,
    repeats: int,
    json_file: Path | None,
) -> None:
    """Tokens a second without drafts, with memory alone, and with each drafter beside it.

    In the embedded engine on one core, greedily; the engines answer the same prompts by turns, as
    many at a time as are in flight. Ratios are to memory alone and to the first drafter, with 95 %
    intervals. The prompts are those that `bench learn` measures by.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; give 1 or more")
    core, _ = two_cores()
    renderer = Renderer(load_encoder(None if target == "smollm2" else target))
    kind = Workload.parse(workload)
    prompts = read_prompts(traces.absolute(), kind, renderer, context_tokens, held_out).held_out
    named: dict[str, str | None] = {OFF: None, MEMORY: ""}
    named |= {f"drafter-{i}": str(folder.absolute()) for i, folder in enumerate(folders, 1)}
    work = speed_work(
        target,
        dtype,
        list(named.values()),
        prompts,
        output=output_tokens,
        in_flight=in_flight,
        draft=draft_tokens,
        branches=branches,
        min_probability=min_probability,
        apart=apart,
        core=core,
    )
    with tempfile.TemporaryDirectory(prefix="paceline-drafters-") as scratch:
        speeds = measured(work, list(named), repeats, Path(scratch))
    found = figures(speeds, MEMORY) | figures(speeds, "drafter-1")
    settings = {
        "drafters": [folder.name for folder in folders],
        "workload": workload,
        "prompts": len(prompts),
        "context_tokens": context_tokens,
        "output_tokens": output_tokens,
        "in_flight": in_flight,
        "draft_tokens": draft_tokens,
        "branches": branches,
        "min_probability": min_probability,
        "apart": apart,
        "dtype": dtype,
        "repeats": repeats,
    }
    write_report(Report("drafters", settings, found), json_file)
