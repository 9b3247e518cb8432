"""The proxy has as many files open as it is let."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from paceline.middleware.open_files import WANTED_FILES, allow_open_files


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Limits of open files, restored at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_and_never_lowered(limits: tuple[int, int]) -> None:
    """As far as the hard one lets it, and no further than is of use."""
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    most = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    assert allow_open_files() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    assert allow_open_files() == most
