"""Figures as people read them."""

from __future__ import annotations

from typing import Final

NOTHING: Final = "-"
SCALES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
SECOND: Final = 1.0


def count(number: float) -> str:
    """A number of things, in three digits or so."""
    for scale, letter in SCALES:
        if number >= scale:
            return f"{number / scale:.1f}{letter}"
    return f"{number:.0f}"


def size(num_bytes: float) -> str:
    """Bytes."""
    return f"{count(num_bytes)}B"


def share(value: float | None) -> str:
    """A part of one, in per cent."""
    return NOTHING if value is None else f"{value:.0%}"


def factor(value: float | None) -> str:
    """A speedup."""
    return NOTHING if value is None else f"{value:.2f}x"


def ratio(value: float | None) -> str:
    """Tokens a step."""
    return NOTHING if value is None else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds, or milliseconds."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds >= SECOND else f"{1000 * seconds:.0f} ms"


def ago(seconds: float) -> str:
    """How long before now, as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"-{minutes}:{rest:02d}" if minutes or rest else "now"
