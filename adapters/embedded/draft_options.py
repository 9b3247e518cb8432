"""How far the embedded engine drafts, as options of the commands that start it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import click

from paceline.adapters.embedded.engine_settings import EngineSettings

F = TypeVar("F", bound=Callable[..., object])
DEFAULTS: Final = EngineSettings()


def draft_options(command: F) -> F:
    """Gives a command `max_draft_tokens`, `max_branches` and `min_probability`."""
    for option in (
        click.option(
            "--min-probability",
            default=DEFAULTS.min_probability,
            show_default=True,
            help="What is less likely is not drafted; in bfloat16 0.01 can be worth while.",
        ),
        click.option(
            "--max-branches",
            default=DEFAULTS.max_branches,
            show_default=True,
            help="Most drafted tokens that continue one; 1 drafts chains, more drafts trees.",
        ),
        click.option(
            "--max-draft-tokens",
            default=DEFAULTS.max_draft_tokens,
            show_default=True,
            help="Most tokens drafted a round.",
        ),
    ):
        command = option(command)
    return command
