"""Each file in examples/ runs as its first lines say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from free_ports import first_of_free_ports
from sdk_clients import ROOT, SdkClients

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.redis, pytest.mark.timeout(300)]

EXAMPLES = ROOT / "examples"
MAX_LINES = 60
PORTS = 4
"""That a script of its own servers takes, one after the other."""


def run_shell(name: str, *arguments: str) -> str:
    """What a script printed that starts its own servers."""
    here = Path(sys.executable).parent
    done = subprocess.run(
        [str(EXAMPLES / name), *arguments],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")},
            "PATH": f"{here}:{os.environ['PATH']}",
            "PACELINE_PORT": str(first_of_free_ports(PORTS)),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_openai_chat(clients: SdkClients) -> None:
    """Both conversations get the same reply, and the third request says that memory drafted."""
    printed = clients.run(EXAMPLES / "openai_chat.py")
    first, second = re.split(r"\n\[\w+: \d+ tokens\]\n", printed)[:2]
    assert first == second
    assert "memory drafted" in printed.splitlines()[-1]


def test_anthropic_messages(clients: SdkClients) -> None:
    """The message is streamed; tokens are counted before and after."""
    said, counted = clients.run(EXAMPLES / "anthropic_messages.py").rstrip().rsplit("\n", 1)
    assert said.strip()
    assert re.fullmatch(r"\[\d+ tokens asked, \d+ said\]", counted)


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


def test_two_tenants() -> None:
    """Each is drafted from its own first request; neither from the other's."""
    printed = run_shell("two_tenants.sh")
    found = dict(re.findall(r"^((?:red|blue), \w+ time): (.*)$", printed, re.MULTILINE))
    assert len(found) == 4
    for tenant in ("red", "blue"):
        accepted = [
            sum(map(int, re.findall(r"=(\d+)/", found[f"{tenant}, {time} time"])))
            for time in ("first", "second")
        ]
        assert accepted[1] > 20 > accepted[0]


def test_offline_corpus() -> None:
    """What stands in the corpus is drafted although nobody has said it."""
    printed = run_shell("offline_corpus.sh", str(ROOT / "docs" / "corpus.md"))
    assert "handbook" in printed
    sources = re.findall(r"^drafted and right, by source: (.*)$", printed, re.MULTILINE)
    assert len(sources) == 2
    assert "corpus=" in sources[1]


def test_two_replicas() -> None:
    """Both serve, and each drafts what only the other has said before."""
    printed = run_shell("two_replicas.sh")
    served = re.findall(r"^(\w+day), engine (\d): (\S.*)$", printed, re.MULTILINE)
    assert len(served) == 5
    assert {engine for _, engine, _ in served} == {"1", "2"}
    right = [sum(map(int, re.findall(r"=(\d+)/", sources))) for _, _, sources in served]
    assert min(right[1:]) > 20 > right[0]


def test_each_is_short_and_listed() -> None:
    """No example has more than 60 lines, and README.md names each."""
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.is_file() and path.name != "README.md":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path
            assert f"({path.name})" in listed, path
