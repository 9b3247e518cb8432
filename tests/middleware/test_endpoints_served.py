"""Every endpoint on a real engine behind a real proxy: what clients of both APIs get."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import openai
import pytest

import claude_code
from captured import metric
from paceline.adapters.speculator import Speculator
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from served_engine import ServedEngine, served_engine
from waiting import wait_until

pytestmark = [pytest.mark.timeout(300)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SAY = [{"role": "user", "content": "w5 w9 w4"}]
ASKS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SAY, "max_tokens": 6},
    TEXT: {"prompt": "w5 w9 w4", "max_tokens": 6},
    MESSAGES: {"messages": SAY, "max_tokens": 6},
    RESPONSES: {"input": SAY, "max_output_tokens": 6},
}
LONG = 3000
ABORT_SECONDS = 0.2
NUM_LEFT = 3


@dataclass
class Stack:
    """A proxy with limits in front of one engine."""

    engine: ServedEngine
    proxy: RunningProxy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("endpoints")
    policy = folder / "policy.yaml"
    tenants = [
        {"name": name, "keys": [hash_key(name)], "limits": {"tokens_per_minute": 10**9}}
        for name in ("red", *ASKS)
    ]
    for number, tenant in enumerate(tenants):
        tenant["name"] = f"t{number}"
    policy.write_text(json.dumps({"tenants": tenants}))
    with ExitStack() as exits:
        engine = exits.enter_context(
            served_engine(folder, speculator=Speculator(), always_draft=True)
        )
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": "e", "url": engine.url}],
            policy_file=policy,
            health_interval_seconds=0.1,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: proxy.proxy.ready)
        yield Stack(engine, proxy)


def connect(stack: Stack) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(stack.proxy.url.removeprefix("http://"), timeout=60)


def ask(
    stack: Stack, path: str, body: dict[str, Any], *, key: str = "red", method: str = "POST"
) -> tuple[int, bytes]:
    with closing(connect(stack)) as connection:
        sent = json.dumps({"model": "target", "temperature": 0} | body)
        connection.request(method, path, sent, {"x-api-key": key})
        response = connection.getresponse()
        return response.status, response.read()


def events_of(data: bytes) -> list[tuple[str, Any]]:
    """Names and data of a stream of named events."""
    events = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, told = event.partition("\n")
        events.append((name.removeprefix("event: "), json.loads(told.removeprefix("data: "))))
    return events


def said(stack: Stack) -> str:
    """What the engine's chat says, which the other APIs translate to."""
    return str(json.loads(ask(stack, CHAT, ASKS[CHAT])[1])["choices"][0]["message"]["content"])


def test_a_message_says_what_the_chat_says(stack: Stack) -> None:
    """Whole and streamed: Anthropic's objects, the chat's words and numbers."""
    _, data = ask(stack, MESSAGES, ASKS[MESSAGES])
    message = json.loads(data)
    assert message["type"] == "message"
    assert message["id"].startswith("msg_pace-")
    assert message["content"] == [{"type": "text", "text": said(stack)}]
    assert message["stop_reason"] == "max_tokens"
    usage = message["usage"]
    assert usage["output_tokens"] == 6
    _, counted = ask(stack, f"{MESSAGES}/count_tokens", {"messages": SAY})
    num_read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert json.loads(counted) == {"input_tokens": num_read}
    events = events_of(ask(stack, MESSAGES, ASKS[MESSAGES] | {"stream": True})[1])
    assert all(data["type"] == name for name, data in events)
    assert [name for name, _ in events if name != "content_block_delta"] == [
        *("message_start", "content_block_start", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    texts = [d["delta"]["text"] for name, d in events if name == "content_block_delta"]
    assert "".join(texts) == said(stack)
    assert events[-2][1]["usage"]["output_tokens"] == 6
    assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"


def test_claude_codes_requests_are_answered(stack: Stack) -> None:
    """Its probe, its turns and titles with all their fields and betas, the counts of `/context`."""
    with closing(connect(stack)) as connection:
        connection.request("HEAD", "/")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
    for body in (claude_code.turn(), claude_code.title()):
        status, data = claude_ask(stack, MESSAGES, body)
        assert status == 200
        kinds = [name for name, _ in events_of(data)]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        assert kinds.count("content_block_delta") > 1
    status, data = claude_ask(stack, f"{MESSAGES}/count_tokens", claude_code.count())
    assert (status, list(json.loads(data))) == (200, ["input_tokens"])
    whole = claude_ask(stack, MESSAGES, claude_code.turn(stream=False))[1]
    assert json.loads(whole)["type"] == "message"


def test_messages_without_a_word_are_refused(stack: Stack) -> None:
    """As a wrong request, in Anthropic's words, asked for or counted."""
    body = {"messages": [{"role": "user", "content": []}], "system": "", "max_tokens": 4}
    for path in (MESSAGES, f"{MESSAGES}/count_tokens"):
        status, data = ask(stack, path, body)
        error = json.loads(data)["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert "there is no text in them" in error["message"]


def claude_ask(stack: Stack, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    with closing(connect(stack)) as connection:
        headers = claude_code.HEADERS | {"authorization": "Bearer red"}
        sent = json.dumps({"model": "target"} | body)
        connection.request("POST", path + claude_code.QUERY, sent, headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_a_message_tells_which_string_ended_it(stack: Stack) -> None:
    """As Anthropic's API does."""
    stop = said(stack).split()[2]
    body = ASKS[MESSAGES] | {"stop_sequences": ["never", stop]}
    message = json.loads(ask(stack, MESSAGES, body)[1])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)


def test_messages_bring_tools_and_systems_as_a_chat_does(stack: Stack) -> None:
    """The prompt is that of the chat that says the same."""
    use = {"type": "tool_use", "id": "1", "name": "w1", "input": {"w2": 3}}
    result = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": [{"type": "text", "text": "w7"}],
    }
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "w1"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "w9"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "w8"}]},
    ]
    call = {"function": {"name": "w1", "arguments": '{"w2": 3}'}}
    chat = [
        {"role": "system", "content": "w3"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "w7"},
        {"role": "user", "content": "w8"},
    ]
    system = [{"type": "text", "text": "w3"}]
    _, counted = ask(stack, f"{MESSAGES}/count_tokens", {"messages": talk, "system": system})
    _, tokens = ask(stack, "/tokenize", {"messages": chat})
    assert json.loads(counted)["input_tokens"] == json.loads(tokens)["count"]
    said_by = [
        json.loads(ask(stack, path, body)[1])
        for path, body in (
            (MESSAGES, {"messages": talk, "system": system, "max_tokens": 4}),
            (CHAT, {"messages": chat, "max_tokens": 4}),
        )
    ]
    assert said_by[0]["content"][0]["text"] == said_by[1]["choices"][0]["message"]["content"]


def test_a_response_says_what_the_chat_says(stack: Stack) -> None:
    """Through OpenAI's own client, whole and streamed."""
    with openai.OpenAI(base_url=f"{stack.proxy.url}/v1", api_key="red", max_retries=0) as api:
        options: Any = {"model": "target", "input": SAY, "temperature": 0, "max_output_tokens": 6}
        whole = api.responses.create(**options)
        with api.responses.stream(**options) as stream:
            events = list(stream)
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    (final,) = [e.response for e in events if e.type == "response.incomplete"]
    assert whole.output_text == final.output_text == "".join(deltas) == said(stack)
    for response in (whole, final):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.usage is not None
        assert response.usage.output_tokens == 6
        assert response.id.startswith("resp_pace-")
    numbers = [
        data["sequence_number"]
        for _, data in events_of(ask(stack, RESPONSES, ASKS[RESPONSES] | {"stream": True})[1])
    ]
    assert numbers == list(range(len(numbers)))


def test_a_responses_items_are_a_chats_messages(stack: Stack) -> None:
    """Instructions, calls and what they gave: the prompt of the chat that says the same."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "w1"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "w1", "arguments": "w2"},
        {"type": "function_call_output", "call_id": "1", "output": "w7"},
    ]
    call = {"function": {"name": "w1", "arguments": "w2"}}
    chat = [
        {"role": "system", "content": "w3"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "w7"},
    ]
    body = {"input": items, "instructions": "w3", "max_output_tokens": 4}
    response = json.loads(ask(stack, RESPONSES, body)[1])
    answer = json.loads(ask(stack, CHAT, {"messages": chat, "max_tokens": 4})[1])
    assert response["usage"]["input_tokens"] == answer["usage"]["prompt_tokens"]
    text = response["output"][0]["content"][0]["text"]
    assert text == answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        (RESPONSES, {"input": "w1", "previous_response_id": "resp_1"}, 404, "resp_1"),
        (RESPONSES, {"input": [{"type": "computer_call"}]}, 400, "computer_call"),
        (RESPONSES, {"input": "w1", "text": {"format": {"type": "json_object"}}}, 400, "only text"),
        (RESPONSES, {"input": "w1", "max_output_tokens": 0}, 400, "max_output_tokens"),
        (MESSAGES, {"messages": SAY}, 400, "max_tokens"),
        (MESSAGES, ASKS[MESSAGES] | {"tool_choice": {"type": "any"}}, 400, "tool_choice"),
        (
            MESSAGES,
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "reads text only",
        ),
        (MESSAGES, ASKS[MESSAGES] | {"max_tokens": 5000}, 400, "maximum context length"),
        ("/v1/embeddings", {"input": "w1"}, 501, "embeds none"),
        ("/tokenize", {}, 400, "either prompt or messages"),
        ("/detokenize", {"tokens": [97]}, 400, "97 is no token"),
    ],
)
def test_what_the_engine_cannot_do_it_says(
    stack: Stack, path: str, body: dict[str, Any], status: int, told: str
) -> None:
    """With a status, the value and the fix, in the words of the path's API."""
    answer = ask(stack, path, body)
    error = json.loads(answer[1])
    assert answer[0] == status
    assert told in error["error"]["message"]
    assert ("type" in error) == path.startswith(MESSAGES)


def test_text_becomes_tokens_and_text_again(stack: Stack) -> None:
    """vLLM's two endpoints beside ``/v1``, in its words."""
    asked = {"prompt": "w5 w9", "return_token_strs": True}
    tokens = json.loads(ask(stack, "/tokenize", asked)[1])
    assert tokens == {
        "count": 2,
        "max_model_len": 4096,
        "tokens": [7, 11],
        "token_strs": ["w5", "w9"],
    }
    text = json.loads(ask(stack, "/detokenize", {"tokens": tokens["tokens"]})[1])
    assert text == {"prompt": "w5 w9"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKS)
def test_what_an_engine_tells_is_what_is_counted(stack: Stack, path: str, *, stream: bool) -> None:
    """A limit of tokens counts each endpoint's answer, however it tells its usage."""
    name = f"t{1 + list(ASKS).index(path)}"
    before = metric(stack.proxy, "paceline_proxy_limit_tokens_total", tenant=name)
    counts = stack.engine.engine.counts
    read, generated = counts.prompt_tokens, counts.generated_tokens
    assert ask(stack, path, ASKS[path] | {"stream": stream}, key=path)[0] == 200
    num_tokens = counts.prompt_tokens - read + counts.generated_tokens - generated

    def counted() -> float:
        return metric(stack.proxy, "paceline_proxy_limit_tokens_total", tenant=name) - before

    wait_until(lambda: counted() > 0)
    assert counted() == num_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKS)
def test_a_client_that_leaves_is_noticed_by_the_engine_at_once(
    stack: Stack, path: str, *, stream: bool
) -> None:
    """The engine drops the request within 200 ms, in the best of three tries."""
    most = "max_output_tokens" if path == RESPONSES else "max_tokens"
    body = {"model": "target", **ASKS[path], most: LONG, "stream": stream}
    counts = stack.engine.engine.counts
    took: list[float] = []
    for _ in range(NUM_LEFT):
        aborted, requests = counts.aborted, counts.requests
        connection = connect(stack)
        connection.request("POST", path, json.dumps(body), {"x-api-key": "red"})
        if stream:
            assert connection.getresponse().read(9)
        wait_until(lambda n=requests: counts.requests == n + 1)
        left_at = time.monotonic()
        connection.close()
        wait_until(lambda n=aborted: counts.aborted == n + 1)
        took.append(time.monotonic() - left_at)
    assert min(took) < ABORT_SECONDS, took


def test_a_prediction_is_drafted_from_and_forgotten(stack: Stack) -> None:
    """A right one saves rounds, changes no word, is told in the usage, and helps nobody else."""
    engine = stack.engine.engine
    chat = {"messages": [{"role": "user", "content": "w31 w7"}], "max_tokens": 60}

    def rounds(**fields: Any) -> tuple[Any, int]:
        before = engine.counts.rounds
        with closing(connect(stack)) as connection:
            sent = json.dumps({"model": "target", "temperature": 0} | chat | fields)
            headers = {"x-api-key": "red", "x-paceline-record": "off"}
            connection.request("POST", CHAT, sent, headers)
            answer = json.loads(connection.getresponse().read())
        return answer, engine.counts.rounds - before

    plain, num_plain = rounds()
    text = plain["choices"][0]["message"]["content"]
    predicted, num_predicted = rounds(prediction={"type": "content", "content": text})
    again, num_again = rounds()
    wrong, _ = rounds(prediction={"type": "content", "content": "w1 w2 w3"})
    for answer in (predicted, again, wrong):
        assert answer["choices"][0]["message"] == plain["choices"][0]["message"]
    details = predicted["usage"]["completion_tokens_details"]
    # special tokens are said, and are no part of the text
    num_words = len(text.split())
    assert details == {"accepted_prediction_tokens": num_words, "rejected_prediction_tokens": 0}
    told = wrong["usage"]["completion_tokens_details"]
    assert sum(told.values()) == 3
    assert "completion_tokens_details" not in plain["usage"]
    assert num_predicted < num_plain
    assert num_again == num_plain
    assert engine._speculator is not None
    assert len(engine._speculator.predictions) == 0


def test_a_streams_usage_tells_of_the_prediction(stack: Stack) -> None:
    """In the chunk that has the usage."""
    prediction = {"type": "content", "content": [{"type": "text", "text": said(stack)}]}
    body = ASKS[CHAT] | {"stream": True, "prediction": prediction}
    data = ask(stack, CHAT, body | {"stream_options": {"include_usage": True}})[1]
    usage = json.loads(data.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 6
