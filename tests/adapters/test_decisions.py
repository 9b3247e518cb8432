"""What an engine remembers of its decisions for each request, and to whom it tells it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

import msgspec
import numpy as np
import pytest

from paceline.adapters.chain_fusing import ChainFuser
from paceline.adapters.decisions import (
    DECISIONS_PATH,
    LIMITS,
    SOURCE_NAMES,
    DecisionLog,
    RequestDecisions,
    SourceTokens,
    Tally,
    reason_of,
)
from paceline.adapters.identity import asked_id_of, draft_limits, new_request_id
from paceline.adapters.metrics import MemoryCollector, serve_metrics
from paceline.adapters.model_chains import ModelChains
from paceline.adapters.speculator import Speculator
from paceline.caches import Source, TreeBatch
from paceline.processes import free_port

ID = "pace-" + "ab" * 16
C, W, M, T = Source.CONTEXT, Source.WORKLOAD, Source.MODEL, Source.TENANT


def chains(*rows: list[Source]) -> TreeBatch:
    """Chains of tokens 0, 1, 2, ..., whose sources are given."""
    lengths = [len(row) for row in rows]
    return TreeBatch(
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([i for n in lengths for i in range(n)], np.int32),
        np.array([i - 1 for n in lengths for i in range(n)], np.int32),
        np.ones(sum(lengths), np.float32),
        np.array([source for row in rows for source in row], np.uint8),
    )


def issue(log: DecisionLog, ids: list[str], *rows: list[Source], kept: Any = None) -> None:
    drafts = chains(*rows)
    num_kept = [len(row) for row in rows] if kept is None else kept
    log.issue(ids, drafts, num_kept)


def found(log: DecisionLog, request_id: str = ID) -> RequestDecisions:
    record = log.find(request_id)
    assert record is not None
    return record


def test_rounds_and_tokens_are_counted_by_source() -> None:
    """Whose drafted tokens were verified and right, what was cut, and no round for the prompt."""
    log = DecisionLog()
    log.open(ID)
    log.settle({ID: [7]})  # the prompt's last step
    issue(log, [ID], [W, W, W, T], kept=[3])
    log.settle({ID: [0, 1, 9]})
    issue(log, [ID], [T, W])
    log.settle({ID: [0, 1, 9]})
    log.settle({ID: [5]})
    record = found(log)
    assert not record.is_finished
    assert (record.rounds, record.draft_tokens, record.accepted_tokens) == (3, 5, 4)
    assert record.sources == {"workload": SourceTokens(4, 3), "tenant": SourceTokens(1, 1)}
    assert record.drafts == {"memory": 2, "model": 0, "both": 0}
    assert record.cut_tokens == 1
    log.close(ID)
    assert found(log) == msgspec.structs.replace(record, is_finished=True)


def test_a_draft_that_was_not_verified_is_not_counted() -> None:
    """A request that was absent for a round comes back without the draft it had before."""
    log = DecisionLog()
    for name in ("a", "b"):
        log.open(name)
    log.settle({"a": [1], "b": [1]})
    issue(log, ["a", "b"], [W, W], [W, W])
    log.settle({"b": [0, 1, 2]})  # `a` was preempted
    log.settle({"a": [0], "b": [3]})
    assert (found(log, "a").rounds, found(log, "a").draft_tokens) == (1, 0)
    assert (found(log, "b").rounds, found(log, "b").draft_tokens) == (2, 2)


def test_who_drafted_is_told() -> None:
    """A draft is memory's, the model's or both's; rounds with the model are counted apart."""
    tally = Tally()
    for sources in ([C], [M, M], [M, W], [W, C]):
        tally.note_round(bytes(sources), b"")
    tally.model_rounds = 2
    record = tally.record(ID, is_finished=True)
    assert record.drafts == {"memory": 2, "model": 1, "both": 1}
    assert record.model_rounds == 2
    assert record.sources["model"] == SourceTokens(3, 0)
    assert set(SOURCE_NAMES) == set(Source)


def test_fused_chains_are_counted_as_the_fuser_counts_them() -> None:
    """Tokens drafted and accepted by memory and model are those of `ChainFuser.stats`."""
    log = DecisionLog()
    fuser = ChainFuser(min_probability=0.01, decisions=log)
    rng = np.random.default_rng(5)
    names = ["r0", "r1", "r2"]
    for name in names:
        log.open(name)
    log.settle({name: [1] for name in names})
    for number in range(40):
        rows = [[W] * int(rng.integers(0, 5)) for _ in names]
        memory = chains(*rows)
        memory.prob[:] = rng.uniform(0.3, 0.99, len(memory.prob))
        token_ids = rng.integers(0, 3, (3, 3)).astype(np.int32)
        top = np.stack([token_ids, np.full_like(token_ids, 9)], axis=-1)
        prob = rng.uniform(0.2, 0.9, (3, 3, 1)).repeat(2, axis=2).astype(np.float32)
        model = ModelChains(token_ids, top, prob * [1.0, 0.1], np.array([True, True, False]))
        fuser.budget.begin(3)
        recalled = fuser.recall(names, [1, 1, 2], [6, 6, 6], memory)
        fused = fuser.fuse(recalled, model if number % 3 else None)
        committed = {
            name: [*tokens[: int(rng.integers(0, 5))], 50]
            for name, tokens in zip(names, fused, strict=True)
        }
        log.settle(committed)
        fuser.learn(committed)
    stats = fuser.stats()
    records = [found(log, name) for name in names]
    model_tokens = [record.sources.get("model", SourceTokens()) for record in records]
    assert sum(each.drafted for each in model_tokens) == stats["drafted_model"] > 0
    assert sum(each.accepted for each in model_tokens) == stats["accepted_model"] > 0
    drafted = stats["drafted_model"] + stats["drafted_memory"]
    assert sum(record.draft_tokens for record in records) == drafted
    accepted = stats["accepted_model"] + stats["accepted_memory"]
    assert sum(record.accepted_tokens for record in records) == accepted
    for who in ("memory", "model", "both"):
        assert sum(record.drafts[who] for record in records) == stats[f"rows_{who}"]
    assert [record.model_rounds for record in records] == [26, 26, 0]


def test_a_request_of_several_sequences_has_one_record() -> None:
    """Replies and prompts of one request are found together, under the proxy's id alone."""
    log = DecisionLog()
    ids = [f"cmpl-{ID}-0-ff00", f"1_cmpl-{ID}-0-ff00", f"cmpl-{ID}-1-ff01"]
    for name, limits in zip(ids, ([], ["client"], ["length", "policy"]), strict=True):
        log.open(name, limits)
    log.settle({name: [1] for name in ids})
    issue(log, ids, [W], [W, C], [])
    log.settle({name: [0, 1, 2] for name in ids})
    log.close(ids[0])
    log.close(ids[2])
    record = found(log)
    assert (record.sequences, record.is_finished, record.rounds) == (3, False, 3)
    assert record.sources == {"session": SourceTokens(1, 1), "workload": SourceTokens(2, 2)}
    assert record.limited_by == ("policy", "client", "length")
    log.close(ids[1])
    assert found(log).is_finished
    assert [log.find(name) for name in ids] == [None] * 3


@pytest.mark.parametrize(
    ("engine_id", "asked"),
    [
        (f"chatcmpl-{ID}-0f", ID),
        (f"2_cmpl-{ID}-3-0f", ID),
        (f"{ID}-0f1e", ID),
        ("chatcmpl-mine-0f", "chatcmpl-mine-0f"),
        ("", ""),
    ],
)
def test_an_engines_id_leads_to_the_proxys(engine_id: str, asked: str) -> None:
    """Whatever an engine makes of our id; others stay as they are."""
    assert asked_id_of(engine_id) == asked


def test_only_the_latest_are_remembered() -> None:
    """The ring is bounded, and so is what belongs to open requests."""
    log = DecisionLog(max_finished=3)
    for number in range(5):
        log.open(str(number))
        log.close(str(number))
        log.close(str(number))
    assert [log.find(str(number)) is not None for number in range(5)] == [False] * 2 + [True] * 3
    assert not log._open
    assert not log._open_of


def test_a_failure_and_a_lost_journal_are_named() -> None:
    """Drafting that failed is said of whoever was open, a memory that is apart at the end."""
    log = DecisionLog()
    log.open("a")
    log.settle({"a": [1]})
    issue(log, ["a"], [W])
    log.failed()
    log.settle({"a": [0, 1]})
    assert found(log, "a").limited_by == ("failure",)
    assert found(log, "a").draft_tokens == 0
    log.is_apart = lambda: True
    log.close("a")
    log.open("b")
    assert found(log, "a").limited_by == ("failure", "journal")
    assert found(log, "b").limited_by == ()


@pytest.mark.parametrize(
    ("xargs", "limited_by"),
    [
        (None, []),
        ({"paceline_draft_tokens": 8, "draft_tokens": 9}, []),
        ({"paceline_draft_tokens": 4}, ["policy"]),
        ({"paceline_draft_tokens": 4, "draft_tokens": 2}, ["policy", "client"]),
        ({"draft_sources": "memory"}, ["client"]),
        ({"draft_sources": "memory,model"}, []),
        (
            {"paceline_draft_sources": "model", "draft_sources": "memory"},
            ["policy", "client", "off"],
        ),
        ({"paceline_speculation": "off"}, ["policy", "off"]),
        ({"draft_tokens": 0}, ["client", "off"]),
        ({"draft_tokens": "many"}, ["client", "off"]),
    ],
)
def test_it_is_told_who_narrowed_a_draft(xargs: Any, limited_by: list[str]) -> None:
    """Policy or client, where they say less than an engine of eight tokens would draft."""
    assert draft_limits(xargs).limited_by(8) == limited_by
    assert set(limited_by) <= set(LIMITS)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "it ended, or is, before the first round that has drafts"),
        ({"rounds": 4}, "nothing likely enough was known in 4 rounds"),
        ({"rounds": 4, "cut_tokens": 3}, "none of 3 drafted tokens was worth verifying"),
        (
            {"limited_by": ("policy", "off")},
            "nothing may draft: policy says so",
        ),
        ({"limited_by": ("off",)}, "nothing may draft: the engine says so"),
        (
            {"rounds": 2, "limited_by": ("failure",)},
            "drafting failed, or memory could not take the request; limited by failure",
        ),
        (
            {
                "rounds": 9,
                "draft_tokens": 8,
                "accepted_tokens": 5,
                "cut_tokens": 2,
                "drafts": {"memory": 1, "model": 0, "both": 2},
                "limited_by": ("client", "length"),
            },
            "memory and model drafted in 3 of 9 rounds; 5 of 8 tokens were right; "
            "2 more were not worth verifying; limited by client, length",
        ),
    ],
)
def test_the_reason_is_in_words(record: dict[str, Any], reason: str) -> None:
    """Each case has its sentence."""
    assert reason_of(RequestDecisions(request_id=ID, is_finished=True, **record)) == reason
    assert reason.isascii()


def test_a_record_passes_through_json() -> None:
    """As it was, and with fields of a later version besides."""
    log = DecisionLog()
    log.open(ID, ["client"])
    for arm in ("none", "memory-8"):
        log.choose(ID, arm)
    log.choose("another", "model-4")
    log.settle({ID: [1]})
    issue(log, [ID], [W])
    log.settle({ID: [0, 1]})
    record = found(log)
    assert record.arm == "memory-8"
    body = msgspec.json.encode(record)
    assert msgspec.json.decode(body, type=RequestDecisions) == record
    later = json.dumps(json.loads(body) | {"version": 2, "more": [1]})
    assert msgspec.json.decode(later, type=RequestDecisions).version == 2


def test_reading_beside_an_engine_that_counts_is_safe() -> None:
    """Records are read whole while another thread opens, counts and closes."""
    log = DecisionLog(max_finished=8)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                for number in range(40):
                    record = log.find(str(number))
                    assert record is None or record.accepted_tokens <= record.draft_tokens + 3
        except BaseException as error:  # noqa: BLE001  the test's own thread reports it
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2000):
        name = str(number % 40)
        log.open(name)
        log.settle({name: [1]})
        issue(log, [name], [W, C, T])
        log.settle({name: [0, 1, 2]})
        log.close(name)
    stop.set()
    reader.join()
    assert not failures


def test_a_record_is_served_to_who_knows_its_id() -> None:
    """Beside the metrics; no path lists ids, and an unknown one is not found."""
    log, port, asked = DecisionLog(), free_port(), new_request_id()
    log.open(f"chatcmpl-{asked}-0f")
    stop = serve_metrics(MemoryCollector(Speculator()), host="127.0.0.1", port=port, find=log.find)
    url = f"http://127.0.0.1:{port}"

    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(url + path, timeout=20) as answer:  # noqa: S310  our own
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    try:
        status, body = get(DECISIONS_PATH + asked)
        assert (status, json.loads(body)["request_id"]) == (200, asked)
        for unknown in (new_request_id(), "", "*", f"chatcmpl-{asked}-0f", f"{asked}/"):
            assert get(DECISIONS_PATH + unknown) == (404, b"{}")
        status, body = get("/metrics")
        assert b"paceline_memory_bytes" in body
        assert asked.encode() not in body
    finally:
        stop()
