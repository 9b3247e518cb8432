"""`paceline bench drafters`: memory alone, and with each of some drafters beside it."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from paceline.benchmarks.learn.options import two_cores
from paceline.benchmarks.learn.prompts import read_prompts
from paceline.benchmarks.learn.records import Asked, Speed, SpeedWork, Workload
from paceline.benchmarks.learn.stack import run_worker
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

MEMORY: Final = "memory"
WARM_SHARE: Final = 0.25


def measured(
    work: SpeedWork, drafters: Mapping[str, str], repeats: int, folder: Path
) -> dict[str, list[Speed]]:
    """Speeds by name, each engine anew.

    Forwards, then backwards, again and again, so that what drifts is shared evenly.

    Args:
        work: all but the drafter.
        drafters: folders by name, "" for none.
        repeats: measurements of each.
        folder: for logs.
    """
    found: dict[str, list[Speed]] = {name: [] for name in drafters}
    names = list(drafters)
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            told = msgspec.structs.replace(work, drafter=drafters[name])
            found[name].append(msgspec.convert(run_worker(told, folder), Speed))
    return found


def figures(speeds: Mapping[str, Sequence[Speed]], beside: str) -> dict[str, float]:
    """Medians, and how many times those of one name they are."""
    found: dict[str, float] = {}
    digests = {speed.digest for its in speeds.values() for speed in its}
    for name, its in speeds.items():
        found[f"{name}.tokens_per_second"] = statistics.median(s.tokens_per_second for s in its)
        found[f"{name}.tokens_per_round"] = statistics.median(s.tokens_per_round for s in its)
    for name in speeds:
        found[f"{name}.times_{beside}"] = (
            found[f"{name}.tokens_per_second"] / found[f"{beside}.tokens_per_second"]
        )
    return found | {"identical": float(len(digests) == 1)}


def speed_work(
    target: str, prompts: Sequence[Asked], *, output: int, in_flight: int, draft: int, core: int
) -> SpeedWork:
    """What is measured, without a drafter yet; the first quarter of the prompts warms up."""
    return SpeedWork(
        target=target,
        drafter="",
        prompts=tuple(prompts),
        output_tokens=output,
        in_flight=in_flight,
        draft_tokens=draft,
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
@click.option("--workload", default="tau-bench:tau-airline", show_default=True)
@click.option("--held-out", default=48, show_default=True, help="Prompts of the last sessions.")
@click.option("--context-tokens", default=192, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@click.option("--in-flight", default=4, show_default=True)
@click.option("--draft-tokens", default=8, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def drafters(
    traces: Path,
    folders: tuple[Path, ...],
    target: str,
    workload: str,
    held_out: int,
    context_tokens: int,
    output_tokens: int,
    in_flight: int,
    draft_tokens: int,
    repeats: int,
    json_file: Path | None,
) -> None:
    """Tokens a second with memory alone, and with each drafter beside it.

    In the embedded engine on one core, greedily, one engine after the other. Ratios are to memory
    alone and to the first drafter. The prompts are those that `bench learn` measures by.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}; give 1 or more")
    core, _ = two_cores()
    renderer = Renderer(load_encoder(None if target == "smollm2" else target))
    kind = Workload.parse(workload)
    prompts = read_prompts(traces.absolute(), kind, renderer, context_tokens, held_out).held_out
    work = speed_work(
        target,
        prompts,
        output=output_tokens,
        in_flight=in_flight,
        draft=draft_tokens,
        core=core,
    )
    named = {f"drafter-{i}": str(folder.absolute()) for i, folder in enumerate(folders, 1)}
    with tempfile.TemporaryDirectory(prefix="paceline-drafters-") as scratch:
        speeds = measured(work, {MEMORY: "", **named}, repeats, Path(scratch))
    found = figures(speeds, MEMORY) | figures(speeds, "drafter-1")
    settings = {
        "drafters": [folder.name for folder in folders],
        "workload": workload,
        "prompts": len(prompts),
        "context_tokens": context_tokens,
        "output_tokens": output_tokens,
        "in_flight": in_flight,
        "draft_tokens": draft_tokens,
        "repeats": repeats,
    }
    write_report(Report("drafters", settings, found), json_file)
