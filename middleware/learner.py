"""`paceline learner`: the drafter keeps learning from live traffic while engines are idle."""

from __future__ import annotations

from pathlib import Path

import click

from paceline.middleware.drafter import run_worker
from paceline.online.learner_settings import read_settings


@click.command()
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Settings (YAML), see docs/learning.md.",
)
def learner(config_file: Path) -> None:
    """Train the drafter from live traffic, in the time that engines leave.

    Runs until Ctrl-C or SIGTERM; what was begun goes on at the next start. With several GPUs start
    it with torchrun, once for each of them: torchrun --nproc-per-node 4 -m paceline.online learner
    learner.yaml
    """
    run_worker("learner", read_settings(config_file))
