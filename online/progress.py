"""Progress of long work, for whoever watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, drawn where that is a terminal; yields what moves it on."""
    with click.progressbar(length=length, label=f"{label:<18}", file=sys.stderr) as bar:
        yield bar.update
