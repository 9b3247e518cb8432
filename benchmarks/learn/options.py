"""What the commands about learning have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from paceline.errors import ConfigError

NUM_CORES: Final = 2


def learner_option(_context: Any, _parameter: Any, values: tuple[str, ...]) -> dict[str, Any]:
    """``BLOCK.NAME=VALUE`` as nested settings."""
    told: dict[str, Any] = {}
    for text in values:
        path, equals, value = text.partition("=")
        *blocks, name = path.split(".")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not BLOCK.NAME=VALUE")
        block = told
        for each in blocks:
            block = block.setdefault(each, {})
        try:
            block[name] = json.loads(value)
        except ValueError:
            block[name] = value
    return told


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that runs a stack with a learner."""
    for option in (
        click.option(
            "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
        ),
        click.option("--work", type=click.Path(path_type=Path), help="Folder for logs; kept."),
        click.option(
            "--learner-option",
            "learner",
            multiple=True,
            callback=learner_option,
            help="BLOCK.NAME=VALUE (JSON) for the learner; may be repeated.",
        ),
    ):
        command = option(command)
    return command


dtype_option = click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="What the target and its drafter compute in.",
)
branches_option = click.option(
    "--branches", default=1, show_default=True, help="Most drafted tokens that continue one."
)


def two_cores() -> tuple[int, int]:
    """The engine's and the learner's.

    Raises:
        ConfigError: only one is allowed.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < NUM_CORES:
        raise ConfigError("one core is allowed; two are needed, the engine's and the learner's")
    return cores[0], cores[1]
