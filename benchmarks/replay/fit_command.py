"""The command `paceline bench fit`."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from paceline.benchmarks.replay.command import find_sources, user_cache_folder
from paceline.benchmarks.replay.episodes import load_scopes
from paceline.benchmarks.replay.fit import fit_prior, render, tuning_half
from paceline.benchmarks.replay.tokens import (
    TURN_END,
    TURN_START,
    Renderer,
    TokenCache,
    load_encoder,
)


@click.command("fit")
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--header",
    required=True,
    type=click.Path(path_type=Path),
    help="Written: caches/native/calibration_prior.hpp of the sources.",
)
@click.option(
    "--episodes",
    default=30,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most episodes of each model.",
)
@click.option("--passes", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=7, show_default=True, help="Of the order of scopes.")
@click.option("--tokenizer", help="Hugging Face folder or name.  [default: SmolLM2]")
@click.option("--turn-start", default=TURN_START, show_default=True, help="Token before a role.")
@click.option("--turn-end", default=TURN_END, show_default=True, help="Token after a reply.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for token ids.  [default: ~/.cache/paceline/replay]",
)
def fit(
    traces: tuple[Path, ...],
    header: Path,
    episodes: int,
    passes: int,
    seed: int,
    tokenizer: str | None,
    turn_start: str,
    turn_end: str,
    state: Path | None,
) -> None:
    """Fit where the draft memory's calibration starts, by replaying TRACES.

    Only the tuning half of the episodes is looked at; `paceline bench replay` reports on the other.
    The header takes effect when the native core is built with it.
    """
    renderer = Renderer(load_encoder(tokenizer), turn_start=turn_start, turn_end=turn_end)
    cache = TokenCache((state or user_cache_folder()) / "tokens", renderer)
    scopes = [
        scope
        for folder, source in find_sources(traces)
        for scope in load_scopes(folder, source, cache)
    ]
    chosen = tuning_half(scopes, episodes)
    length = passes * sum(scope.num_output_tokens for scope in chosen)
    with click.progressbar(length=length, label="replay") as bar:
        prior = fit_prior(
            chosen, num_passes=passes, rng=np.random.default_rng(seed), advance=bar.update
        )
    header.write_text(render(prior), encoding="ascii")
    click.echo(f"{len(chosen)} scopes, {length // passes} output tokens: {header} written")
