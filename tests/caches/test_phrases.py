"""Phrases: chosen by their content alone, counted with a half-life, the same for every replica."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from journals import SHELF, Engine, append, record
from paceline.caches import SequenceRecord
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_store import JournalStore
from paceline.caches.phrase_store import PhraseStore
from paceline.caches.phrases import (
    PhraseCounter,
    PhraseCounts,
    PhraseOwner,
    PhraseSet,
    PhraseSettings,
    choose_phrases,
    decode_phrases,
    encode_phrase,
)
from paceline.caches.tombstones import subject_of
from paceline.errors import JournalError
from redis_server import RedisServer
from waiting import wait_until

SETTINGS = PhraseSettings(num_tokens=6, one_in=4, half_life_seconds=100.0)
OWNER = PhraseOwner(SHELF, "w", "s")
texts = st.lists(st.integers(0, 2**31 - 1), max_size=80).map(lambda ids: np.array(ids, np.int32))


def said(tokens: np.ndarray, number: int = 0, *, num_prompt: int = 0) -> SequenceRecord:
    return msgspec.structs.replace(
        record(number, session="s"), token_ids=tokens, num_prompt=num_prompt, workload="w"
    )


@given(texts, texts, texts)
def test_phrases_do_not_depend_on_what_stands_around_them(
    before: np.ndarray, text: np.ndarray, behind: np.ndarray
) -> None:
    """Whatever precedes and follows a text, its own phrases are chosen, in their order."""
    own = choose_phrases(text, SETTINGS)
    whole = choose_phrases(np.concatenate([before, text, behind]), SETTINGS)
    assert not Counter(own) - Counter(whole)
    for phrase in decode_phrases(own):
        windows = np.lib.stride_tricks.sliding_window_view(text, SETTINGS.num_tokens)
        assert (windows == phrase).all(axis=1).any()


def test_about_one_place_in_so_many_begins_a_phrase() -> None:
    """The share asked for is met on random and on monotonous vocabularies."""
    rng = np.random.default_rng(0)
    for size in (49_152, 50):
        text = rng.integers(0, size, 20_000).astype(np.int32)
        chosen = len(choose_phrases(text, PhraseSettings(one_in=16)))
        assert 20_000 / 16 * 0.75 < chosen < 20_000 / 16 * 1.25


def test_what_was_read_is_not_counted() -> None:
    """Only the model's own output counts, and no more than fits."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 49_152, 400).astype(np.int32)
    counter = PhraseCounter(SETTINGS)
    counter.add(said(text, num_prompt=400))
    assert counter.take() == {}
    counter.add(said(text, num_prompt=100))
    ((owner, counted),) = counter.take().items()
    assert owner == OWNER
    assert counted.counts == Counter(choose_phrases(text[100:], SETTINGS))
    full = PhraseCounter(PhraseSettings(num_tokens=6, one_in=4, max_pending=10))
    for number in range(5):
        full.add(said(rng.integers(0, 49_152, 400).astype(np.int32), number))
    assert 10 <= sum(c.counts.total() for c in full.take().values()) < 400


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30))
def test_phrases_come_back_as_they_went(tokens: list[int]) -> None:
    """Storing a phrase changes nothing."""
    (back,) = decode_phrases([encode_phrase(np.array(tokens, np.int32))])
    assert back.tolist() == tokens


@given(st.binary(max_size=40))
def test_foreign_bytes_are_left_out(data: bytes) -> None:
    """What is no phrase is skipped, and what is read has valid tokens."""
    for phrase in decode_phrases([data]):
        assert len(phrase) > 0
        assert (phrase >= 0).all()


def test_settings_of_nothing_are_named() -> None:
    """Bad settings are refused with the value."""
    with pytest.raises(JournalError, match="one_in is 3"):
        PhraseSettings(one_in=3)
    with pytest.raises(JournalError, match="num_tokens is 4"):
        PhraseSettings(num_tokens=4)
    with pytest.raises(JournalError, match="max_phrases is 0"):
        PhraseSettings(max_phrases=0)


class Ageing(JournalStore):
    """A store whose clock the test moves."""

    time = 1e9

    def now(self) -> float:
        return self.time


def _counted(phrases: dict[int, int], begun_at: float = 1e9) -> PhraseCounts:
    encoded = {encode_phrase(np.full(6, token, np.int32)): n for token, n in phrases.items()}
    return PhraseCounts(begun_at, Counter(encoded))


def _likeliest(phrases: PhraseStore) -> list[int]:
    return [int(phrase[0]) for found in phrases.read(SHELF) for phrase in found.phrases]


@pytest.mark.redis
def test_counts_add_up_and_halve_with_time(store: JournalStore) -> None:
    """Two replicas' counts are one; a count of one half-life ago weighs half a new one."""
    ageing = Ageing(store.client, store.keys)
    a, b = PhraseStore(ageing, SETTINGS), PhraseStore(ageing, SETTINGS)
    for replica in (a, b):
        assert replica.add(OWNER, _counted({1: 3, 2: 5}), retention_seconds=0)
    key = store.keys.phrases(SHELF, "100:w")
    scores = dict(store.client.zrange(key, 0, -1, withscores=True))
    weights = {int(decode_phrases([p])[0][0]): 2 ** (s - 1e9 / 100) for p, s in scores.items()}
    assert weights == pytest.approx({1: 6.0, 2: 10.0}, rel=1e-4)
    ageing.time += 100.0
    a.add(OWNER, _counted({3: 4, 4: 6, 1: 3}), retention_seconds=0)
    # by weight then: 1 has 3 + 3, 4 has 6 (about the same), 2 has 5, 3 has 4
    assert set(_likeliest(b)[:2]) == {1, 4}
    assert _likeliest(b)[2:] == [2, 3]
    assert math.isclose(
        max(dict(store.client.zrange(key, 0, -1, withscores=True)).values()),
        1e9 / 100 + 1 + math.log2(6),
        rel_tol=1e-9,
    )


@pytest.mark.redis
def test_sets_are_trimmed_and_forgotten(store: JournalStore) -> None:
    """The likeliest phrases and the workloads used last stay; forgetting leaves none."""
    settings = PhraseSettings(num_tokens=6, one_in=4, max_phrases=3, max_workloads=2)
    phrases = PhraseStore(store, settings)
    phrases.add(OWNER, _counted({token: token for token in range(1, 8)}), retention_seconds=0)
    assert _likeliest(phrases) == [7, 6, 5]
    for number in range(3):
        owner = PhraseOwner(SHELF, f"w{number}", "s")
        phrases.add(owner, _counted({10 + number: 1}), retention_seconds=60.0)
    assert sorted(_likeliest(phrases)) == [11, 12]
    key = store.keys.phrases(SHELF, f"{7 * 86_400}:w2")
    assert 0 < store.client.pttl(key) <= 60_000
    assert len(list(store.client.scan_iter("*:phrases:*"))) == 2


@pytest.mark.redis
def test_what_has_been_forgotten_is_not_counted(store: JournalStore) -> None:
    """A session's counts that come after its tombstone are refused; another's are not."""
    from journals import MODEL

    store.register(MODEL)
    append(store, record(1, session="s"))
    phrases = PhraseStore(store, SETTINGS)
    assert phrases.add(OWNER, _counted({1: 1}), retention_seconds=0)
    before = MemoryGovernor(store.client).forget(tenant="a", session="s").before
    assert _likeliest(phrases) == []
    assert list(store.client.scan_iter("*:phrases:*")) == []
    assert not phrases.add(OWNER, _counted({1: 1}, before - 1), retention_seconds=0)
    assert phrases.add(OWNER, _counted({2: 1}, before + 1), retention_seconds=0)
    other = PhraseOwner(SHELF, "w", "t")
    assert phrases.add(other, _counted({3: 1}, before - 1), retention_seconds=0)
    assert sorted(_likeliest(phrases)) == [2, 3]
    assert subject_of(tenant="a", session="s") in {t.subject for t in store.tombstones()}


@pytest.mark.redis
def test_engines_count_what_they_publish_and_read_it_first(
    redis_server: RedisServer, store: JournalStore, engine: Callable[..., Engine]
) -> None:
    """A new engine gets phrases before any record, then the end of its warm-up."""
    a = engine(redis_server.url, "A", phrases=SETTINGS)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 49_152, 200).astype(np.int32)
    for number in range(3):
        a.journal.publish(said(text, number))
    wanted = set(choose_phrases(text, SETTINGS))
    wait_until(lambda: a.journal.stats()["phrases"] == 3 * len(wanted), seconds=20)
    events: list[object] = []
    late = engine(
        redis_server.url,
        "B",
        phrases=SETTINGS,
        on_phrases=events.append,
        on_warmed_up=lambda: events.append("end"),
    )
    wait_until(lambda: "end" in events)
    assert len(late.got) == 3
    found = events[0]
    assert isinstance(found, PhraseSet)
    assert (found.shelf, found.workload, len(events)) == (SHELF, "w", 2)
    assert {encode_phrase(phrase) for phrase in found.phrases} == wanted
