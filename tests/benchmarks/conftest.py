"""Peers to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.benchmarks.peers import arctic
from paceline.errors import UnsupportedError


@pytest.fixture(scope="session")
def peers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with arctic-inference's source distribution, or a skip where pip finds none."""
    folder = tmp_path_factory.mktemp("peers")
    try:
        arctic._source_distribution(folder)
    except UnsupportedError as error:
        pytest.skip(f"no index offers it: {error}")
    return folder
