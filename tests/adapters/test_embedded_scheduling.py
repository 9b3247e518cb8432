"""Several requests in flight in the embedded engine, on its real model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.load_file import EngineFiles, EngineLoad
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import GenerationRequest, Progress
    from paceline.adapters.embedded.target import Target

pytestmark = pytest.mark.model

PROMPTS = [
    "One, two, three, four. One, two, three,",
    "def add(a, b):\n    return a + b\n\ndef add(a, b):\n    return",
    "The capital of France is",
]


def request(
    target: Target, prompt: str | list[int], name: str, **options: Any
) -> GenerationRequest:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    prompt_ids = target.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    info = {"tenant": "t", "session": "s", **options.pop("info", {})}
    return GenerationRequest(
        info=RequestInfo(request_id=name, **info),
        prompt_ids=tuple(prompt_ids),
        max_tokens=options.pop("max_tokens", 16),
        sampling=SamplingParams(**options.pop("sampling", {"temperature": 0.0})),
        **options,
    )


class Client:
    """Submits requests to a started engine and collects what comes."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self.steps: dict[str, list[Progress]] = defaultdict(list)

    def submit(self, generation: GenerationRequest) -> Any:
        from paceline.adapters.embedded.requests import Job

        job = Job(generation, self.steps[generation.info.request_id].append)
        self.engine.submit(job)
        return job

    def wait(self, *names: str) -> None:
        wait_until(lambda: all(self.has_ended(name) for name in names), seconds=120)

    def has_ended(self, name: str) -> bool:
        last = self.steps[name][-1:]
        return any(p.finish_reason is not None or p.error is not None for p in last)

    def tokens(self, name: str) -> list[int]:
        return [token for step in self.steps[name] for token in step.token_ids]


def make_engine(
    target: Target, speculator: Any = None, load: EngineLoad | None = None, **settings: Any
) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    # by a clock that stands still no draft costs anything: nothing depends on how fast it runs here
    told = EngineSettings(**settings)
    return EmbeddedEngine(target, speculator, told, clock=lambda: 0.0, load=load)


@pytest.fixture
def client(target: Target) -> Iterator[Client]:
    """An engine that drafts trees, at most three requests at a time."""
    engine = make_engine(target, Speculator(), max_running=3, max_branches=4)
    engine.start()
    yield Client(engine)
    engine.close()


def said_alone(target: Target, generation: GenerationRequest) -> list[int]:
    steps = make_engine(target).generate(generation)
    return [token for step in steps for token in step.token_ids]


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}],
    ids=["greedy", "seeded"],
)
def test_requests_side_by_side_say_what_each_says_alone(
    target: Target, client: Client, sampling: dict[str, Any]
) -> None:
    """Six requests, three at a time, drafted trees: what each says alone, in fewer steps."""
    names = [f"{turn}-{i}" for turn in range(2) for i in range(3)]
    requests = [request(target, PROMPTS[int(name[-1])], name, sampling=sampling) for name in names]
    for generation in requests:
        client.submit(generation)
    client.wait(*names)
    for name, generation in zip(names, requests, strict=True):
        assert client.tokens(name) == said_alone(target, generation)
    counts = client.engine.counts
    assert counts.requests == 6
    assert counts.accepted_tokens > 0
    assert counts.steps < counts.rounds / 1.5
    assert counts.rounds < counts.generated_tokens - 6


def test_trees_are_drafted_and_followed(target: Target) -> None:
    """Where two replies went on differently after the same text, one tree holds both ways."""
    from paceline.adapters.embedded.target import Row

    seen: list[Row] = []

    class Watched(type(target)):  # type: ignore[misc]  # the fixture's class
        def forward(self, rows: Any) -> Any:
            seen.extend(rows)
            return super().forward(rows)

    watched = Watched(target.model, target.tokenizer)
    engine = make_engine(watched, Speculator(), max_branches=4, max_draft_tokens=16)
    encode = target.tokenizer.encode
    ways = encode(" it. Go left now. Go right now. Go left now. Go right now. Go")
    list(engine.generate(request(target, ways, "r", max_tokens=32)))
    forks = [row for row in seen if len(set(row.parents)) < len(row.parents)]
    assert forks
    assert engine.counts.accepted_tokens > 0


def test_the_next_turn_reads_only_what_is_new(target: Target) -> None:
    """A session's next prompt is read from where the last turn ended; another tenant's wholly."""
    engine = make_engine(target)
    first = request(target, PROMPTS[0] * 3, "1")
    steps = list(engine.generate(first))
    reply = [token for step in steps for token in step.token_ids]
    longer = [*first.prompt_ids, *reply, *target.tokenizer.encode(" And then")]
    turns = {
        "same": {},
        "foreign": {"tenant": "other"},
        "nobody": {"tenant": "", "record": False},
        "another session": {"session": "s2"},
        "unrecorded": {"record": False},
        "unrecorded again": {"record": False},
    }
    cached = {}
    for name, info in turns.items():
        again = list(engine.generate(request(target, longer, name, info=info)))
        cached[name] = again[0].num_cached
        said = [token for step in again for token in step.token_ids]
        assert said == said_alone(target, request(target, longer, "alone"))
    known = len(first.prompt_ids) + len(reply) - 1
    assert cached == {
        "same": known,
        "foreign": 0,
        "nobody": 0,
        "another session": len(longer) - 1,
        "unrecorded": 0,
        "unrecorded again": 0,
    }
    assert engine.counts.cached_tokens == known + len(longer) - 1


def test_an_aborted_request_leaves_the_others_alone(target: Target, client: Client) -> None:
    """Of two requests one is aborted in its midst: it ends, the other says all it has to."""
    going = client.submit(request(target, PROMPTS[0], "going", max_tokens=200))
    client.submit(request(target, PROMPTS[2], "staying", max_tokens=24))
    wait_until(lambda: len(client.steps["going"]) > 2, seconds=60)
    going.aborted.set()
    client.wait("going", "staying")
    assert client.steps["going"][-1].finish_reason == "abort"
    assert len(client.tokens("staying")) == 24
    assert client.engine.sizes()["running"] == 0


def test_a_failing_request_leaves_the_others_alone(target: Target, client: Client) -> None:
    """A token that the model has not got ends its own request with an error and no other."""
    bad = [1, 2, 10**6]
    expected = said_alone(target, request(target, PROMPTS[2], "alone"))
    client.submit(request(target, PROMPTS[2], "good"))
    client.submit(request(target, bad, "bad"))
    client.wait("good", "bad")
    assert client.tokens("good") == expected
    assert client.steps["bad"][-1].error == "the engine failed: IndexError"
    assert client.engine.counts.failed == 1


def test_a_request_that_cannot_begin_ends_alone(
    target: Target, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for its keys and values one request fails; the engine serves the next."""
    make = target.sequence

    def once() -> Any:
        monkeypatch.setattr(target, "sequence", make)
        raise MemoryError

    monkeypatch.setattr(target, "sequence", once)
    client.submit(request(target, PROMPTS[1], "bad"))
    client.wait("bad")
    assert client.steps["bad"][-1].error == "the engine failed: MemoryError"
    client.submit(request(target, PROMPTS[2], "good"))
    client.wait("good")
    assert len(client.tokens("good")) == 16


def test_a_step_that_fails_ends_its_requests_and_no_more(
    target: Target, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong around the model, the engine's thread goes on."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(client.engine, "_rows", broken)
        client.submit(request(target, PROMPTS[1], "bad"))
        client.wait("bad")
    assert client.steps["bad"][-1].error == "the engine failed: RuntimeError"
    client.submit(request(target, PROMPTS[2], "good"))
    client.wait("good")
    assert len(client.tokens("good")) == 16


def test_forgetting_reaches_what_was_kept(target: Target) -> None:
    """Afterwards the same prompt is read anew."""
    engine = make_engine(target)
    cached = []
    for name in ("1", "2", "forgotten"):
        if name == "forgotten":
            engine.forget_kept()
        cached.append(next(iter(engine.generate(request(target, PROMPTS[0] * 2, name)))).num_cached)
    assert cached[0] == cached[2] == 0 < cached[1]


def test_long_prompts_do_not_stop_the_replies_of_others(target: Target, client: Client) -> None:
    """While a long prompt is read in parts, a running reply gets a token with every part."""
    client.submit(request(target, PROMPTS[2], "talker", max_tokens=40))
    wait_until(lambda: len(client.steps["talker"]) > 1, seconds=60)
    before = len(client.tokens("talker"))
    client.submit(
        request(target, target.tokenizer.encode("word and ") * 400, "reader", max_tokens=1)
    )
    client.wait("reader")
    assert len(client.tokens("talker")) >= before + 2
    client.wait("talker")


def test_a_request_may_ask_for_fewer_drafted_tokens(target: Target) -> None:
    """max_draft_tokens bounds the request's drafts; 0 drafts nothing."""
    engine = make_engine(target, Speculator())
    drafted = []
    for limit in (0, 2, None):
        before = engine.counts.draft_tokens, engine.counts.rounds
        name = str(limit)
        list(engine.generate(request(target, PROMPTS[0], name, max_draft_tokens=limit)))
        after = engine.counts.draft_tokens, engine.counts.rounds
        drafted.append((after[0] - before[0]) / (after[1] - before[1]))
    assert drafted[0] == 0
    assert 0 < drafted[1] <= 2 < drafted[2]


def test_log_probabilities_come_with_each_token(target: Target) -> None:
    """One entry a token, drafted or not, each the greedy choice, as without speculation."""
    entries = []
    for speculator in (None, Speculator()):
        engine = make_engine(target, speculator)
        steps = list(engine.generate(request(target, PROMPTS[0], "r", num_logprobs=2)))
        assert [len(step.logprobs) for step in steps] == [len(step.token_ids) for step in steps]
        entries.append([said for step in steps for said in step.logprobs])
    plain, drafted = entries
    assert [said.token_id for said in plain] == [said.token_id for said in drafted]
    for said, other in zip(plain, drafted, strict=True):
        assert said.top[0] == (said.token_id, said.logprob)
        assert said.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert said.logprob > said.top[1][1]


def test_a_learner_is_told_of_every_request_that_is_open(target: Target, tmp_path: Path) -> None:
    """From the moment it is submitted, waiting or not, until it ends in whichever way."""
    from paceline.adapters.embedded import engine as module
    from paceline.errors import EngineError

    client = Client(make_engine(target, load=EngineLoad(tmp_path), max_running=1))
    files = EngineFiles(tmp_path)
    files.find()
    going = client.submit(request(target, PROMPTS[0], "going", max_tokens=200))
    client.submit(request(target, PROMPTS[2], "waiting", max_tokens=4))
    client.submit(request(target, [10**9], "bad"))
    assert files.num_open() == 3
    for number in range(module.MAX_WAITING - 3):
        client.submit(request(target, PROMPTS[2], f"more-{number}", max_tokens=1)).aborted.set()
    with pytest.raises(EngineError, match="waiting already"):
        client.submit(request(target, PROMPTS[2], "too many"))
    assert files.num_open() == module.MAX_WAITING
    client.engine.start()
    wait_until(lambda: bool(client.steps["going"]), seconds=120)
    going.aborted.set()
    client.wait("going", "waiting", "bad")
    wait_until(lambda: files.num_open() == 0, seconds=120)
    assert client.engine.counts.failed == 1
    client.submit(request(target, PROMPTS[0], "last", max_tokens=4))
    assert files.num_open() == 1
    client.engine.close()
    assert files.num_open() == 0
    files.find()
    assert len(files) == 0
