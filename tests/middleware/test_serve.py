"""`paceline serve` as a newcomer meets it: the real command, the official client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from captured import metric_in
from paceline.middleware.serve import corpus_folder
from paceline.policies.tenants import new_key
from serving import Serving
from small_chats import write_target
from waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

HELLO: Any = [{"role": "user", "content": "Say hello to the riders of the bunch."}]
MODEL = "smollm2"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`paceline serve` on embedded defaults."""
    with Serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
def api(serving: Serving) -> Iterator[openai.OpenAI]:
    """The official client, pointed at it."""
    with openai.OpenAI(base_url=serving.base_url, api_key="local", max_retries=0) as client:
        yield client


def test_a_chat_is_answered(api: openai.OpenAI) -> None:
    """A chat gets a whole answer with its usage."""
    reply = api.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, temperature=0)
    assert reply.choices[0].message.content
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 12


def test_a_prompt_asked_again_is_not_read_again(api: openai.OpenAI) -> None:
    """The second answer says how many tokens of its prompt were known."""
    asked: Any = [{"role": "user", "content": "How do riders share the work at the front?"}]
    for is_again in (False, True):
        reply = api.chat.completions.create(model=MODEL, messages=asked, max_tokens=4)
        usage = reply.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached = usage.prompt_tokens_details.cached_tokens or 0
        assert (cached == usage.prompt_tokens - 1) == is_again


def test_an_answer_says_what_was_decided_for_it(api: openai.OpenAI) -> None:
    """Asked for, the engine's decisions stand in the answer's head; they need no configuration."""
    reply = api.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=12,
        temperature=0,
        extra_headers={"x-paceline-explain": "on"},
    )
    assert 0 < int(reply.headers["x-paceline-rounds"]) <= 11
    assert reply.headers["x-paceline-reason"]
    assert reply.headers["x-paceline-request-id"].startswith("pace-")


def test_log_probabilities_are_given_by_both_endpoints(api: openai.OpenAI) -> None:
    """Chat, streamed and whole, and completions list each token with its alternatives."""
    options: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    asked: Any = {"messages": HELLO, "logprobs": True, "top_logprobs": 2, **options}
    chat = api.chat.completions.create(**asked)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert len(content) == 8
    assert "".join(said.token for said in content) == chat.choices[0].message.content
    assert all(len(said.top_logprobs) == 2 and said.logprob <= 0 for said in content)
    pieces = [
        said
        for chunk in api.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for said in chunk.choices[0].logprobs.content or []
    ]
    assert [said.token for said in pieces] == [said.token for said in content]
    text = api.completions.create(prompt="One, two,", logprobs=1, **options).choices[0]
    assert text.logprobs is not None
    assert text.logprobs.tokens is not None
    assert "".join(text.logprobs.tokens) == text.text
    assert text.logprobs.text_offset == [
        len("".join(text.logprobs.tokens[:i])) for i in range(len(text.logprobs.tokens))
    ]


def test_a_stream_says_what_the_whole_answer_says(api: openai.OpenAI) -> None:
    """Streamed pieces join to the same text; the usage chunk comes when asked for."""
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = api.chat.completions.create(**options)
    stream = api.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    last = chunks[-1].usage
    assert last is not None
    assert whole.usage is not None
    assert last.completion_tokens == whole.usage.completion_tokens
    assert last.total_tokens == whole.usage.total_tokens
    assert len(chunks) > 3


def test_tool_calls_in_the_history_are_understood(api: openai.OpenAI) -> None:
    """An agent's history of calls and results is rendered for the model, not refused."""
    call = {"name": "weather", "arguments": '{"city": "Ghent"}'}
    history: Any = [
        {"role": "system", "content": [{"type": "text", "text": "You are brief."}]},
        {"role": "user", "content": "How is the weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "14 degrees, wind from the west"},
    ]
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    ask = api.chat.completions.create
    reply = ask(model=MODEL, messages=history, tools=[tool], max_tokens=8)
    assert reply.usage is not None
    without = ask(model=MODEL, messages=history[:2], max_tokens=8)
    assert without.usage is not None
    assert reply.usage.prompt_tokens > without.usage.prompt_tokens + 20


def test_a_raw_completion_is_answered(api: openai.OpenAI) -> None:
    """The older endpoint works too, with stop strings."""
    reply = api.completions.create(
        model=MODEL, prompt="one, two, three,", max_tokens=12, temperature=0, stop=["five"]
    )
    assert "four" in reply.choices[0].text
    assert "five" not in reply.choices[0].text


def test_an_unknown_model_is_not_found(api: openai.OpenAI) -> None:
    """As OpenAI answers: 404, model_not_found."""
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "gpt-9" in caught.value.message
    assert [model.id for model in api.models.list()] == [MODEL]


def test_an_over_long_prompt_is_refused(api: openai.OpenAI) -> None:
    """As OpenAI answers: 400, context_length_exceeded, with both numbers."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "pedal " * 9000}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in caught.value.message


def test_the_second_identical_request_drafts_from_the_first(
    api: openai.OpenAI, serving: Serving
) -> None:
    """What was said once takes far fewer rounds of the target the second time."""
    question: Any = [{"role": "user", "content": "Name some rivers of Europe and their cities."}]

    def ask(session: str) -> tuple[str, float, float]:
        rounds, accepted = (serving.engine_metric(n) for n in ("rounds", "accepted_tokens"))
        reply = api.chat.completions.create(
            model=MODEL,
            messages=question,
            max_tokens=48,
            temperature=0,
            extra_headers={"x-session-id": session},
        )
        return (
            reply.choices[0].message.content or "",
            serving.engine_metric("rounds") - rounds,
            serving.engine_metric("accepted_tokens") - accepted,
        )

    first, first_rounds, _ = ask("one")
    second, second_rounds, accepted = ask("two")
    assert second == first
    assert accepted > 24
    assert second_rounds < first_rounds / 2
    assert serving.memory_metric("accepted_tokens") >= accepted
    assert serving.memory_metric("drafted_tokens") >= serving.memory_metric("accepted_tokens")


def test_a_client_that_leaves_frees_the_engine(api: openai.OpenAI, serving: Serving) -> None:
    """An aborted reply is dropped within a round; the engine is free for the next request."""
    aborted = serving.engine_metric("aborted")
    stream = api.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: serving.engine_metric("aborted") == aborted + 1)


def test_what_is_printed_can_be_pasted(serving: Serving) -> None:
    """The curl command and the Python lines of the greeting work as they stand."""
    greeting = serving.output.split("Paceline is ready")[1]
    _, curl, python, _ = greeting.split("\n\n")
    asked = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)  # noqa: S607
    assert '"role":"assistant"' in asked.stdout.replace(" ", "")
    lines = "\n".join(line.strip() for line in python.splitlines())
    said = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert said.stdout.strip()


def test_keys_guard_it_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """With a policy file a wrong key is refused; Ctrl-C ends every process it started."""
    key, hashed = new_key()
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"tenants:\n  - name: team\n    keys: ['{hashed}']\n")
    with Serving(tmp_path, "--policy", str(policy)) as serving:
        with openai.OpenAI(base_url=serving.base_url, api_key="wrong", max_retries=0) as api:
            with pytest.raises(openai.AuthenticationError) as caught:
                api.models.list()
            assert caught.value.code == "invalid_api_key"
            right = api.with_options(api_key=key)
            assert right.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2).choices
        assert serving.num_children >= 2
        assert serving.interrupt() == 0
        assert serving.output.rstrip().endswith("stopped")
        wait_until(lambda: serving.num_children == 0)


def test_workers_share_what_is_served(tmp_path: Path) -> None:
    """Two processes of the proxy answer under one address, and end with the rest."""
    model = write_target(tmp_path / "target", eos_token_id=96)
    with Serving(tmp_path, "--workers", "2", "--model", str(model)) as serving:
        with openai.OpenAI(base_url=serving.base_url, api_key="local", max_retries=0) as client:
            for _ in range(4):
                reply = client.chat.completions.create(
                    model="target", messages=[{"role": "user", "content": "w1"}], max_tokens=3
                )
                assert reply.choices[0].message.content
        page = httpx.get(serving.base_url.removesuffix("/v1") + "/metrics").text
        assert metric_in(page, "paceline_proxy_workers") == 2
        assert metric_in(page, "paceline_proxy_requests_total", tenant="local", status="200") == 4
        assert serving.interrupt() == 0
        assert serving.num_children == 0


def test_drafts_go_as_far_as_the_command_says(tmp_path: Path) -> None:
    """A reply that was said before is drafted a token at a time where no more may be drafted."""
    model = write_target(tmp_path / "target")
    told = ("--max-draft-tokens", "1", "--max-branches", "2", "--min-probability", "0.02")
    with Serving(tmp_path, "--model", str(model), *told) as serving:
        with openai.OpenAI(base_url=serving.base_url, api_key="local", max_retries=0) as client:
            for _ in range(3):
                client.chat.completions.create(
                    model="target",
                    messages=[{"role": "user", "content": "w1 w2 w3"}],
                    max_tokens=30,
                    temperature=0,
                )
        assert serving.engine_metric("accepted_tokens") > 0
        assert serving.engine_metric("draft_tokens") <= serving.engine_metric("rounds")


def test_engines_look_for_corpora_where_the_command_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the user's folder, in the one that the environment names, or nowhere."""
    monkeypatch.delenv("PACELINE_CORPUS_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert corpus_folder() == str(tmp_path / "paceline" / "corpus")
    monkeypatch.setenv("PACELINE_CORPUS_DIR", "/elsewhere")
    assert corpus_folder() == "/elsewhere"
    monkeypatch.setenv("PACELINE_CORPUS_DIR", "")
    assert corpus_folder() == ""
