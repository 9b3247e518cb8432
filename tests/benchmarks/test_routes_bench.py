"""`paceline bench routes`: prefix-aware placement pays, in counts that do not depend on a clock."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paceline.benchmarks.routes.simulation import FleetSettings, Outcome, simulate
from paceline.benchmarks.routes.work import (
    Session,
    Turn,
    agent_sessions,
    arrived_sessions,
)
from paceline.middleware.cli import cli
from paceline.middleware.placement import RoutePolicy
from small_traces import generated_rows, write_rows

SETTINGS = FleetSettings(replicas=4, cache_tokens=40_000)
POLICIES: Sequence[RoutePolicy] = ("prefix", "session", "least_outstanding", "round_robin")


def sessions_of(num: int, num_turns: int, *, name: bool = True) -> list[Session]:
    """Agents under one of three system prompts of 2 KB; each turn adds a kilobyte."""
    made = []
    for number in range(num):
        text, turns = bytes([65 + number % 3]) * 2048, []
        for turn in range(num_turns):
            text += f"{number} is asked {turn}; ".encode() * 40
            asked = len(text)
            text += f"{number} says {turn}; ".encode() * 20
            turns.append(Turn(asked, len(text), 70))
        made.append(Session(f"s{number}" if name else "", "shop", number * 0.2, text, turns))
    return made


def outcomes(sessions: Sequence[Session], **settings: Any) -> dict[str, Outcome]:
    fleet = FleetSettings(**{"replicas": 4, "cache_tokens": 40_000, **settings})
    return {policy: simulate(policy, sessions, fleet) for policy in POLICIES}


def test_prefix_aware_placement_finds_the_most() -> None:
    """More than each other policy, with sessions named or not, and no engine drowns."""
    for name in (True, False):
        found = outcomes(sessions_of(37, 8, name=name))
        hits = {policy: each.hit_tokens for policy, each in found.items()}
        assert max(hits, key=hits.__getitem__) == "prefix"
        assert hits["prefix"] > 1.3 * hits["round_robin"]
        assert found["prefix"].figures()["imbalance"] < 1.6
        assert {each.num_requests for each in found.values()} == {296}


def test_what_the_proxy_believes_is_what_engines_hold() -> None:
    """Within a twentieth, where one proxy sees everything and nothing is evicted."""
    found = simulate("prefix", sessions_of(20, 6), FleetSettings(cache_tokens=1_000_000))
    assert found.believed_tokens == pytest.approx(found.hit_tokens, rel=0.12)
    assert found.believed_tokens <= found.hit_tokens


def test_two_proxies_that_share_nothing_lose_little() -> None:
    """Sessions go home where nothing else is known, so that proxies agree."""
    sessions = sessions_of(40, 8)
    alone = simulate("prefix", sessions, SETTINGS)
    shared = simulate("prefix", sessions, FleetSettings(proxies=2, cache_tokens=40_000))
    assert shared.hit_tokens > 0.9 * alone.hit_tokens


def test_it_is_deterministic() -> None:
    """The same figures twice."""
    sessions = sessions_of(12, 4)
    one, other = (simulate("prefix", sessions, SETTINGS).figures() for _ in range(2))
    assert one == other


def test_recorded_agents_are_replayed(tmp_path: Path) -> None:
    """Each measured reply is a request whose prompt begins with the one before it."""
    write_rows(tmp_path, "agents", generated_rows("agents", num_episodes=6, seed=3))
    sessions = agent_sessions(tmp_path, ["agents"], episodes=5, per_second=1.0, seed=1)
    assert len(sessions) == 5
    for session in sessions:
        assert len(session.turns) == 3
        asked = [turn.asked for turn in session.turns]
        assert asked == sorted(asked)
        assert all(turn.asked < turn.served <= len(session.text) for turn in session.turns)
        assert session.text[: session.turns[0].asked].count(b'"role"') == 2


def test_recorded_arrivals_share_what_their_hashes_say(tmp_path: Path) -> None:
    """Two requests with the same first block have the same first 2 KB."""
    rows = [
        {"timestamp": 0, "input_length": 700, "output_length": 9, "hash_ids": [1, 2]},
        {"timestamp": 500, "input_length": 1000, "output_length": 9, "hash_ids": [1, 3]},
    ]
    (tmp_path / "arrivals").mkdir()
    with gzip.open(tmp_path / "arrivals" / "a.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    one, other = arrived_sessions(tmp_path, "a", requests=10, speed=2.0)
    assert (len(one.text), other.starts_at) == (2800, 0.25)
    assert one.text[:2048] == other.text[:2048]
    assert one.text[2048:2060] != other.text[2048:2060]


def test_the_command_writes_a_report(tmp_path: Path) -> None:
    """All policies, on the same requests; a wrong argument is named."""
    write_rows(tmp_path, "agents", generated_rows("agents", num_episodes=6, seed=3))
    report = tmp_path / "routes.json"
    command = ["bench", "routes", str(tmp_path), "--source", "agents"]
    done = CliRunner().invoke(cli, [*command, "--json", str(report)])
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    assert figures["requests"] == 18
    assert all(0 <= figures[f"{policy}_hit_rate"] <= 1 for policy in POLICIES)
    wrong = CliRunner().invoke(cli, [*command, "--replicas", "0"])
    assert "--replicas is 0; give more than 0" in wrong.output
    missing = CliRunner().invoke(cli, [*command, "--arrivals", "none"])
    assert "none.jsonl.gz does not exist" in missing.output


def test_the_cost_of_a_choice_is_timed() -> None:
    """By size of body and number of engines; a lone engine's does not depend on the size."""
    done = CliRunner().invoke(cli, ["bench", "routes", "--cost"])
    assert done.exit_code == 0, done.output
    figures = dict(line.split() for line in done.output.splitlines())
    times = {name: float(value.replace(",", "")) for name, value in figures.items()}
    assert len(times) == 16
    assert all(value > 0 for value in times.values())
    assert times["250kb_1_known_us"] < times["250kb_2_known_us"]
    assert "give TRACES" in CliRunner().invoke(cli, ["bench", "routes"]).output
