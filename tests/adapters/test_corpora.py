"""Corpora on their way from the store into the draft memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paceline.adapters.corpora import RETRY_SECONDS, CorpusFeed
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import DraftIndex, ModelFingerprint
from paceline.caches.corpus import CorpusStore, OpenedCorpora
from waiting import wait_until

TEXT = list(range(100, 164))
OTHER = list(range(300, 364))
OURS = ModelFingerprint(model="m", tokenizer="d1")
TENANT = "tenant:local"


def add(store: CorpusStore, text: list[int], *, owner: str = TENANT, name: str = "n") -> None:
    with store.writing(owner, name) as writer:
        writer.add(np.array(text, np.int32))
        store.publish(writer, scope=owner, name=name, tokenizer="d1")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """A speculator whose corpora are looked at when a test says so."""

    def __init__(self, store: CorpusStore, fingerprint: ModelFingerprint = OURS) -> None:
        self.clock = Clock()
        self.speculator = Speculator()
        self.feed = CorpusFeed(self.speculator.index, store, fingerprint, clock=self.clock)
        self.speculator.attach_corpora(self.feed)
        self.num_requests = 0

    def drafted(self, prompt: list[int], **who: str) -> list[int]:
        """What an open request is drafted once its corpora have been looked at."""
        self.num_requests += 1
        name = f"r{self.num_requests}"
        self.speculator.begin(RequestInfo(request_id=name, record=False, **who), prompt)  # type: ignore[arg-type]
        self.feed.look()
        draft: list[int] = self.speculator.propose([name])[0].token_ids.tolist()
        self.speculator.finish(name)
        return draft


@pytest.fixture
def store(tmp_path: Path) -> CorpusStore:
    return CorpusStore(tmp_path / "store")


def continues(draft: list[int], text: list[int], prompt_length: int) -> bool:
    return len(draft) > 1 and draft == text[prompt_length : prompt_length + len(draft)]


def test_requests_draft_from_their_owners_corpora_alone(store: CorpusStore) -> None:
    """A tenant's requests, whatever adapter answers, get its corpora; nobody else gets any."""
    add(store, TEXT)
    add(store, OTHER, owner="group:g")
    engine = Engine(store)
    assert continues(engine.drafted(TEXT[:6]), TEXT, 6)
    assert continues(engine.drafted(TEXT[:6], adapter="sql"), TEXT, 6)
    for who in ({"tenant": "b"}, {"tenant": ""}, {"group": "g"}, {"tenant": "local/adapter:x"}):
        assert engine.drafted(TEXT[:6], **who) == []
    assert continues(engine.drafted(OTHER[:6], group="g"), OTHER, 6)
    assert engine.drafted(OTHER[:6]) == []
    assert engine.speculator.stats()["drafted_corpus"] == engine.speculator.stats()["drafted"]
    assert engine.speculator.scope_stats(TENANT)["drafted_corpus"] > 0
    assert engine.speculator.scope_stats("tenant:b")["drafted"] == 0


def test_another_tokenizers_corpora_are_left_alone(store: CorpusStore) -> None:
    """Token ids of another vocabulary mean other text."""
    add(store, TEXT)
    assert Engine(store, ModelFingerprint("m", "d2")).drafted(TEXT[:6]) == []


def test_changes_in_the_store_are_noticed(store: CorpusStore) -> None:
    """A corpus that is added, replaced or removed shows after the next look, no sooner."""
    engine = Engine(store)
    assert engine.drafted(TEXT[:6]) == []
    add(store, TEXT)
    assert continues(engine.drafted(TEXT[:6]), TEXT, 6)
    add(store, OTHER)
    assert engine.drafted(TEXT[:6]) == []
    assert continues(engine.drafted(OTHER[:6]), OTHER, 6)
    add(store, TEXT, name="second")
    assert continues(engine.drafted(TEXT[:6]), TEXT, 6)
    for name in ("n", "second"):
        store.remove(TENANT, name)
    assert engine.drafted(TEXT[:6]) == engine.drafted(OTHER[:6]) == []
    assert engine.speculator.stats()["segments"] == 0


def test_nothing_is_opened_where_nothing_changed(
    store: CorpusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a store that is as it was opens no corpus again."""
    add(store, TEXT)
    opened: list[str] = []
    really = CorpusStore.open

    def counted(self: CorpusStore, scope: str, fingerprint: ModelFingerprint) -> OpenedCorpora:
        opened.append(scope)
        return really(self, scope, fingerprint)

    monkeypatch.setattr(CorpusStore, "open", counted)
    engine = Engine(store)
    for _ in range(5):
        assert engine.drafted(TEXT[:6])
        engine.clock.now += 2 * RETRY_SECONDS
    assert opened == [TENANT]


def test_a_broken_corpus_costs_its_own_drafts_alone(
    store: CorpusStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and left out beside the others, and tried again a minute later."""
    add(store, OTHER, name="whole")
    add(store, TEXT, name="broken")
    (segment,) = tmp_path.rglob("broken/*.segment")
    data = segment.read_bytes()
    segment.write_bytes(data[:-1])
    engine = Engine(store)
    with caplog.at_level(logging.ERROR):
        assert engine.drafted(TEXT[:6]) == []
        assert continues(engine.drafted(OTHER[:6]), OTHER, 6)
        engine.feed.look()
    assert len([record for record in caplog.records if "broken" in record.message]) == 1
    segment.write_bytes(data)
    assert engine.drafted(TEXT[:6]) == []
    engine.clock.now += RETRY_SECONDS
    assert continues(engine.drafted(TEXT[:6]), TEXT, 6)


def test_a_store_that_fails_is_counted(store: CorpusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, requests go on without corpora, and with them when it is over."""
    add(store, TEXT)

    def failing(_store: CorpusStore, _scope: str) -> None:
        raise PermissionError("not yours")

    engine = Engine(store)
    with monkeypatch.context() as patched:
        patched.setattr(CorpusStore, "version", failing)
        assert engine.drafted(TEXT[:6]) == []
    assert engine.feed.failures.count == 1
    assert continues(engine.drafted(TEXT[:6]), TEXT, 6)


def test_a_scope_that_was_dropped_gets_its_corpora_back(store: CorpusStore) -> None:
    """So does an index that was restored: its scopes have other ids."""
    add(store, TEXT)
    engine = Engine(store)
    index = engine.speculator.index
    assert engine.drafted(TEXT[:6])
    index.drop_scope(engine.feed.scope_id(TENANT))
    assert engine.drafted(TEXT[:6])
    index.restore(index.snapshot())
    assert index.stats()["segments"] == 0
    engine.speculator = Speculator(index)  # one finds its logs by name when it first needs them
    engine.speculator.attach_corpora(engine.feed)
    assert engine.drafted(TEXT[:6])


def test_the_thread_brings_and_takes_corpora(store: CorpusStore) -> None:
    """Without a call from the engine, corpora come, go, and are left alone after closing."""
    index = DraftIndex()
    feed = CorpusFeed(index, store, OURS, look_seconds=0.01)
    has: Callable[[int], bool] = lambda count: index.stats()["segments"] == count  # noqa: E731
    feed.start()
    feed.scope_id(TENANT)
    add(store, TEXT)
    wait_until(lambda: has(1))
    store.remove(TENANT, "n")
    wait_until(lambda: has(0))
    feed.close()
    add(store, TEXT)
    feed.scope_id("tenant:b")
    assert has(0)
    feed.close()  # again does no harm


def test_a_workers_settings_say_where_corpora_are(
    store: CorpusStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's worker drafts from the folder it is told of, and from none if it is told of none."""
    from paceline.adapters.vllm import worker
    from paceline.adapters.vllm.settings import WorkerSettings

    monkeypatch.setattr(worker, "fingerprint", lambda _model_config: OURS)
    add(store, TEXT)
    speculator = Speculator()
    assert worker.open_corpora(WorkerSettings(), speculator, None) is None
    told = WorkerSettings.from_env({"PACELINE_CORPUS_DIR": str(tmp_path / "store")})
    feed = worker.open_corpora(told, speculator, None)
    assert feed is not None
    speculator.begin(RequestInfo(request_id="a"), TEXT[:6])
    wait_until(lambda: speculator.stats()["segments"] == 1)
    assert continues(speculator.propose(["a"])[0].token_ids.tolist(), TEXT, 6)
    feed.close()
