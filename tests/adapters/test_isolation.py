"""Whatever tenants, engines and policies do at once, nobody drafts a token of a foreign scope."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import DraftIndex, SequenceRecord
from paceline.caches.tier_settings import MemorySettings, TierLimits, TierSettings

OPENING = [1, 2, 3, 4]
"""What every request of every scope reads and says: any log would match here."""
FIRST_OWN_TOKEN = 100
NUM_OPEN = 6

choices = st.integers(0, 1_000_000)
# Names that would meet if scopes, adapters and workloads were joined without quoting.
identities = st.builds(
    dict,
    tenant=st.sampled_from(["a", "b", "a/adapter:l", "a/workload:w", "group:g", "global", ""]),
    share=st.sampled_from(["private", "private", "group", "global"]),
    adapter=st.sampled_from(["", "", "l", "l/workload:w"]),
    workload=st.sampled_from(["", "w", "w/workload:x", "x"]),
    session=st.sampled_from(["", "s", "t"]),
    record=st.sampled_from([True, True, False]),
    limits=st.sampled_from(
        [
            TierLimits(),
            TierLimits(workload=False),
            TierLimits(tenant=False),
            TierLimits(session=False, retention_seconds=50.0, capacity=40),
        ]
    ),
)


@dataclass
class Served:
    """A request and the token that it alone has said."""

    info: RequestInfo
    engine: int
    token: int
    known: set[int]
    is_forgotten: bool = False

    def owner(self) -> tuple[str, str]:
        """Who may see its tokens, written without `RequestInfo.scope`."""
        if self.info.group:
            return f"the group {self.info.group}", self.info.adapter
        if self.info.is_global:
            return "everybody who shares", self.info.adapter
        return f"the tenant {self.info.tenant}", self.info.adapter


class Sink:
    """The journal: records on their way to the other engines."""

    def __init__(self) -> None:
        self.records: list[SequenceRecord] = []

    def publish(self, record: SequenceRecord) -> None:
        self.records.append(record)


class Isolation(RuleBasedStateMachine):
    """Two engines, one journal."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.sinks = [Sink(), Sink()]
        memory = MemorySettings(
            workload=TierSettings(capacity=60),
            tenant=TierSettings(capacity=60, retention_seconds=500.0),
            num_neighbours=1,
            max_logs=6,
            max_tokens=200,
        )
        self.engines = [
            Speculator(DraftIndex(), memory=memory, journal=sink, clock=lambda: self.now)
            for sink in self.sinks
        ]
        self.open: list[Served] = []
        self.said: dict[int, Served] = {}
        self.transcripts: dict[tuple[str, ...], list[int]] = {}
        self.on_the_way: list[tuple[int, SequenceRecord]] = []

    @precondition(lambda self: len(self.open) < NUM_OPEN)
    @rule(engine=st.integers(0, 1), identity=identities, goes_on=st.booleans())
    def begin(self, engine: int, identity: dict[str, object], goes_on: bool) -> None:
        number = len(self.said)
        values = dict(identity)
        share = values.pop("share")
        info = RequestInfo(
            request_id=f"r{number}",
            group="g" if share == "group" else "",
            is_global=share == "global",
            **values,  # type: ignore[arg-type]
        )
        served = Served(info, engine, FIRST_OWN_TOKEN + number, set())
        # A client sends again what its own conversation was, never another's.
        before = self.transcripts.get(self.conversation(served), []) if goes_on else []
        prompt = [*before, *OPENING]
        served.known = set(prompt)
        self.open.append(served)
        self.said[served.token] = served
        self.engines[engine].begin(info, prompt)
        self.transcripts[self.conversation(served)] = prompt
        self.draft(served)

    def conversation(self, served: Served) -> tuple[str, ...]:
        return *served.owner(), served.info.tenant, served.info.session or served.info.request_id

    @precondition(lambda self: self.open)
    @rule(choice=choices)
    def say(self, choice: int) -> None:
        served = self.open[choice % len(self.open)]
        reply = [served.token, served.token, *OPENING]
        served.known.add(served.token)
        self.engines[served.engine].commit(served.info.request_id, reply)
        transcript = self.transcripts.get(self.conversation(served), OPENING)
        self.transcripts[self.conversation(served)] = transcript + reply
        self.draft(served)

    def draft(self, served: Served) -> None:
        """Every token of the draft is one that this request may see."""
        tree = self.engines[served.engine].propose([served.info.request_id], max_tokens=16)[0]
        for token in set(tree.token_ids.tolist()) - set(OPENING) - served.known:
            owner = self.said[token]
            assert served.info.tenant, "a request that nobody vouched for drafted from others"
            assert owner.info.tenant
            assert owner.owner() == served.owner()
            assert owner.info.record, "what was not to be recorded was drafted for others"
            assert not owner.is_forgotten, "what was forgotten was drafted"

    @precondition(lambda self: self.open)
    @rule(choice=choices)
    def propose_again(self, choice: int) -> None:
        self.draft(self.open[choice % len(self.open)])

    @precondition(lambda self: self.open)
    @rule(choice=choices)
    def finish(self, choice: int) -> None:
        served = self.open.pop(choice % len(self.open))
        self.engines[served.engine].finish(served.info.request_id)
        self.take_records()

    def take_records(self) -> None:
        for number, sink in enumerate(self.sinks):
            for record in sink.records:
                request = self.said[FIRST_OWN_TOKEN + int(record.request_id[1:])]
                assert request.info.record
                assert request.info.tenant
                self.on_the_way.append((1 - number, record))
            sink.records.clear()

    @precondition(lambda self: self.on_the_way)
    @rule(choice=choices)
    def absorb(self, choice: int) -> None:
        engine, record = self.on_the_way.pop(choice % len(self.on_the_way))
        self.engines[engine].absorb(record)

    @precondition(lambda self: len(self.said) > len(self.open))
    @rule(choice=choices)
    def forget(self, choice: int) -> None:
        """A finished request, and whatever quoted it, is forgotten everywhere."""
        closed = [s for s in self.said.values() if s not in self.open and s.info.scope]
        if not closed:
            return
        target = closed[choice % len(closed)]
        for served in closed:
            if served.owner() == target.owner() and target.token in served.known:
                self.forget_one(served)
        quoted_in_open = [s for s in self.open if target.token in s.known]
        target.is_forgotten = not quoted_in_open

    def forget_one(self, served: Served) -> None:
        for engine in self.engines:
            engine.forget(served.info.scope, served.info.request_id)
        self.on_the_way = [
            (to, record)
            for to, record in self.on_the_way
            if record.request_id != served.info.request_id
        ]
        self.transcripts.pop(self.conversation(served), None)

    @rule(seconds=st.sampled_from([1.0, 60.0, 600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for engine in self.engines:
            engine.expire()

    @invariant()
    def memory_is_bounded(self) -> None:
        for engine in self.engines:
            sizes = engine.memory.sizes()
            assert len(sizes) <= 6
            assert sum(size.num_tokens for size in sizes) <= 200
            stats = engine.index.stats()
            assert stats["scopes"] == len(sizes)
            assert stats["shared_tokens"] == sum(size.num_tokens for size in sizes)

    def teardown(self) -> None:
        for engine in self.engines:
            engine.index.check_integrity()


TestIsolation = Isolation.TestCase
TestIsolation.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
