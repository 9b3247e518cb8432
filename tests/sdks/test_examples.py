"""Each file in examples/ runs as its first lines say."""

from __future__ import annotations

import re

import pytest

from sdk_clients import ROOT, SdkClients

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

EXAMPLES = ROOT / "examples"
MAX_LINES = 60


def test_openai_chat(clients: SdkClients) -> None:
    """Both conversations get the same reply, and the third request says that memory drafted."""
    printed = clients.run(EXAMPLES / "openai_chat.py")
    first, second = re.split(r"\n\[\w+: \d+ tokens\]\n", printed)[:2]
    assert first == second
    assert "memory drafted" in printed.splitlines()[-1]


def test_agents_sdk(clients: SdkClients) -> None:
    """The agent's reply is streamed and counted."""
    said, counted = clients.run(EXAMPLES / "agents_sdk.py").rstrip().rsplit("\n", 1)
    assert said.strip()
    assert re.fullmatch(r"\[\d+ tokens\]", counted)


def test_langgraph_agent(clients: SdkClients) -> None:
    """Both conversations get the same reply."""
    printed = clients.run(EXAMPLES / "langgraph_agent.py")
    _, first, second = re.split(r"\[(?:monday|tuesday)\] ", printed)
    assert first.strip()
    assert first == second


def test_smolagents_agent(clients: SdkClients) -> None:
    """Two steps are taken, and all they cost is counted."""
    printed = clients.run(EXAMPLES / "smolagents_agent.py")
    counted = re.search(r"\[(\d+) tokens read, (\d+) said\]", printed)
    assert counted
    assert int(counted[2]) > 40


def test_each_is_short_and_listed() -> None:
    """No example has more than 60 lines, and README.md names each."""
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.is_file() and path.name != "README.md":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path
            assert f"({path.name})" in listed, path
