"""Segment files: whole, or refused with a message that says what to do."""

from __future__ import annotations

import builtins
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.caches import CorpusSegment
from paceline.caches.segment import MAX_SEGMENT_TOKENS, build_segment
from paceline.errors import ConfigError, DraftError, RecordError

TEXT = np.array([5, 6, 5, 7, -1, 6, 5, 6], np.int32)
VERSION_AT = 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    build_segment(tmp_path / "segment", TEXT)
    return tmp_path / "segment"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"PK\x03\x04" + data[4:], "no corpus segment"),
        (lambda data: data[:100], "no corpus segment"),
        (lambda data: data[:-64], "bytes, its header says"),
        (lambda data: data + bytes(64), "bytes, its header says"),
        (lambda data: data[:200] + b"\xff" + data[201:], "wrong checksum"),
        (lambda data: data[:16] + b"\xff" + data[17:], "damaged header"),
        (lambda data: data[:8] + b"\x02" + data[9:], "version 2, this Paceline reads up to 1"),
    ],
)
def test_what_is_no_whole_segment_is_refused(file: Path, damage: Any, message: str) -> None:
    """The error names the file and what is wrong with it."""
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RecordError, match=message) as raised:
        CorpusSegment(str(file))
    assert str(file) in str(raised.value)


@settings(deadline=None)  # files are written and synced
@given(st.data())
def test_no_flipped_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever byte changes, opening refuses the file."""
    file = tmp_path_factory.mktemp("flip") / "segment"
    build_segment(file, TEXT)
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(RecordError):
        CorpusSegment(str(file))


def test_what_cannot_be_read_is_an_os_error(tmp_path: Path) -> None:
    """A missing file and a missing folder are errors of their own kind, with their path."""
    with pytest.raises(FileNotFoundError, match="none"):
        CorpusSegment(str(tmp_path / "none"))
    with pytest.raises(RecordError, match="plain file"):
        CorpusSegment(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="none"):
        build_segment(tmp_path / "none" / "segment", TEXT)


def test_a_failed_build_leaves_nothing(file: Path) -> None:
    """Wrong places are refused, and the segment that was there stays whole."""
    before = file.read_bytes()
    text = np.array([-1, 1, 2, 1, 3, -1], np.int32)
    for places, message in [
        ([2, 4], "3 places"),
        ([2, 4, 4], "a second time"),
        ([2, 4, 5], "no place of the text"),
        ([3, 2, 4], "sorts before"),
    ]:
        with pytest.raises(ValueError, match=message):
            CorpusSegment.build(str(file), text, np.array(places, np.uint32))
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("token_ids", "message"), [([-2], "-2 to"), ([2**24], str(2**24)), ([0, 2**24 - 1], "16777214")]
)
def test_ids_that_cannot_be_indexed_are_refused(
    tmp_path: Path, token_ids: list[int], message: str
) -> None:
    """The message gives the ids and the range."""
    with pytest.raises(DraftError, match=message):
        build_segment(tmp_path / "segment", token_ids)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """The message gives the limit; nothing of the length is allocated to find out."""
    token_ids = np.broadcast_to(np.int32(1), (MAX_SEGMENT_TOKENS + 1,))
    with pytest.raises(DraftError, match=str(MAX_SEGMENT_TOKENS)):
        build_segment(tmp_path / "segment", token_ids)


def test_without_pydivsufsort_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building is optional; opening a segment needs nothing."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pydivsufsort":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"paceline\[corpus\]"):
        build_segment(tmp_path / "segment", TEXT)


@pytest.mark.parametrize("max_candidates", [0, 65, -1])
def test_candidates_out_of_range_are_refused(file: Path, max_candidates: int) -> None:
    """The message gives the range."""
    with pytest.raises(ValueError, match="give 1 to 64"):
        CorpusSegment(str(file)).find(TEXT[:1], max_candidates=max_candidates)


def test_many_threads_read_while_the_file_is_replaced(file: Path) -> None:
    """An open segment keeps answering from the file it opened."""
    segment = CorpusSegment(str(file))
    expected = [column.tolist() for column in segment.find(TEXT[:2])]
    failures: list[object] = []

    def read() -> None:
        for _ in range(500):
            got = [column.tolist() for column in segment.find(TEXT[:2])]
            if got != expected:
                failures.append(got)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        build_segment(file, [1, 2, 3])
    file.unlink()
    for thread in threads:
        thread.join()
    assert not failures
    segment.check_integrity()
