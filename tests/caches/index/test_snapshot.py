"""A snapshot holds what an index remembers and has learned; a damaged one changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.caches import DraftIndex, load_snapshot, save_snapshot
from paceline.errors import SnapshotError

NONE = np.array([], np.int32)
HEADER_BYTES = 40


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def lived_in() -> DraftIndex:
    """An index with two scopes, sessions, a deleted sequence and scored drafts."""
    index = DraftIndex(shared_capacity=500)
    scope, small = index.scope("tenant:ä"), index.scope("small", capacity=12)
    rng = np.random.default_rng(3)
    for key in range(1, 9):
        said = rng.integers(0, 6, 40).astype(np.int32)
        index.append_shared(scope, said, key=key, time=float(key))
        index.append_shared(small, said, key=key, time=float(key))
    index.delete_sequence(scope, 4)
    for session in (1, 2, 3):
        prompt = rng.integers(0, 6, 60).astype(np.int32)
        handle, _ = index.begin(prompt, read_scopes=i32(scope), write_scope=scope, session=session)
        batch = np.array([handle], np.int64)
        for token in rng.integers(0, 6, 20).tolist():
            index.propose(batch, i32(8))
            index.commit(batch, i32(token), np.array([0, 1], np.int64))
        index.finish(handle, time=20.0)
    return index


def drafts(index: DraftIndex) -> list[list[float]]:
    """Tokens and probabilities drafted after every pair of tokens, in a session's next turn too."""
    drawn = []
    scope = index.scope("tenant:ä")
    for first in range(6):
        for second in range(6):
            prompt = i32(first, second, first)
            handle, _ = index.begin(prompt, read_scopes=i32(scope), write_scope=scope)
            _, tokens, _, prob, _ = index.propose(np.array([handle], np.int64), i32(8))
            drawn.append([*tokens.tolist(), *prob.tolist()])
    return drawn


def test_a_restored_index_drafts_the_same(tmp_path: Path) -> None:
    """Scopes, capacities, ages, kept contexts and calibrations come back from a file."""
    index = lived_in()
    num_bytes = save_snapshot(index, tmp_path / "draft.snapshot")
    assert num_bytes == (tmp_path / "draft.snapshot").stat().st_size
    other = DraftIndex(shared_capacity=500)
    load_snapshot(other, tmp_path / "draft.snapshot")
    other.check_integrity()
    stats, restored = index.stats(), other.stats()
    for name in ("sessions", "scopes", "sequences", "context_tokens"):
        assert stats[name] == restored[name] > 0
    assert restored["shared_tokens"] == stats["shared_tokens"] - 41  # the deleted one's room
    assert drafts(other) == drafts(index)
    assert drafts(index) != drafts(DraftIndex())
    assert other.scope("small", capacity=12) == other.scope("small")
    assert other.evict_before(other.scope("tenant:ä"), 6.0) == 10 + 40 + 40  # of 2, 3, 5
    assert other.delete_sequence(other.scope("tenant:ä"), 7) == 40


def test_restoring_replaces_what_was_there() -> None:
    """Nothing of before is left, and its scope ids are void."""
    index = DraftIndex()
    old = index.scope("old")
    index.append_shared(old, i32(1, 2, 3))
    index.restore(lived_in().snapshot())
    assert index.stats()["scopes"] == 2
    assert index.scope("small") != old
    with pytest.raises(ValueError, match=f"scope_id is {old}; no scope"):
        index.append_shared(old, i32(1))
    index.check_integrity()


def test_an_empty_index_has_a_snapshot() -> None:
    """No scope, no session: that too comes back."""
    index = lived_in()
    index.restore(DraftIndex().snapshot())
    assert index.stats()["scopes"] == index.stats()["sessions"] == 0


def test_nothing_is_restored_under_open_requests() -> None:
    """A snapshot would pull the scopes away from under them."""
    index = lived_in()
    index.begin(i32(1, 2), read_scopes=NONE)
    before = index.stats()
    with pytest.raises(ValueError, match="the number of open requests is 1; finish them"):
        index.restore(DraftIndex().snapshot())
    assert index.stats() == before


SNAPSHOT = lived_in().snapshot()


def refuses(broken: bytes, says: str) -> None:
    index = lived_in()
    before = index.snapshot()
    with pytest.raises(ValueError, match=says):
        index.restore(broken)
    assert index.snapshot() == before


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(SNAPSHOT) - 1), st.integers(1, 255))
def test_every_damaged_byte_is_noticed(position: int, change: int) -> None:
    """One changed byte, wherever it is, refuses the snapshot and changes nothing."""
    broken = bytearray(SNAPSHOT)
    broken[position] ^= change
    refuses(bytes(broken), "snapshot")


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(SNAPSHOT) - 1))
def test_every_truncation_is_noticed(length: int) -> None:
    """A file that was cut says how much of it there is."""
    refuses(SNAPSHOT[:length], f"the snapshot is broken: it has {length} bytes")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, b"SQLite 3", "no snapshot of a draft memory"),
        (8, (0x04030201).to_bytes(4, "little"), "another byte order"),
        (12, (9).to_bytes(4, "little"), "version 9, this Paceline reads 3; upgrade it"),
    ],
)
def test_foreign_snapshots_are_named(at: int, value: bytes, says: str) -> None:
    """Another format, another byte order and a newer version are told apart."""
    refuses(SNAPSHOT[:at] + value + SNAPSHOT[at + len(value) :], says)


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure while writing leaves the old snapshot, and nothing beside it."""
    file = tmp_path / "draft.snapshot"
    save_snapshot(lived_in(), file)
    before = file.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(SnapshotError, match=r"draft\.snapshot.*No space left"):
        save_snapshot(DraftIndex(), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["draft.snapshot"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing and damaged files are named, with what to do."""
    index = DraftIndex()
    with pytest.raises(SnapshotError, match=r"missing.*No such file"):
        load_snapshot(index, tmp_path / "missing")
    (tmp_path / "damaged").write_bytes(SNAPSHOT[:-1])
    with pytest.raises(SnapshotError, match=r"damaged.*the snapshot is broken"):
        load_snapshot(index, tmp_path / "damaged")
