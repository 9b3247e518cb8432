"""Agents' SDKs against a real `paceline serve`: OpenAI's chat, and Anthropic's messages.

Each is one script that runs once; the tests look at what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from sdk_clients import OPENAI_2, OPENAI_3, SdkClients
from serving import Serving

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

FOLDER = Path(__file__).parent
LEFT_MILLISECONDS = 200.0
PLAIN_TIMES = 2.5
SCRIPTS = {
    "openai": (FOLDER / "clients" / "with_openai.py", OPENAI_3),
    "anthropic": (FOLDER / "clients" / "with_anthropic.py", OPENAI_3),
    "openai-node": (FOLDER / "node" / "with_openai.mjs", OPENAI_3),
    "langchain": (FOLDER / "clients" / "with_langchain.py", OPENAI_3),
    "openai-agents": (FOLDER / "clients" / "with_openai_agents.py", OPENAI_3),
    "pydantic-ai": (FOLDER / "clients" / "with_pydantic_ai.py", OPENAI_3),
    "smolagents": (FOLDER / "clients" / "with_smolagents.py", OPENAI_3),
    "dspy": (FOLDER / "clients" / "with_dspy.py", OPENAI_3),
    "autogen": (FOLDER / "clients" / "with_autogen.py", OPENAI_3),
    "litellm": (FOLDER / "clients" / "with_litellm.py", OPENAI_3),
    "llama-index": (FOLDER / "clients" / "with_llama_index.py", OPENAI_2),
    "crewai": (FOLDER / "clients" / "with_crewai.py", OPENAI_2),
}
LEAVES = sorted(set(SCRIPTS) - {"dspy", "crewai"})
"""Those with a way to leave a stream."""
SAYS_WHY = ("autogen", "langchain", "litellm", "llama-index", "openai", "openai-node")
"""Those that hand on the finish reason."""

Found = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def found(clients: SdkClients) -> Found:
    """What a script found; it runs at the first call."""
    kept: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in kept:
            kept[name] = clients.found(*SCRIPTS[name])
        return kept[name]

    return run


@pytest.fixture(scope="module")
def plain(serving: Serving) -> dict[str, Any]:
    """What the engine itself answers to the question of all scripts, over plain HTTP."""
    asked = {
        "model": "smollm2",
        "messages": [
            {"role": "user", "content": "Name some rivers of Europe and their cities."},
        ],
        "temperature": 0,
        "max_tokens": 16,
    }
    url = f"{serving.engine_url}/v1/chat/completions"
    answer: dict[str, Any] = httpx.post(url, json=asked, timeout=60).raise_for_status().json()
    return answer


@pytest.mark.parametrize("name", SCRIPTS)
def test_whole_and_streamed_are_what_the_engine_says(
    name: str, found: Found, plain: dict[str, Any]
) -> None:
    """At temperature 0 an SDK's reply is the engine's own text, streamed or not."""
    text = plain["choices"][0]["message"]["content"]
    assert text
    assert found(name)["whole"] == found(name)["streamed"] == text


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"crewai"}))
def test_usage_is_the_engines(name: str, found: Found, plain: dict[str, Any]) -> None:
    """Tokens read and said, as the engine counted them, also of a stream where the SDK tells."""
    counted = [plain["usage"]["prompt_tokens"], plain["usage"]["completion_tokens"]]
    told = [found(name)[each] for each in ("usage", "streamed_usage") if each in found(name)]
    assert told
    assert all(usage == counted for usage in told)


@pytest.mark.parametrize("name", SAYS_WHY)
def test_the_reason_of_the_end_comes_through(name: str, found: Found) -> None:
    """A reply that was cut says so, streamed or not."""
    assert set(found(name)["finish_reasons"]) == {"length"}


@pytest.mark.parametrize("name", LEAVES)
def test_leaving_a_stream_frees_the_engine(name: str, found: Found) -> None:
    """When a client closes or cancels a stream, the engine has no request within 200 ms.

    On a busy machine one round takes longer than that: then within the time of two and a half
    plain streams that were left at the engine itself in between.
    """
    told = [found(name)[each] for each in ("left", "left_later") if each in found(name)]
    assert told
    for pairs in told:
        left, plain = (median(each) for each in zip(*pairs, strict=True))
        assert left < max(LEFT_MILLISECONDS, PLAIN_TIMES * plain), told


def test_openai_gets_headers_errors_and_concurrent_replies(found: Found) -> None:
    """What was decided stands in the head; forcing a tool is refused; many may ask at once."""
    openai = found("openai")
    assert "memory drafted" in openai["explained"]
    assert openai["refusal"] == "unsupported_parameter"
    assert openai["texts_later"] == [openai["whole"]]
    assert openai["helped"] == openai["whole"]
    assert {"chunk", "content.delta", "content.done"} <= set(openai["events"])


def test_node_gets_errors_and_its_stream_helper_works(found: Found) -> None:
    """The helper with tools on offer gives the same reply; an unknown model is not found."""
    assert found("openai-node")["helped"] == found("openai-node")["whole"]
    assert found("openai-node")["refusal"] == "model_not_found"


def test_anthropic_counts_and_is_refused_in_its_own_words(
    found: Found, plain: dict[str, Any]
) -> None:
    """Tokens are counted before, events are those of messages, errors have Anthropic's types."""
    told = found("anthropic")
    assert told["counted"] == plain["usage"]["prompt_tokens"]
    assert set(told["finish_reasons"]) == {"max_tokens"}
    assert {"message_start", "content_block_delta", "message_delta", "message_stop"} <= set(
        told["events"]
    )
    assert told["refused"] == [[404, "not_found_error"], [400, "invalid_request_error"]]


def test_litellm_gets_the_status_of_a_refusal(found: Found) -> None:
    """Two choices at a time are refused with 400, as LiteLLM's own error."""
    assert found("litellm")["refusal"] == 400


def test_agents_with_a_tool_on_offer_end_with_the_reply(found: Found) -> None:
    """Agents of the frameworks run to their end with the text that their model gave."""
    assert found("langchain")["agent"] == found("langchain")["agent_streamed"]
    assert found("langchain")["agent_roles"] == ["human", "ai"]
    for name in ("langchain", "autogen"):
        assert found(name)["agent"] == found(name)["whole"]
    assert found("openai-agents")["streamed_output"] == found("openai-agents")["whole"]
    assert found("llama-index")["with_tools"] == found("llama-index")["whole"]
    assert found("dspy")["predicted"] == found("dspy")["streamed_answer"] == found("dspy")["whole"]
    assert found("smolagents")["agent_steps"][0]
    assert found("crewai")["crew"]
