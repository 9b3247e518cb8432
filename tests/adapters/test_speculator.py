"""The engine-neutral seam, on the real index."""

import numpy as np
import pytest

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import SequenceRecord
from paceline.caches.journal_keeper import Quota
from paceline.caches.tier_settings import MemorySettings, TierLimits, TierSettings
from paceline.errors import DraftError

TEXT = list(range(100, 164))


class Sink:
    """Keeps what would have gone to the journal."""

    def __init__(self) -> None:
        self.records: list[SequenceRecord] = []

    def publish(self, record: SequenceRecord) -> None:
        self.records.append(record)


def serve(
    speculator: Speculator, request: RequestInfo, prompt: list[int], output: list[int]
) -> None:
    speculator.begin(request, prompt)
    speculator.commit(request.request_id, output)
    speculator.finish(request.request_id)


def drafted(
    speculator: Speculator, request: RequestInfo, prompt: list[int], *, limit: int = 8
) -> list[int]:
    speculator.begin(request, prompt)
    tree = speculator.propose([request.request_id], max_tokens=limit)[0]
    tree.validate()
    speculator.finish(request.request_id)
    return tree.token_ids.tolist()


def assert_continues(draft: list[int]) -> None:
    """The draft is the beginning of what followed the eight prompt tokens."""
    assert len(draft) > 1
    assert draft == TEXT[8 : 8 + len(draft)]


def test_second_identical_request_drafts_from_the_first() -> None:
    """What one request of a tenant said is drafted for the next, up to the limit."""
    speculator = Speculator()
    serve(speculator, RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    assert_continues(drafted(speculator, RequestInfo(request_id="b"), TEXT[:8]))


@pytest.mark.parametrize(
    "other",
    [
        RequestInfo(request_id="b", tenant="other"),
        RequestInfo(request_id="b", tenant=""),
        RequestInfo(request_id="b", tenant="local", group="team"),
        RequestInfo(request_id="b", tenant="local", adapter="sql-lora"),
    ],
    ids=["tenant", "nobody", "group", "adapter"],
)
def test_foreign_scopes_draft_nothing(other: RequestInfo) -> None:
    """Nothing of one tenant, group or adapter reaches a draft of another."""
    speculator = Speculator()
    serve(speculator, RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    assert drafted(speculator, other, TEXT[:8]) == []


def test_tenants_of_a_group_share() -> None:
    """Two tenants of one sharing group draft from each other."""
    speculator = Speculator()
    serve(speculator, RequestInfo(request_id="a", tenant="x", group="g"), TEXT[:8], TEXT[8:])
    assert drafted(speculator, RequestInfo(request_id="b", tenant="y", group="g"), TEXT[:8])


def test_unrecorded_requests_leave_no_trace() -> None:
    """A request with record=False is neither drafted for others nor published."""
    sink = Sink()
    speculator = Speculator(journal=sink)
    serve(speculator, RequestInfo(request_id="a", record=False), TEXT[:8], TEXT[8:])
    assert sink.records == []
    assert drafted(speculator, RequestInfo(request_id="b"), TEXT[:8]) == []


def test_an_unrecorded_turn_leaves_no_context_behind() -> None:
    """Nothing of a request with record=False stays in the memory, its own session's included."""
    speculator = Speculator()
    info = RequestInfo(request_id="a", session="s", record=False)
    serve(speculator, info, TEXT[:8], TEXT[8:])
    stats = speculator.stats()
    assert (stats["context_tokens"], stats["shared_tokens"], stats["sessions"]) == (0, 0, 0)


def test_workloads_of_a_tenant_draft_from_each_other_unless_their_policy_says_no() -> None:
    """What one workload said is drafted in another, with the tenant tier off in its own alone."""
    apart = TierLimits(tenant=False)
    for limits, shared in ((TierLimits(), True), (apart, False)):
        speculator = Speculator()
        for session in ("s", "t"):
            info = RequestInfo(request_id=session, workload="w", session=session, limits=limits)
            serve(speculator, info, TEXT[:8], TEXT[8:])
        other = RequestInfo(request_id="x", workload="v", session="u", limits=limits)
        assert bool(drafted(speculator, other, TEXT[:8])) == shared
        own = RequestInfo(request_id="y", workload="w", session="u", limits=limits)
        assert_continues(drafted(speculator, own, TEXT[:8]))


def test_finish_publishes_only_what_the_session_added() -> None:
    """The second turn's record holds its new prompt tokens and output, not the first turn's."""
    sink = Sink()
    speculator = Speculator(journal=sink, origin="me", clock=lambda: 5.0)
    first = RequestInfo(request_id="a", session="s", workload="w")
    serve(speculator, first, TEXT[:8], TEXT[8:16])
    second = RequestInfo(request_id="b", session="s", workload="w")
    serve(speculator, second, TEXT[:20], TEXT[20:24])
    records = {r.request_id: r for r in sink.records}
    assert (records["a"].token_ids.tolist(), records["a"].num_prompt) == (TEXT[:16], 8)
    assert (records["b"].token_ids.tolist(), records["b"].num_prompt) == (TEXT[16:24], 4)
    assert (records["b"].scope, records["b"].origin) == ("tenant:local", "me")
    assert (records["b"].workload, records["b"].finished_at) == ("w", 5.0)


def test_absorbed_records_are_drafted() -> None:
    """What another engine journalled serves here as if it had been served here."""
    there, here = Sink(), Speculator()
    serve(Speculator(journal=there), RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    here.absorb(there.records[0])
    assert_continues(drafted(here, RequestInfo(request_id="b"), TEXT[:8]))


def test_a_forgotten_request_is_drafted_nowhere() -> None:
    """Forgetting a request's id reaches what this engine served and what it absorbed."""
    sink = Sink()
    server, reader = Speculator(journal=sink, clock=lambda: 50.0), Speculator()
    serve(server, RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    reader.absorb(sink.records[0])
    for speculator in (server, reader):
        assert speculator.forget("tenant:local", "other") == 0
        assert speculator.forget("tenant:local", "a") == len(TEXT)
        assert drafted(speculator, RequestInfo(request_id="b"), TEXT[:8]) == []


def test_what_finished_long_ago_is_forgotten() -> None:
    """Sequences age by the time they finished at, here or elsewhere."""
    sink = Sink()
    server, reader = Speculator(journal=sink, clock=lambda: 50.0), Speculator()
    serve(server, RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    reader.absorb(sink.records[0])
    for speculator in (server, reader):
        assert speculator.forget_before("tenant:local", 50.0) == 0
        assert speculator.forget_before("tenant:local", 50.5) == len(TEXT)
        assert drafted(speculator, RequestInfo(request_id="b"), TEXT[:8]) == []


def test_observe_follows_the_engines_buffer() -> None:
    """Lost deltas are caught up and tokens taken back are dropped; the engine's buffer decides."""
    speculator = Speculator()
    speculator.begin(RequestInfo(request_id="a"), TEXT[:4])
    buffer = np.array(TEXT, np.int32)
    for length in (10, 10, 30, 12):
        speculator.observe(["a"], [buffer], [length])
        assert speculator.num_tokens("a") == length


def test_batches_mix_lengths_and_limits() -> None:
    """One call drafts for several requests, each within its own limit."""
    speculator = Speculator()
    serve(speculator, RequestInfo(request_id="a"), TEXT[:8], TEXT[8:])
    for name in ("x", "y", "z"):
        speculator.begin(RequestInfo(request_id=name), TEXT[:8])
    trees = speculator.propose(["x", "y", "z"], max_tokens={"x": 2, "y": 0, "z": 5})
    for tree, limit in zip(trees, (2, 0, 5), strict=True):
        assert min(limit, 1) <= len(tree) <= limit
    assert speculator.propose([], max_tokens=4) == []


def test_flat_drafts_are_those_of_the_trees() -> None:
    """A batch in flat arrays holds the same drafts, empty ones and none at all included."""
    speculator = Speculator()
    prompts = {"a": TEXT[:8] * 3, "b": TEXT[:1], "c": TEXT[:4] * 5}
    for request_id, prompt in prompts.items():
        speculator.begin(RequestInfo(request_id=request_id), prompt)
    batch = speculator.propose_batch([*prompts], max_tokens={"a": 5, "b": 5, "c": 2})
    trees = speculator.propose([*prompts], max_tokens={"a": 5, "b": 5, "c": 2})
    assert len(batch) == len(trees) == 3
    assert batch.token_lists() == [tree.token_ids.tolist() for tree in trees]
    assert [len(tree) for tree in batch.trees()] == [5, 0, 2]
    assert batch.trees()[2].parent.tolist() == [-1, 0]
    assert speculator.propose([]) == speculator.propose_batch([]).token_lists() == []


def test_wrong_use_is_named() -> None:
    """Opening an id twice and asking for an unknown one say so.

    Finishing an unknown one is harmless.
    """
    speculator = Speculator()
    speculator.begin(RequestInfo(request_id="a"), TEXT[:4])
    with pytest.raises(DraftError, match="'a' is open already"):
        speculator.begin(RequestInfo(request_id="a"), TEXT[:4])
    with pytest.raises(DraftError, match="'b' is not open"):
        speculator.propose(["b"])
    speculator.finish("b")


def test_close_finishes_what_is_open() -> None:
    """Closing publishes the open requests and forgets them."""
    sink = Sink()
    speculator = Speculator(journal=sink)
    speculator.begin(RequestInfo(request_id="a"), TEXT[:4])
    speculator.close()
    assert [r.request_id for r in sink.records] == ["a"]
    assert len(speculator) == 0
    speculator.index.check_integrity()


@pytest.mark.parametrize("kept_by", ["the engine", "the tenant"])
def test_a_conversation_that_rests_too_long_is_forgotten(kept_by: str) -> None:
    """Its context goes like what it said, by the shorter of the two retentions."""
    now = 1000.0
    tier = TierSettings(retention_seconds=60.0 if kept_by == "the engine" else 600.0)
    limits = TierLimits(retention_seconds=None if kept_by == "the engine" else 60.0)
    speculator = Speculator(memory=MemorySettings(session=tier), clock=lambda: now)
    for session in "st":
        info = RequestInfo(request_id=session, tenant="a", session=session, limits=limits)
        speculator.begin(info, TEXT)
        speculator.finish(session)
        now += 50.0
    assert speculator.stats()["sessions"] == 2
    assert speculator.expire() >= len(TEXT)
    assert speculator.stats()["sessions"] == 1


def test_a_tenants_quota_is_what_its_last_request_said() -> None:
    """The shorter retention holds, the engine's for tenants that have not asked yet."""
    tier = TierSettings(retention_seconds=500.0)
    speculator = Speculator(memory=MemorySettings(workload=tier))
    limits = TierLimits(stored_tokens=1000, retention_seconds=60.0)
    speculator.begin(RequestInfo(request_id="1", tenant="a", limits=limits), [1, 2, 3])
    assert speculator.quota_of("a") == Quota(max_tokens=1000, retention_seconds=60.0)
    assert speculator.quota_of("b") == Quota(retention_seconds=500.0)
    speculator.begin(RequestInfo(request_id="2", tenant="a"), [1, 2, 3])
    assert speculator.quota_of("a") == Quota(retention_seconds=500.0)


def test_a_record_says_what_may_be_learned_and_where_it_stands() -> None:
    """Learning, group, temperature, the drafter's version, and how much of the session is older."""
    speculator, sink = Speculator(), Sink()
    speculator.attach_journal(sink)
    who = {"session": "s", "learn": True, "drafter_group": "g", "temperature": 0.5}
    serve(speculator, RequestInfo(request_id="a", **who), TEXT[:8], TEXT[8:12])  # type: ignore[arg-type]
    speculator.drafter_version = 7
    serve(speculator, RequestInfo(request_id="b", **who), TEXT[:14], TEXT[14:])  # type: ignore[arg-type]
    serve(speculator, RequestInfo(request_id="c"), TEXT[:8], TEXT[8:12])
    first, second, third = sink.records
    assert (first.learn, first.drafter_group, first.temperature) == (True, "g", 0.5)
    assert (first.drafter_version, second.drafter_version) == (0, 7)
    assert (first.num_before, second.num_before) == (0, 12)
    assert second.token_ids.tolist() == list(TEXT[12:])
    assert (third.learn, third.drafter_group, third.temperature) == (False, "", -1.0)


def test_a_record_of_an_open_request_is_left_to_its_own_end() -> None:
    """The proxy may record a request before its engine does: the memory holds it once."""
    speculator, sink = Speculator(origin="here"), Sink()
    speculator.attach_journal(sink)
    request = RequestInfo(request_id="chatcmpl-r-1", record_id="r")
    speculator.begin(request, TEXT[:8])
    speculator.commit(request.request_id, TEXT[8:])
    proxys = SequenceRecord(
        request_id="r",
        scope=request.scope,
        tenant="local",
        workload="",
        session="",
        origin="proxy",
        token_ids=np.array(TEXT, np.int32),
        num_prompt=8,
        finished_at=1.0,
    )
    speculator.absorb(proxys)
    assert speculator.stats()["sequences"] == 0
    speculator.finish(request.request_id)
    assert speculator.stats()["sequences"] == 1
    assert [record.request_id for record in sink.records] == ["r"]
    speculator.absorb(proxys)
    assert speculator.stats()["sequences"] == 2
    assert speculator.forget(request.scope, "r") == 2 * len(TEXT)


def test_two_open_requests_of_one_record_id_are_both_left_to_their_ends() -> None:
    """A request that the proxy sent again is open twice until the first is noticed as gone."""
    speculator = Speculator(journal=Sink())
    requests = [RequestInfo(request_id=name, record_id="r") for name in ("a", "b")]
    for request in requests:
        speculator.begin(request, TEXT[:8])
    speculator.finish("a")
    before = speculator.stats()["shared_tokens"]
    late = SequenceRecord(
        request_id="r", scope=requests[0].scope, tenant="local", workload="", session="",
        origin="proxy", token_ids=np.array(TEXT, np.int32), num_prompt=8, finished_at=1.0,
    )  # fmt: skip
    speculator.absorb(late)
    assert speculator.stats()["shared_tokens"] == before
    speculator.finish("b")
    speculator.absorb(late)
    assert speculator.stats()["shared_tokens"] > before
