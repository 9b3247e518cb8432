"""The store of corpora: whole or not there, and of one scope and one tokenizer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from paceline.caches import CorpusSegment, ModelFingerprint
from paceline.caches.corpus import MANIFEST, CorpusManifest, CorpusStore
from paceline.errors import CorpusError, RecordError

SCOPE = "tenant:a"
OURS = ModelFingerprint(model="m", tokenizer="d1")


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture
def store(tmp_path: Path) -> CorpusStore:
    return CorpusStore(tmp_path / "store", clock=lambda: 1000.0)


def add(
    store: CorpusStore,
    *documents: np.ndarray,
    scope: str = SCOPE,
    name: str = "n",
    segment_tokens: int = 1000,
) -> CorpusManifest:
    with store.writing(scope, name, segment_tokens=segment_tokens) as writer:
        for document in documents:
            writer.add(document)
        return store.publish(writer, scope=scope, name=name, tokenizer="d1")


def texts(segments: list[CorpusSegment]) -> list[list[int]]:
    return [segment.read(0, segment.num_positions).tolist() for segment in segments]


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


def test_a_corpus_is_opened_for_its_scope_and_tokenizer_alone(store: CorpusStore) -> None:
    """Another scope, another tokenizer and a model without one get nothing."""
    add(store, i32(1, 2), i32(3))
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 1, 2, -1, 3, -1]]
    assert texts(store.segments(SCOPE, ModelFingerprint("another", "d1"))) != []
    for scope in ("tenant:b", "group:a", "tenant:", "tenant:a/adapter:x", "*", "tenant:*"):
        assert store.segments(scope, OURS) == []
    assert store.segments(SCOPE, ModelFingerprint("m", "d2")) == []
    assert store.segments(SCOPE, ModelFingerprint("m", "")) == []


def test_a_long_corpus_is_split_and_a_long_document_cut(store: CorpusStore) -> None:
    """No token is lost, none twice, and no segment is longer than was asked for."""
    manifest = add(store, i32(*range(25)), i32(50), i32(60, 61), segment_tokens=10)
    segments = store.segments(SCOPE, OURS)
    assert [segment.num_tokens for segment in segments] == [
        entry.num_tokens for entry in manifest.segments
    ]
    held = [token for text in texts(segments) for token in text if token >= 0]
    assert held == [*range(25), 50, 60, 61]
    assert max(segment.num_tokens for segment in segments) <= 10
    assert manifest.num_tokens == 28
    assert manifest.num_documents == 3
    assert manifest.created_at == 1000.0


def test_a_corpus_of_the_same_name_is_replaced(store: CorpusStore, tmp_path: Path) -> None:
    """Its files go, an engine that has it open keeps it, and other corpora stay."""
    add(store, i32(1, 2))
    add(store, i32(7), name="other")
    before = store.segments(SCOPE, OURS)
    add(store, i32(3, 4))
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 3, 4, -1], [-1, 7, -1]]
    assert texts(before)[0] == [-1, 1, 2, -1]
    assert len([name for name in files(tmp_path) if name.endswith(".segment")]) == 2
    assert [it.name for it in store.listing().manifests] == ["n", "other"]


def test_a_build_that_fails_changes_nothing(store: CorpusStore, tmp_path: Path) -> None:
    """The corpus that was there stays, a new one leaves no trace, written segments included."""
    add(store, i32(1, 2))
    before = files(tmp_path)

    def fail(name: str) -> None:
        with store.writing(SCOPE, name, segment_tokens=2) as writer:
            writer.add(i32(5, 6, 7, 8))
            assert writer.segments
            raise RuntimeError("stop")

    for name in ("n", "new"):
        with pytest.raises(RuntimeError, match="stop"):
            fail(name)
    assert files(tmp_path) == before
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 1, 2, -1]]
    assert [path.name for path in (tmp_path / "store").glob("*/*")] == ["n"]


def test_a_killed_build_leaves_no_corpus(store: CorpusStore, tmp_path: Path) -> None:
    """What it had written shows nowhere, holds no lock, and goes with the next build."""
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from paceline.caches.corpus import CorpusStore
store = CorpusStore(Path(sys.argv[1]))
with store.writing("tenant:a", "n", segment_tokens=2) as writer:
    writer.add(np.array([5, 6, 7, 8], np.int32))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(name.endswith(".segment") for name in files(tmp_path))
    assert store.listing().manifests == store.listing().faults == ()
    assert store.segments(SCOPE, OURS) == []
    manifest = add(store, i32(1))
    assert files(tmp_path) == sorted([manifest.segments[0].file, "lock", MANIFEST])


def test_one_process_writes_a_corpus_at_a_time(store: CorpusStore) -> None:
    """The second is told so; other corpora can be written meanwhile."""
    with store.writing(SCOPE, "n") as writer:
        writer.add(i32(1))
        with pytest.raises(CorpusError, match="another process"), store.writing(SCOPE, "n"):
            pass
        add(store, i32(2), name="other")
        store.publish(writer, scope=SCOPE, name="n", tokenizer="d1")
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 1, -1], [-1, 2, -1]]


def test_a_removed_corpus_leaves_nothing(store: CorpusStore, tmp_path: Path) -> None:
    """Its files and folders go; one that is not there is an error that lists what is."""
    add(store, i32(1))
    with pytest.raises(CorpusError, match=r"no corpus x of tenant:a; there are: n \(tenant:a\)"):
        store.remove(SCOPE, "x")
    store.remove(SCOPE, "n")
    assert list((tmp_path / "store").iterdir()) == []
    with pytest.raises(CorpusError, match="there are: none"):
        store.remove(SCOPE, "n")


def test_an_empty_corpus_is_refused(store: CorpusStore) -> None:
    """Documents without tokens make none."""
    with pytest.raises(CorpusError, match="at least one document"):
        add(store, i32(), i32())
    assert store.listing().manifests == ()


@pytest.mark.parametrize(
    "name", ["", "../n", ".n", "a/b", "n" * 65, "ü", "n\n"], ids=lambda name: repr(name)[:8]
)
def test_names_that_could_leave_the_folder_are_refused(store: CorpusStore, name: str) -> None:
    """The message says what a name may be."""
    for use in (store.get, store.remove, lambda *key: store.writing(*key).__enter__()):
        with pytest.raises(CorpusError, match="letters, digits"):
            use(SCOPE, name)
    with pytest.raises(CorpusError, match="name a tenant or a group"):
        store.get("", "n")


def test_any_scope_has_a_folder_of_its_own(store: CorpusStore) -> None:
    """Scopes are free text: none reaches into another's folder."""
    scopes = ["tenant:a", "tenant:a/../b", "group:a", "..", "tenant%3Aa", "*"]
    for number, scope in enumerate(scopes):
        add(store, i32(number), scope=scope)
    for number, scope in enumerate(scopes):
        assert texts(store.segments(scope, OURS)) == [[-1, number, -1]]
    assert {it.scope for it in store.listing().manifests} == set(scopes)


def _newer(path: Path) -> None:
    manifest = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(manifest | {"schema": 2}))


def _other_scope(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"tenant:a"', b'"tenant:b"'))


def _outside(path: Path) -> None:
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["segments"][0]["file"] = "../../n/x"
    path.write_bytes(msgspec.json.encode(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"{"), "cannot be read"),
        (lambda path: path.write_bytes(b'{"schema": 1}'), "missing required field"),
        (_newer, "schema 2, this Paceline reads up to 1"),
        (_other_scope, "is the manifest of n of tenant:b"),
        (_outside, "outside its folder"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_left_out(
    store: CorpusStore,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    """It is named as a fault and drafts nothing; other corpora work, and it can be removed."""
    add(store, i32(1))
    add(store, i32(2), name="other")
    (path,) = (tmp_path / "store").glob(f"*/n/{MANIFEST}")
    damage(path)
    listing = store.listing()
    assert [it.name for it in listing.manifests] == ["other"]
    assert len(listing.faults) == 1
    assert message in listing.faults[0]
    with pytest.raises(RecordError, match=message):
        store.get(SCOPE, "n")
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 2, -1]]
    assert message in caplog.text
    store.remove(SCOPE, "n")
    assert not path.exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_segment_costs_its_corpus_alone(
    store: CorpusStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The others are opened, and the log says which one is left out."""
    entry = add(store, i32(1)).segments[0]
    add(store, i32(2), name="other")
    (path,) = (tmp_path / "store").rglob(entry.file)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert texts(store.segments(SCOPE, OURS)) == [[-1, 2, -1]]
    assert "corpus n of tenant:a" in caplog.text


@pytest.mark.parametrize("segment_tokens", [0, -1, 2**31])
def test_segments_of_impossible_size_are_refused(store: CorpusStore, segment_tokens: int) -> None:
    """The message gives the range, and nothing is left behind."""
    with pytest.raises(CorpusError, match="give 1 to"):
        add(store, i32(1), segment_tokens=segment_tokens)
    assert store.listing().manifests == ()


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """The message names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match="cannot be written"):
        add(CorpusStore(tmp_path / "file"), i32(1))
