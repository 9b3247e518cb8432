"""The command `paceline bench engine`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from paceline.adapters.vllm.launch import find_vllm
from paceline.benchmarks.engine.figures import figures
from paceline.benchmarks.engine.records import (
    DRAFTED_BY_MODEL,
    VARIANTS,
    EngineBenchSettings,
    Load,
    UnitResult,
    Variant,
)
from paceline.benchmarks.engine.run import Work, make_units, read_work, run_variant
from paceline.benchmarks.engine.vllm_server import suffix_path
from paceline.benchmarks.replay.episodes import AGENT_SOURCES
from paceline.benchmarks.report import Report
from paceline.benchmarks.tables import engine_tables
from paceline.errors import ConfigError

DEFAULTS = EngineBenchSettings(traces="", model="", tokenizer="")
LEFT_OUT = (
    "`suffix` is left out: arctic_inference is not in this environment, and `paceline bench "
    "replay` has not built it yet (docs/bench-engine.md)"
)

NO_DRAFTER = "variants with a model that drafts are left out: name its folder with --drafter"


def run_engine_bench(
    settings: EngineBenchSettings,
    variants: Sequence[Variant],
    loads: Sequence[Load],
    *,
    folder: Path,
) -> Report:
    """Measure each variant on each source under each load.

    Engines run one after the other. A unit whose result lies in `folder` already, with the same
    settings and the same installed code, is not measured again.
    """
    work = read_work(settings)
    _say_what_stays_idle(work, loads)
    results: list[UnitResult] = []
    for variant in variants:
        units = make_units(settings, work, variant, loads, folder)
        results += run_variant(settings, variant, units, folder)
    said = msgspec.to_builtins(settings)
    for name in ("traces", "model", "tokenizer", "drafter"):
        # a folder by its name: where it lies on this machine tells a reader nothing
        said[name] = Path(said[name]).name
    vllm = find_vllm()
    said |= {
        "variants": list(variants),
        "loads": [load.label for load in loads],
        "vllm": vllm.version if vllm is not None else "",
    }
    return Report(bench="engine", settings=said, figures=figures(results))


def _say_what_stays_idle(work: Work, loads: Sequence[Load]) -> None:
    """An episode's turns follow one another: fewer episodes than places leave some places idle."""
    fewest = min(map(len, work.values()))
    for load in loads:
        if load.concurrency > fewest:
            click.echo(
                f"load {load.label}: some source has {fewest} episodes only, so that no more are "
                "in flight; take more with --episodes",
                err=True,
            )


def available(variants: Sequence[Variant], drafter: Path | None = None) -> tuple[Variant, ...]:
    """`variants` without those whose engine is not installed, or that lack a drafter; says so."""
    if drafter is None and not set(variants).isdisjoint(DRAFTED_BY_MODEL):
        click.echo(NO_DRAFTER, err=True)
        variants = tuple(variant for variant in variants if variant not in DRAFTED_BY_MODEL)
    if "suffix" in variants and suffix_path(os.environ) is None:
        click.echo(LEFT_OUT, err=True)
        return tuple(variant for variant in variants if variant != "suffix")
    return tuple(variants)


def make_loads(
    concurrency: Sequence[int], arrivals: Sequence[str], arrival_factor: float
) -> list[Load]:
    """A load for each concurrency and each trace of arrivals.

    Raises:
        ConfigError: a concurrency is less than 1.
    """
    for number in concurrency:
        if number < 1:
            raise ConfigError(f"--concurrency {number}: give at least 1")
    return [Load(concurrency=number) for number in concurrency] + [
        Load(arrivals=name, arrival_factor=arrival_factor) for name in arrivals
    ]


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        yield Path(scratch)


def _engine_option(_context: Any, _parameter: Any, values: Sequence[str]) -> dict[str, Any]:
    options = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


@click.command("engine")
@click.option(
    "--traces", required=True, type=click.Path(path_type=Path), help="Folder of recorded traces."
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Hugging Face folder of the target.  [default: SmolLM2-135M]",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder whose tokenizer renders the traces.  [default: the model's]",
)
@click.option("--source", "sources", multiple=True, help="Trace file; may be repeated.")
@click.option(
    "--episodes", default=DEFAULTS.episodes, show_default=True, help="Episodes of each source."
)
@click.option(
    "--reporting-half", is_flag=True, help="Take episodes on which nothing was tuned only."
)
@click.option(
    "--requests", default=DEFAULTS.requests, show_default=True, help="Most requests of an episode."
)
@click.option("--context-tokens", default=DEFAULTS.context_tokens, show_default=True)
@click.option(
    "--output-tokens",
    default=DEFAULTS.output_tokens,
    show_default=True,
    help="Longest reply; 0 for the whole.",
)
@click.option(
    "--concurrency",
    multiple=True,
    type=int,
    help="Episodes in flight; may be repeated.  [default: 1 and 8, if no --arrivals]",
)
@click.option(
    "--arrivals",
    multiple=True,
    help="Trace of arrival times in the folder's arrivals/; may be repeated.",
)
@click.option("--arrival-factor", default=1.0, show_default=True, help="Stretches their gaps.")
@click.option("--dtype", default=DEFAULTS.dtype, show_default=True)
@click.option("--load-format", default=DEFAULTS.load_format, show_default=True)
@click.option(
    "--draft-tokens",
    default=DEFAULTS.num_draft_tokens,
    show_default=True,
    help="Most tokens that Paceline and suffix draft a step.",
)
@click.option("--ngram-tokens", default=DEFAULTS.num_ngram_tokens, show_default=True)
@click.option("--suffix-depth", default=DEFAULTS.suffix_depth, show_default=True)
@click.option("--suffix-factor", default=DEFAULTS.suffix_factor, show_default=True)
@click.option("--min-probability", default=DEFAULTS.min_probability, show_default=True)
@click.option(
    "--drafter",
    type=click.Path(path_type=Path),
    help="Hugging Face folder of the model that drafts in the variants with one.",
)
@click.option(
    "--drafter-tokens",
    default=DEFAULTS.num_drafter_tokens,
    show_default=True,
    help="Most tokens that it drafts a step in `paceline-fused`.",
)
@click.option(
    "--variant", "variants", multiple=True, type=click.Choice(VARIANTS), help="May be repeated."
)
@click.option("--eager", is_flag=True, help="Start faster, run slower: no compilation, no graphs.")
@click.option("--max-in-flight", default=DEFAULTS.max_in_flight, show_default=True)
@click.option(
    "--engine-option",
    "engine_options",
    multiple=True,
    callback=_engine_option,
    help="NAME=VALUE (JSON) for vLLM's engine; may be repeated.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder for results and logs; a run that finds results there goes on from them.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def engine(
    traces: Path,
    model: Path | None,
    tokenizer: Path | None,
    drafter: Path | None,
    sources: tuple[str, ...],
    concurrency: tuple[int, ...],
    arrivals: tuple[str, ...],
    arrival_factor: float,
    variants: tuple[Variant, ...],
    draft_tokens: int,
    ngram_tokens: int,
    drafter_tokens: int,
    work: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Recorded agents' replies forced upon a real engine: what speculation does to its speed."""
    loads = make_loads(concurrency or (() if arrivals else (1, 8)), arrivals, arrival_factor)
    with _work_folder(work) as folder:
        target = model or _packaged_target(folder)
        settings = EngineBenchSettings(
            traces=str(traces),
            model=str(target),
            # the packaged model's is not in its exported folder: a GGUF file lacks a part of it
            tokenizer=str(tokenizer or model or ""),
            drafter=str(drafter or ""),
            sources=sources or AGENT_SOURCES,
            num_draft_tokens=draft_tokens,
            num_ngram_tokens=ngram_tokens,
            num_drafter_tokens=drafter_tokens,
            **options,
        )
        report = run_engine_bench(
            settings, available(variants or VARIANTS, drafter), loads, folder=folder
        )
    click.echo(engine_tables(report.figures))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(report.as_json() + "\n", encoding="utf-8")


def _packaged_target(folder: Path) -> Path:
    from paceline.adapters.embedded.packaged import export_packaged_model

    target = folder / "SmolLM2-135M-Instruct"
    return target if target.is_dir() else export_packaged_model(target)
