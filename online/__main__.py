"""`python -m paceline.online COMMAND SETTINGS`: the work behind `paceline drafter` and `learner`.

SETTINGS is the JSON of a record of `settings` or `learner_settings`. A process of its own, since
the command runs without torch.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from paceline.drafter_folder import Distilled, DrafterRecord, HeldOut
from paceline.errors import ConfigError, PacelineError
from paceline.online.learner_settings import checked, read_settings
from paceline.online.settings import CheckSettings, DistilSettings, InitSettings


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

        hush_loading()
        record = init_drafter(told)
    except ImportError as error:
        raise click.ClickException(missing(error)) from error
    except PacelineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{told.out}: {described(record, told)}")


@main.command()
@click.argument("settings")
def check(settings: str) -> None:
    """Say whether a drafter can be loaded and drafts."""
    try:
        told = msgspec.json.decode(settings, type=CheckSettings)
        from paceline.online.load_check import check_alone

        hush_loading()
        check_alone(Path(told.folder), checksum=told.checksum)
    except ImportError as error:
        raise click.ClickException(missing(error)) from error
    except PacelineError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("settings")
def distil(settings: str) -> None:
    """Train a drafter on its target's replies."""
    try:
        told = msgspec.json.decode(settings, type=DistilSettings)
        import torch

        from paceline.online.distilling import Distillation, StoppedError

        hush_loading()
        if told.threads is not None:
            torch.set_num_threads(told.threads)
        stopping = when_asked_to_stop()
        try:
            done = Distillation(settings=told, clock=time.monotonic, is_stopping=stopping).run()
        except StoppedError:
            click.echo("stopped; the same command goes on from here", err=True)
            sys.exit(1)
    except ImportError as error:
        raise click.ClickException(missing(error)) from error
    except PacelineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{told.out}: {learned(done)}")


@main.command()
@click.argument("settings")
def learner(settings: str) -> None:
    """Train a drafter from live traffic; SETTINGS may be a file in YAML as well."""
    try:
        if settings.lstrip().startswith("{"):
            told = checked(msgspec.json.decode(settings))
        else:
            told = read_settings(Path(settings))
        from paceline.online.service import serve

        hush_loading()
        serve(told, when_asked_to_stop())
    except ImportError as error:
        raise click.ClickException(missing(error)) from error
    except PacelineError as error:
        raise click.ClickException(str(error)) from error


def learned(done: Distilled) -> str:
    """What a training came to, in a few lines."""

    def line(name: str, found: HeldOut) -> str:
        return (
            f"\n  {name} {found.agreement:6.1%} of tokens agree, {found.accepted_length:.3f} "
            f"accepted of a chain of {found.chain_tokens}"
        )

    return (
        f"{done.num_steps:,} steps on {done.num_tokens:,} tokens; on {done.before.num_tokens:,} "
        "tokens of held-out sessions"
        f"{line('before', done.before)}{line('after ', done.after)}"
    )


def when_asked_to_stop() -> Callable[[], bool]:
    """Whether SIGTERM or Ctrl-C has come; the second one ends us at once."""
    asked = False

    def stop(number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return lambda: asked


def hush_loading() -> None:
    """No progress bars of the library's own where nobody watches."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


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
