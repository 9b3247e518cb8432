"""`python -m paceline.online COMMAND SETTINGS`: the work behind `paceline drafter`.

SETTINGS is the JSON of a record of `settings`. A process of its own, since the command runs without
torch.
"""

from __future__ import annotations

import click
import msgspec

from paceline.drafter_folder import DrafterRecord
from paceline.errors import ConfigError, PacelineError
from paceline.online.settings import InitSettings


@click.group()
def main() -> None:
    """Make and train drafters."""


@main.command()
@click.argument("settings")
def init(settings: str) -> None:
    """Cut a drafter from a target."""
    try:
        told = msgspec.json.decode(settings, type=InitSettings)
        from paceline.online.cutting import init_drafter

        record = init_drafter(told)
    except ImportError as error:
        raise click.ClickException(missing(error)) from error
    except PacelineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{told.out}: {described(record, told)}")


def described(record: DrafterRecord, told: InitSettings) -> str:
    """What was cut, in a line."""
    layers = ", ".join(map(str, record.layers))
    text = f"layers {layers} of {record.target}, {record.vocab_size:,} tokens"
    kept = len(record.kept_token_ids)
    if not kept:
        return text
    text += f", of which it drafts {kept:,}"
    if told.head_tokens is not None and kept < told.head_tokens:
        text += f" (the counted text has no more; {told.head_tokens:,} were asked for)"
    return text


def missing(error: ImportError) -> str:
    """What to install where a library is not there."""
    return str(
        ConfigError(
            f"{error.name or error} is not installed; making drafters needs: pip install "
            "'paceline[learn]'"
        )
    )


if __name__ == "__main__":
    main()
