"""Policy files: what `paceline policy` says of them, and what a running proxy makes of changes."""

from __future__ import annotations

import gc
import http.client
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from paceline.middleware.cli import cli
from paceline.middleware.config import read_policy
from paceline.middleware.policy_follower import PolicyFollower
from paceline.policies.tenants import PolicyFile, hash_key
from waiting import wait_until

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "policy.schema.json"
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
POLICY = f"""
defaults:
  speculation: {{draft_tokens: 12}}
tenants:
  - name: shop
    keys: ['{hash_key("shop-key")}']
    group: retail
    speculation: auto
    workloads:
      sql-*: {{speculation: {{sources: [memory], draft_tokens: 16}}, learn: true}}
  - name: idle
"""
LEARNING = """
tenants:
  - name: shop
    learn: true
    drafter: retail
    workloads:
      secret: {record: false}
"""


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments))
    return result.exit_code, result.output


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """A right one."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_check_says_what_is_there_and_what_has_no_effect(policy_file: Path) -> None:
    """A right file passes, with notes; a wrong one ends with its line."""
    code, output = run("policy", "check", str(policy_file))
    assert code == 0
    assert "right: 2 tenants with 1 keys and 1 workloads" in output
    assert "tenant idle has no key" in output
    assert (
        "tenant shop, workload sql-* says speculation.draft_tokens 16, which would widen what "
        "defaults says; 12 holds" in output
    )
    assert "says learn yes, which would widen what built in says; no holds" in output
    policy_file.write_text(POLICY + "    priority: soon\n")
    code, output = run("policy", "check", str(policy_file))
    assert code != 0
    assert f"line {POLICY.count(chr(10)) + 1}: tenants.1.priority" in output
    assert "soon" in output
    code, output = run("policy", "check", str(policy_file.with_name("none.yaml")))
    assert code != 0
    assert "none.yaml cannot be read" in output


def test_explain_says_what_holds_and_who_said_so(policy_file: Path) -> None:
    """Each value with the layer it comes from, the request's headers too."""
    code, output = run(
        *("policy", "explain", str(policy_file), "--tenant", "shop", "--workload", "sql-day"),
        *("--header", "x-paceline-record=off"),
    )
    assert code == 0
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in output.splitlines()}
    assert rows["speculation.sources"] == "memory tenant shop, workload sql-*"
    assert rows["speculation.draft_tokens"] == "12 defaults"
    assert rows["record"] == "no the request"
    assert rows["sharing"] == "group tenant shop"
    assert rows["scope"] == "group:retail sharing and group"
    assert rows["memory.capacity"] == "no limit built in"


def test_learning_from_what_is_not_recorded_is_pointed_out(tmp_path: Path) -> None:
    """Check and explain say that it has no effect; where there is a record they say nothing."""
    path = tmp_path / "policy.yaml"
    path.write_text(LEARNING)
    note = (
        "tenant shop says learn yes, which has no effect where tenant shop, workload secret says "
        "record no"
    )
    assert run("policy", "check", str(path))[1].count(note) == 1
    explain = ("policy", "explain", str(path), "--tenant", "shop", "--workload")
    assert note in run(*explain, "secret")[1]
    output = run(*explain, "open")[1]
    assert "no effect" not in output
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in output.splitlines()}
    assert (rows["learn"], rows["drafter"]) == ("yes tenant shop", "retail tenant shop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tenant", "nobody"], "no tenant 'nobody'; the policy file has shop, idle"),
        (["--tenant", "shop", "--header", "x-paceline-draft-tokens"], "give NAME=VALUE"),
        (["--tenant", "shop", "--header", "x-paceline-draft-tokens=x"], "a number from 0"),
    ],
)
def test_explain_names_what_it_cannot_find(
    policy_file: Path, arguments: list[str], message: str
) -> None:
    """In one line, and fails."""
    code, output = run("policy", "explain", str(policy_file), *arguments)
    assert code != 0
    assert message in output


def test_the_schema_knows_right_files_and_wrong_ones() -> None:
    """It is a valid JSON Schema, the one in the documentation, and refuses what the proxy does."""
    code, output = run("policy", "schema")
    assert code == 0
    schema = json.loads(output)
    assert json.loads(SCHEMA_FILE.read_text()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(POLICY))
    assert validator.is_valid({"tenants": [{"name": "a", "speculation": "off"}]})
    assert validator.is_valid({"tenants": [{"name": "a", "speculation": False}]})
    for wrong in ({"speculation": "fast"}, {"colour": 1}, {"priority": -1}, {"name": "a b"}):
        assert not validator.is_valid({"tenants": [{"name": "a", **wrong}]})


def follower(path: Path) -> tuple[PolicyFollower, Callable[[str], float]]:
    registry = CollectorRegistry()
    found = PolicyFollower(path, read_policy(path), registry)

    def count(result: str) -> float:
        value = registry.get_sample_value("paceline_proxy_policy_reloads_total", {"result": result})
        assert value is not None
        return value

    return found, count


def test_a_change_is_taken_over_once(policy_file: Path) -> None:
    """When two looks have found the same; what was there at the start is no change."""
    followed, count = follower(policy_file)
    assert [followed.look() for _ in range(3)] == [False, False, False]
    policy_file.write_text(POLICY.replace("idle", "busy"))
    assert [followed.look() for _ in range(4)] == [False, True, False, False]
    assert [tenant.name for tenant in followed.policy.tenants] == ["shop", "busy"]
    assert (count("taken"), count("refused")) == (1, 0)


def test_a_change_between_reading_and_following_is_not_missed(policy_file: Path) -> None:
    """A file that was written after the policy was read, and before it was followed, counts."""
    known = read_policy(policy_file)
    policy_file.write_text(POLICY.replace("idle", "busy"))
    followed = PolicyFollower(policy_file, known, CollectorRegistry())
    assert any(followed.look() for _ in range(2))
    assert followed.policy.named("busy")


def test_a_file_that_is_being_written_is_waited_for(policy_file: Path) -> None:
    """A part of a file can be a right policy; it is not taken while it grows."""
    followed, count = follower(policy_file)
    followed.look()
    for length in range(len(POLICY) - 30, len(POLICY), 5):
        policy_file.write_text((POLICY + "  - name: last\n")[:length])
        assert not followed.look()
    policy_file.write_text(POLICY + "  - name: last\n")
    assert [followed.look() for _ in range(2)] == [False, True]
    assert (count("taken"), count("refused")) == (1, 0)


@pytest.mark.parametrize(
    "text", [POLICY + "  - name: last\n", "tenants: ["], ids=["right", "wrong"]
)
def test_no_garbage_is_collected_while_a_file_is_read(policy_file: Path, text: str) -> None:
    """A full collection holds up requests for longer than reading; it is on again afterwards."""
    collections: list[int] = []

    def num_collections() -> int:
        return sum(generation["collections"] for generation in gc.get_stats())

    def read(path: Path) -> PolicyFile:
        before = num_collections()
        _kept = [[[]] for _ in range(5000)]  # enough for the collector to begin
        collections.append(num_collections() - before)
        return read_policy(path)

    followed, _ = follower(policy_file)
    read(policy_file)
    followed._read = read
    policy_file.write_text(text)
    for _ in range(2):
        followed.look()
    outside, inside = collections
    assert outside > 0
    assert inside == 0
    assert gc.isenabled()


@pytest.mark.parametrize("damage", ["tenants: [", "tenants: []", None], ids=str)
def test_a_wrong_file_changes_nothing(
    policy_file: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The policy before it stays, the reason is logged once, and a right one is taken again."""
    followed, count = follower(policy_file)
    before = followed.policy
    policy_file.unlink() if damage is None else policy_file.write_text(damage)
    assert not any(followed.look() for _ in range(5))
    assert followed.policy is before
    assert (count("taken"), count("refused")) == (0, 1)
    assert caplog.text.count("the policy stays as it was") == 1
    replacement = policy_file.with_suffix(".new")
    replacement.write_text(POLICY.replace("idle", "busy"))
    os.replace(replacement, policy_file)
    assert any(followed.look() for _ in range(3))


def ask(url: str, key: str) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", CHAT, BODY, {"x-api-key": key})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_a_reload_under_load_loses_no_request(
    engines: Any, proxies: Any, policy_file: Path
) -> None:
    """While files change, good and bad, every request is answered under one policy or the other."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file)
    stop, answers = threading.Event(), list[int]()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(proxy.url, "shop-key"))

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        assert ask(proxy.url, "new-key") == 401
        for round_ in range(3):
            policy_file.write_text("tenants: [")
            key = f"new-key-{round_}"
            policy_file.write_text(POLICY + f"    keys: ['{hash_key(key)}']\n")
            wait_until(lambda key=key: ask(proxy.url, key) == 200)
        policy_file.write_text(POLICY)
        wait_until(lambda: ask(proxy.url, key) == 401)
    finally:
        stop.set()
        for asker in askers:
            asker.join(20)
    assert len(answers) > 20
    assert set(answers) == {200}
    for seen in engine.seen:
        assert seen.json["vllm_xargs"]["paceline_draft_tokens"] == 12
