"""Corpora attached to scopes: drafted for whoever reads the scope, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paceline.caches import CorpusSegment, DraftIndex, Source
from paceline.caches.segment import build_segment

TEXT = list(range(100, 160))


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.fixture
def segment(tmp_path: Path) -> CorpusSegment:
    return build_segment(tmp_path / "s", [*TEXT, -1, *TEXT, -1, 1, 2, 3])


def opened(index: DraftIndex, prompt: list[int], *read_scopes: int, **options: object) -> int:
    return index.begin(i32(*prompt), read_scopes=i32(*read_scopes), **options)[0]  # type: ignore[arg-type]


def drafted(index: DraftIndex, handle: int, most: int = 8) -> tuple[list[int], set[int]]:
    """Tokens drafted and their sources."""
    _, tokens, _, _, source = index.propose(np.array([handle], np.int64), i32(most))
    return tokens.tolist(), set(source.tolist())


def commit(index: DraftIndex, handle: int, *tokens: int) -> None:
    index.commit(np.array([handle], np.int64), i32(*tokens), np.array([0, len(tokens)], np.int64))


def test_a_corpus_is_drafted_for_readers_of_its_scope_alone(segment: CorpusSegment) -> None:
    """Whoever reads the scope gets what follows in the corpus, marked as such; nobody else does."""
    index = DraftIndex()
    mine, other = index.scope("mine"), index.scope("other")
    index.attach_corpora(mine, [segment])
    tokens, sources = drafted(index, opened(index, TEXT[:6], mine))
    assert len(tokens) > 1
    assert tokens == TEXT[6 : 6 + len(tokens)]
    assert sources == {Source.CORPUS}
    for reads in ((other,), ()):
        handle = opened(index, TEXT[:6], *reads, write_scope=mine)
        assert drafted(index, handle) == ([], set())


def test_open_requests_follow_what_is_attached(segment: CorpusSegment, tmp_path: Path) -> None:
    """Attaching, replacing, detaching and dropping show in the next draft of an open request."""
    index = DraftIndex()
    scope = index.scope("mine")
    other = build_segment(tmp_path / "o", [*TEXT[:8], 7, 8, 9, 7])
    handle = opened(index, TEXT[:8], scope)
    assert drafted(index, handle)[0] == []
    index.attach_corpora(scope, [segment])
    assert drafted(index, handle)[0][:2] == TEXT[8:10]
    index.attach_corpora(scope, [other])
    assert drafted(index, handle)[0][:1] == [7]
    index.attach_corpora(scope, [])
    assert drafted(index, handle)[0] == []
    index.attach_corpora(scope, [segment])
    index.drop_scope(scope)
    assert drafted(index, handle)[0] == []
    assert index.stats()["segments"] == 0
    index.check_integrity()


def test_a_draft_outlives_its_corpus(segment: CorpusSegment) -> None:
    """Tokens committed after the corpus was detached are scored against the draft made of it."""
    index = DraftIndex()
    scope = index.scope("mine")
    index.attach_corpora(scope, [segment])
    handle = opened(index, TEXT[:6], scope)
    tokens, _ = drafted(index, handle)
    index.attach_corpora(scope, [])
    del segment
    commit(index, handle, *tokens, 5)
    assert index.stats()["accepted_corpus"] == len(tokens) > 0
    index.check_integrity()


def test_a_segment_of_several_scopes_is_read_once(segment: CorpusSegment) -> None:
    """It votes once, however many of a request's scopes share it."""
    index = DraftIndex()
    a, b = index.scope("a"), index.scope("b")
    index.attach_corpora(a, [segment])
    alone = index.propose(np.array([opened(index, [1, 2], a, b)], np.int64), i32(8))
    index.attach_corpora(b, [segment, segment])
    shared = index.propose(np.array([opened(index, [1, 2], a, b)], np.int64), i32(8))
    np.testing.assert_equal(alone, shared)
    assert alone[1].tolist() == [3]


def test_more_places_of_a_corpus_count_for_more(tmp_path: Path) -> None:
    """Of two next tokens the more frequent is drafted, likelier where it is more frequent still."""
    index = DraftIndex(min_probability=0.01)
    scope = index.scope("mine")
    probabilities = []
    for num_sixes in (6, 30):
        text = [5, 6, 9, -1] * num_sixes + [5, 7, 9, -1] * 4
        index.attach_corpora(scope, [build_segment(tmp_path / "s", text)])
        handle = opened(index, [5], scope)
        _, tokens, _, prob, _ = index.propose(np.array([handle], np.int64), i32(1))
        assert tokens.tolist() == [6]
        probabilities.append(float(prob[0]))
    assert probabilities[0] < probabilities[1]


def test_what_follows_a_frequent_token_is_counted_too(tmp_path: Path) -> None:
    """The second token is the one that most places go on with, not the one of the first place."""
    rng = np.random.default_rng(1)
    index = DraftIndex(min_probability=0.01)
    scope = index.scope("mine")
    text = [token for last in rng.permutation([8] * 5 + [9] * 25) for token in (5, 6, last, -1)]
    index.attach_corpora(scope, [build_segment(tmp_path / "s", text)])
    assert drafted(index, opened(index, [5], scope))[0] == [6, 9]


def test_drafts_are_counted_by_source_and_by_first_scope(segment: CorpusSegment) -> None:
    """Each scope counts what was drafted and accepted for requests that read it first."""
    index = DraftIndex()
    near, far = index.scope("near"), index.scope("far")
    index.append_shared(far, i32(1, 2, 3, 4, 50, 51, 52), key=1)
    sources = np.array([Source.WORKLOAD, Source.TENANT], np.uint8)
    handle = opened(index, [1, 2, 3, 4], near, far, read_sources=sources)
    tokens, found = drafted(index, handle)
    assert found == {Source.TENANT}
    commit(index, handle, tokens[0], 7)
    index.attach_corpora(far, [segment])
    for stats in (index.stats(), index.scope_stats(near)):
        assert stats["drafted_tenant"] == stats["drafted"] == len(tokens)
        assert (stats["accepted_tenant"], stats["accepted"]) == (1, 1)
        assert stats["drafted_workload"] == stats["drafted_corpus"] == 0
    stats = index.scope_stats(far)
    assert (stats["drafted"], stats["sequences"], stats["shared_tokens"]) == (0, 1, 8)
    assert (stats["segments"], stats["corpus_tokens"]) == (1, segment.num_tokens)
    assert 0 < stats["bytes"] < index.stats()["bytes"]
    with pytest.raises(ValueError, match="scope_id is 9"):
        index.scope_stats(9)


def test_what_is_learned_of_a_scope_depends_on_what_it_is_read_as() -> None:
    """Requests that read the same scope as another source share no calibration with each other."""
    index = DraftIndex()
    scope = index.scope("shared")
    index.append_shared(scope, i32(*TEXT))
    as_tenant = np.array([Source.TENANT], np.uint8)

    def first_probability(**options: object) -> float:
        handle = opened(index, TEXT[:5], scope, **options)
        prob = index.propose(np.array([handle], np.int64), i32(1))[3]
        commit(index, handle, 9)  # drafted wrongly
        return float(prob[0])

    before = first_probability()
    for _ in range(20):
        first_probability(read_sources=as_tenant)
    assert first_probability() != first_probability()  # it learns
    index = DraftIndex()
    scope = index.scope("shared")
    index.append_shared(scope, i32(*TEXT))
    for _ in range(20):
        first_probability(read_sources=as_tenant)
    assert first_probability() == before


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([1], "number of read_sources is 1; give one for each of the 2 read scopes"),
        ([1, 0], r"read_sources\[1\] is 0; give 1 \(WORKLOAD\) or 3 \(TENANT\)"),
        ([4, 1], r"read_sources\[0\] is 4"),
        ([1, 2], r"read_sources\[1\] is 2"),
    ],
)
def test_wrong_sources_are_refused(sources: list[int], message: str) -> None:
    """A scope is read as the workload's or the tenant's, one source for each."""
    index = DraftIndex()
    a, b = index.scope("a"), index.scope("b")
    with pytest.raises(ValueError, match=message):
        opened(index, [1, 2], a, b, read_sources=np.array(sources, np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        opened(index, [1, 2], a, b, read_sources=np.array([1, 1], np.int32))
    assert index.stats()["requests"] == 0


def test_wrong_corpora_are_refused(segment: CorpusSegment) -> None:
    """Unknown scopes and what is no segment are refused, and what was attached stays."""
    index = DraftIndex()
    scope = index.scope("mine")
    index.attach_corpora(scope, [segment])
    with pytest.raises(ValueError, match="scope_id is 7"):
        index.attach_corpora(7, [segment])
    with pytest.raises((ValueError, TypeError)):
        index.attach_corpora(scope, [segment, None])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        index.attach_corpora(scope, ["segment"])  # type: ignore[list-item]
    assert index.scope_stats(scope)["segments"] == 1
