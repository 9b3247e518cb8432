"""Peers are had as they are published, and their absence is said clearly."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from paceline.benchmarks.peers import arctic
from paceline.errors import UnsupportedError


@pytest.mark.timeout(600)
def test_the_suffix_cache_is_built_from_its_own_sources(peers_folder: Path) -> None:
    """It drafts what followed the same words before, and none of its plugins is registered."""
    cache = arctic.load_suffix_cache(peers_folder)(24, 100)
    prompt = np.array([5, 6, 7, 8, 9, 1, 5, 6], np.int32)
    cache.start_request(1, prompt)
    cache.add_active_response(1, [7])
    draft = cache.speculate(1, np.append(prompt, np.int32(7)), 8, 1.0, 0.0, 0.1)
    assert draft.match_len == 3
    assert draft.token_ids == [8, 9, 1]
    cache.stop_request(1)
    plugins = metadata.entry_points(group="vllm.general_plugins")
    assert not [p for p in plugins if "arctic" in p.value]
    assert not [entry for entry in sys.path if str(peers_folder) in entry]


@pytest.mark.timeout(600)
def test_it_is_built_once(peers_folder: Path) -> None:
    """A second load takes what the first left, without its sources."""
    first = arctic.load_suffix_cache(peers_folder)
    archive = peers_folder / f"{arctic.STEM}.tar.gz"
    kept = archive.read_bytes()
    archive.unlink()
    try:
        assert arctic.load_suffix_cache(peers_folder) is first
    finally:
        archive.write_bytes(kept)


def test_a_changed_source_distribution_is_refused(tmp_path: Path) -> None:
    """Nothing is built from a file that is not the published one."""
    (tmp_path / f"{arctic.STEM}.tar.gz").write_bytes(b"something else")
    with pytest.raises(UnsupportedError, match="SHA-256"):
        arctic.load_suffix_cache(tmp_path)
    assert not list((tmp_path / arctic.STEM).iterdir())


def test_what_pip_said_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index the reason is in the message."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnsupportedError, match="cannot fetch arctic-inference"):
        arctic.load_suffix_cache(tmp_path)


def test_peers_are_kept_in_the_users_cache() -> None:
    """XDG_CACHE_HOME is honoured."""
    folder = arctic.default_folder({"XDG_CACHE_HOME": "/c"})
    assert folder == Path("/c/paceline/peers")
    assert arctic.default_folder({}).parts[-3:] == (".cache", "paceline", "peers")
