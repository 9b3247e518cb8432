"""The command `paceline bench exact`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from paceline.adapters.embedded.precision import DTYPES
from paceline.adapters.embedded.target import Target
from paceline.benchmarks.exact.judge import (
    ALL,
    Difference,
    differences,
    frequency_figures,
    speeds,
)
from paceline.benchmarks.exact.prompts import read_prompts
from paceline.benchmarks.exact.records import MODE_NAMES, MODES, SOURCES, ExactSettings
from paceline.benchmarks.exact.run import batches, run_modes
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_json

DEFAULTS: Final = ExactSettings(traces="")
ROUNDING: Final = 1e-3
"""Most that the target may prefer one token to another, in nats, for rounding to decide."""
COLUMNS: Final = (
    ("identical", "identical", 0),
    ("of", "replies", 0),
    ("looping", "looping", 0),
    ("tokens/step", "tokens_per_step", 2),
    ("drafted/step", "drafted_per_step", 2),
    ("accepted", "acceptance", 2),
    ("with model", "with_model", 2),
    ("tokens/s", "tokens_per_second", 1),
    ("times off", "times_off", 2),
    ("by CPU time", "cpu_times_off", 2),
)


def run_exact(settings: ExactSettings, folder: Path) -> tuple[Report, list[Difference]]:
    """Answer all prompts in all modes; the figures, and each reply that differs."""
    renderer = Renderer(load_encoder(settings.model or None))
    prompts = [
        prompt
        for source in settings.sources
        for prompt in read_prompts(
            Path(settings.traces),
            source,
            renderer,
            num_prompts=settings.prompts,
            num_turns=settings.turns,
            context_tokens=settings.context_tokens,
        )
    ]
    prompts = [prompt for batch in batches(settings, prompts) for prompt in batch]
    target = Target.load(Path(settings.model) if settings.model else None, dtype=settings.dtype)
    drafter = None
    if settings.drafter:
        drafter = Target.load_drafter(Path(settings.drafter), dtype=settings.dtype)
    with click.progressbar(length=len(prompts), label="prompts") as bar:
        results = run_modes(
            settings,
            prompts,
            target,
            drafter,
            folder,
            clock=time.perf_counter,
            on_done=bar.update,
        )
    differing = list(differences(settings, prompts, results, target))
    flat = speeds(results) | {
        "differing": len(differing),
        "largest_gap": max((found.gap for found in differing), default=0.0),
    }
    if settings.temperature > 0:
        flat |= frequency_figures(settings, prompts, results, target)
    said = msgspec.to_builtins(settings)
    for name in ("traces", "model", "drafter"):
        # a folder by its name: where it lies on this machine tells a reader nothing
        said[name] = Path(said[name]).name
    return Report(bench="exact", settings=said, figures=flat), differing


def table(figures: Mapping[str, float], sources: tuple[str, ...]) -> str:
    """Markdown: a line for each source and mode."""
    lines = [["prompts", "drafts", *(title for title, _, _ in COLUMNS)]]
    lines.append(["---"] * len(lines[0]))
    lines += [
        [
            source,
            mode.name,
            *(_cell(figures, f"{source}.{mode.name}.{n}", d) for _, n, d in COLUMNS),
        ]
        for source in (*sources, ALL)
        for mode in MODES
        if f"{source}.{mode.name}.replies" in figures
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(figures: Mapping[str, float], name: str, digits: int) -> str:
    value = figures[name]
    return "" if value != value else f"{value:.{digits}f}"  # noqa: PLR0124  NaN


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        yield Path(scratch)


@click.command("exact")
@click.option("--traces", required=True, help="Folder of recorded traces and prompts.")
@click.option("--model", default="", help="Hugging Face folder of the target.  [default: SmolLM2]")
@click.option("--drafter", default="", help="Folder of a small model that drafts.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default=DEFAULTS.dtype,
    show_default=True,
    help="What both compute in.",
)
@click.option(
    "--source", "sources", multiple=True, help=f"May be repeated.  [default: {', '.join(SOURCES)}]"
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(MODE_NAMES),
    help="May be repeated.  [default: all]",
)
@click.option("--prompts", default=DEFAULTS.prompts, show_default=True, help="Of each source.")
@click.option("--turns", default=DEFAULTS.turns, show_default=True, help="Of each conversation.")
@click.option("--context-tokens", default=DEFAULTS.context_tokens, show_default=True)
@click.option("--output-tokens", default=DEFAULTS.output_tokens, show_default=True)
@click.option(
    "--concurrency", default=DEFAULTS.concurrency, show_default=True, help="Requests in flight."
)
@click.option(
    "--draft-tokens",
    default=DEFAULTS.draft_tokens,
    show_default=True,
    help="Most tokens drafted a step.",
)
@click.option(
    "--draft-steps",
    default=DEFAULTS.draft_steps,
    show_default=True,
    help="Most passes of the drafter a step.",
)
@click.option(
    "--always-draft", is_flag=True, help="Draft also where it is not expected to be worth its time."
)
@click.option("--temperature", default=DEFAULTS.temperature, show_default=True)
@click.option("--top-p", default=DEFAULTS.top_p, show_default=True)
@click.option(
    "--scored",
    default=DEFAULTS.scored,
    show_default=True,
    help="Sampled replies that are held against the target's probabilities.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder for results; a run that finds results there goes on from them.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def exact(
    sources: tuple[str, ...],
    modes: tuple[str, ...],
    work: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Whether speculation changes a token of what the embedded engine says, and its speed."""
    settings = ExactSettings(sources=sources or SOURCES, modes=modes or MODE_NAMES, **options)
    with _work_folder(work) as folder:
        report, differing = run_exact(settings, folder)
    click.echo(table(report.figures, settings.sources))
    for name, value in report.figures.items():
        if name.startswith("frequency."):
            click.echo(f"{name}  {value:.4g}")
    for found in differing:
        click.echo(
            f"{found.source} prompt {found.prompt}: {found.mode} differs from token "
            f"{found.position} on, where the target's preference is {found.gap:.2g} nats"
        )
    if json_file is not None:
        write_json(report, json_file)
    if any(found.gap > ROUNDING for found in differing):
        raise click.ClickException("speculation has changed what was said, and not by rounding")
