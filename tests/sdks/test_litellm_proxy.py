"""LiteLLM's proxy on both sides: in front of us, and as the engine behind us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.processes import ChildProcess, answers, free_port
from sdk_clients import OPENAI_3, QUIET, sdk_python
from serving import Serving
from waiting import wait_until

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

START_SECONDS = 180.0
LEFT_SECONDS = 10.0
LITELLM_KEY = "sk-litellm-of-the-tests"
ASKED: Any = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Name some rivers of Europe and their cities."}],
    "max_tokens": 16,
    "temperature": 0,
}
CONFIG = """\
model_list:
  - model_name: smollm2
    litellm_params: {{model: openai/smollm2, api_base: "{url}", api_key: local}}
litellm_settings: {{num_retries: 0}}
general_settings: {{master_key: {key}}}
"""


@pytest.fixture(scope="module")
def litellm(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy, whose one model is `paceline serve`; its base URL."""
    folder = tmp_path_factory.mktemp("litellm")
    config = folder / "litellm.yaml"
    config.write_text(CONFIG.format(url=serving.base_url, key=LITELLM_KEY))
    port = free_port()
    command = Path(sdk_python(OPENAI_3)).with_name("litellm")
    process = ChildProcess(
        "litellm",
        [
            *(str(command), "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"),
        ],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **QUIET},
        log=folder / "litellm.log",
    )
    process.start()
    try:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(
            lambda: answers(f"{url}/health/liveliness"), timeout_seconds=START_SECONDS
        )
        yield url
    finally:
        process.stop()


@pytest.fixture(scope="module")
def behind(litellm: str) -> Iterator[RunningProxy]:
    """Our proxy with LiteLLM as its engine."""
    upstream = {"name": "litellm", "url": litellm, "health_path": "/health/liveliness"}
    upstream["api_key"] = LITELLM_KEY
    with running_proxy(make_config(listen={"port": 0}, upstreams=[upstream])) as proxy:
        wait_until(lambda: proxy.proxy.ready)
        yield proxy


@pytest.fixture(params=["in front of us", "behind us"])
def api(request: pytest.FixtureRequest, litellm: str) -> Iterator[openai.OpenAI]:
    """A client of LiteLLM, or of ours that has LiteLLM behind it."""
    url = litellm
    if request.param == "behind us":
        url = request.getfixturevalue("behind").url
    with openai.OpenAI(base_url=f"{url}/v1", api_key=LITELLM_KEY, max_retries=0) as client:
        yield client


def test_a_reply_comes_through_whole_and_streamed(api: openai.OpenAI, serving: Serving) -> None:
    """Text, reason and usage are those that our server gives to a client of its own."""
    with openai.OpenAI(base_url=serving.base_url, api_key="local") as ours:
        direct = ours.chat.completions.create(**ASKED)
    whole = api.chat.completions.create(**ASKED)
    assert whole.choices[0].message.content == direct.choices[0].message.content
    assert whole.choices[0].finish_reason == direct.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert direct.usage is not None
    assert whole.usage.total_tokens == direct.usage.total_tokens
    chunks = list(
        api.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert usages[-1].completion_tokens == whole.usage.completion_tokens


def test_leaving_a_stream_frees_the_engine(api: openai.OpenAI, serving: Serving) -> None:
    """A client that leaves is passed on to the engine through both."""
    aborted = serving.engine_metric("aborted")
    options = {**ASKED, "max_tokens": 2000}
    stream = api.chat.completions.create(**options, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: serving.engine_metric("aborted") == aborted + 1, seconds=LEFT_SECONDS)


def test_a_refusal_keeps_its_status(api: openai.OpenAI) -> None:
    """What our engine refuses is a 400 to LiteLLM's clients and to ours."""
    with pytest.raises(openai.BadRequestError):
        api.chat.completions.create(**{**ASKED, "temperature": 3})
