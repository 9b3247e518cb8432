"""Ports one after the other that nobody listens at."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import Final

FIRST: Final = 10_000
LAST: Final = 32_000
"""Below those that the system gives to connections by itself."""
MOST_TRIES: Final = 100


def first_of_free_ports(num: int) -> int:
    """The first of so many that follow each other, all free on 127.0.0.1 a moment ago.

    Raises:
        OSError: none were found.
    """
    for _ in range(MOST_TRIES):
        first = random.randrange(FIRST, LAST - num)  # noqa: S311  no secret
        with ExitStack() as stack:
            try:
                for port in range(first, first + num):
                    taken = stack.enter_context(socket.socket())
                    taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise OSError(f"no {num} free ports in a row between {FIRST} and {LAST}")
