"""How many files the proxy may have open: two for each request, its client's and its engine's."""

from __future__ import annotations

import resource
from typing import Final

WANTED_FILES: Final = 65_536


def allow_open_files() -> int:
    """Raise this process's soft limit as far as its hard one lets it; returns the limit then.

    A login shell and systemd give 1,024 by default, which 500 streams at a time use up, and let a
    process raise that itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return soft
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(wanted, soft)
