"""The embedded engine on its real model: the same words with and without speculation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches.corpus import CorpusStore
from paceline.caches.tokenizer import TextTokenizer
from paceline.errors import EngineError
from waiting import wait_until

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import Progress
    from paceline.adapters.embedded.target import Target

pytestmark = pytest.mark.model

PROMPTS = [
    "def add(a, b):\n    return a + b\n\ndef add(a, b):\n    return",
    "One, two, three, four. One, two, three,",
    "The capital of France is",
]


def make_engine(target: Target, speculator: Any = None, **settings: Any) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    # by a clock that stands still no draft costs anything: nothing depends on how fast it runs here
    return EmbeddedEngine(target, speculator, EngineSettings(**settings), clock=lambda: 0.0)


def run(
    engine: EmbeddedEngine,
    prompt: str,
    *,
    tenant: str = "t",
    name: str = "r",
    max_tokens: int = 24,
    **options: Any,
) -> list[Progress]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    sampling = options.pop("sampling", {"temperature": 0.0})
    request = GenerationRequest(
        info=RequestInfo(request_id=name, tenant=tenant),
        prompt_ids=tuple(engine.target.tokenizer.encode(prompt)),
        max_tokens=max_tokens,
        sampling=SamplingParams(**sampling),
        **options,
    )
    return list(engine.generate(request))


def tokens(steps: list[Progress]) -> list[int]:
    return [token for step in steps for token in step.token_ids]


def text(steps: list[Progress]) -> str:
    return "".join(step.text for step in steps)


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "seed": 5}],
    ids=["greedy", "seeded"],
)
def test_speculation_changes_no_token(target: Target, sampling: dict[str, Any]) -> None:
    """Each prompt, asked twice: the same tokens as without speculation, greedy and with a seed."""
    plain, fast = make_engine(target), make_engine(target, Speculator())
    for number, prompt in enumerate(PROMPTS):
        expected = tokens(run(plain, prompt, sampling=sampling))
        for turn in range(2):
            got = tokens(run(fast, prompt, sampling=sampling, name=f"{number}-{turn}"))
            assert got == expected
    assert fast.counts.accepted_tokens > 0
    assert plain.counts.draft_tokens == 0


def test_the_second_identical_request_takes_far_fewer_rounds(target: Target) -> None:
    """What the first request said is drafted for the second, of its own tenant only."""
    engine = make_engine(target, Speculator())
    prompt = PROMPTS[2]
    rounds = []
    for name, tenant in (("first", "a"), ("second", "a"), ("foreign", "b")):
        before = engine.counts.rounds
        run(engine, prompt, name=name, tenant=tenant, max_tokens=32)
        rounds.append(engine.counts.rounds - before)
    first, second, foreign = rounds
    assert second < first / 2
    assert foreign == first


def test_a_corpus_is_drafted_before_anybody_said_it(
    target: Target, target_folder: Path, tmp_path: Path
) -> None:
    """Text added with the command's tokenizer is drafted by the engine, and changes no token."""
    from paceline.adapters.embedded.__main__ import corpus_feed, fingerprint_of

    plain = make_engine(target)
    expected = run(plain, PROMPTS[2], max_tokens=32)
    tokenizer = TextTokenizer(str(target_folder))
    store = CorpusStore(tmp_path)
    with store.writing("tenant:t", "n") as writer:
        for ids in tokenizer.encode([f"{PROMPTS[2]}{text(expected)}"]):
            writer.add(ids)
        store.publish(writer, scope="tenant:t", name="n", tokenizer=tokenizer.digest)
    speculator = Speculator()
    assert corpus_feed(None, speculator, fingerprint_of(target, "m")) is None
    feed = corpus_feed(str(tmp_path), speculator, fingerprint_of(target, "m"))
    assert feed is not None
    feed.scope_id("tenant:t")
    wait_until(lambda: speculator.stats()["segments"] == 1)
    engine = make_engine(target, speculator)
    assert tokens(run(engine, PROMPTS[2], max_tokens=32)) == tokens(expected)
    assert speculator.stats()["accepted_corpus"] > 8
    assert engine.counts.rounds < plain.counts.rounds / 2
    feed.close()


def test_requests_that_ask_for_it_are_not_drafted_for(target: Target) -> None:
    """A limit of 0 answers without a single draft, and is remembered all the same."""
    engine = make_engine(target, Speculator())
    run(engine, PROMPTS[0], name="1", max_draft_tokens=0)
    assert engine.counts.draft_tokens == 0
    run(engine, PROMPTS[0], name="2")
    assert engine.counts.accepted_tokens > 0


def test_stop_strings_end_the_reply_before_them(target: Target) -> None:
    """The reply is the unstopped one up to the stop string, also where it straddles tokens."""
    engine = make_engine(target, Speculator())
    whole = text(run(engine, PROMPTS[1], name="whole"))
    stop = whole[9:14]
    steps = run(engine, PROMPTS[1], name="cut", stop=(stop, "never said"))
    assert text(steps) == whole[: whole.index(stop)]
    assert steps[-1].finish_reason == "stop"
    assert len(tokens(steps)) < 24


def test_length_and_text_agree_with_the_tokens(target: Target) -> None:
    """A reply has exactly max_tokens tokens unless it ends, and its text is their decoding."""
    engine = make_engine(target, Speculator())
    for length in (1, 5):
        steps = run(engine, PROMPTS[2], name=str(length), max_tokens=length)
        assert len(tokens(steps)) == length
        assert steps[-1].finish_reason == "length"
        assert text(steps) == target.tokenizer.decode(tokens(steps))


def test_failing_drafts_are_counted_and_harmless(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the draft memory raises, the reply is the target's and the failures are counted."""
    expected = tokens(run(make_engine(target), PROMPTS[0]))
    speculator = Speculator()

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(speculator, "propose", broken)
    engine = make_engine(target, speculator)
    assert tokens(run(engine, PROMPTS[0])) == expected
    assert engine.draft_failures.count > 0
    monkeypatch.setattr(speculator, "begin", broken)
    assert tokens(run(engine, PROMPTS[0], name="other")) == expected


def test_an_abandoned_request_is_closed(target: Target) -> None:
    """A reply that nobody reads on leaves nothing open in the draft memory."""
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    speculator = Speculator()
    engine = make_engine(target, speculator)
    prompt_ids = tuple(target.tokenizer.encode(PROMPTS[2]))
    request = GenerationRequest(
        info=RequestInfo(request_id="r"),
        prompt_ids=prompt_ids,
        max_tokens=20,
        sampling=SamplingParams(temperature=0),
    )
    steps = engine.generate(request)
    next(steps)
    assert len(speculator) == 1
    steps.close()  # type: ignore[attr-defined]  # a generator
    assert len(speculator) == 0
    speculator.index.check_integrity()


def test_limits_are_named(target: Target) -> None:
    """A draft length of nothing is refused, and what is no probability."""
    with pytest.raises(EngineError, match="max_draft_tokens is 0"):
        make_engine(target, Speculator(), max_draft_tokens=0)
    for wrong in (0.0, 1.5):
        with pytest.raises(EngineError, match=rf"min_probability is {wrong}; give .*at most 1"):
            make_engine(target, Speculator(), min_probability=wrong)


def test_characters_are_never_split(target: Target) -> None:
    """Text of several bytes a character comes out whole, token by token."""
    from paceline.adapters.embedded.text import TextStream

    written = "naïve 日本語 🚲🚲 done"
    stream = TextStream(target.tokenizer)
    pieces = [stream.push(token) for token in target.tokenizer.encode(written)]
    assert "".join(pieces) + stream.rest() == written
    assert not any("\ufffd" in piece for piece in pieces)
