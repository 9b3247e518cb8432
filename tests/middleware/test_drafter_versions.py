"""`paceline drafter list` and its like, on a real Redis beside what engines and a learner write."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drafter_files import drafter_folder, gate_result
from journals import open_store
from paceline.caches import ModelFingerprint
from paceline.caches.drafter_registry import DrafterRegistry, LiveFigures, folder_checksum
from paceline.drafter_folder import Distilled, DrafterRecord, HeldOut, write_record
from paceline.middleware.cli import cli
from paceline.middleware.drafter_report import age
from redis_server import RedisServer

pytestmark = pytest.mark.redis

DIGEST = "0123456789abcdef" * 2
MODEL = ModelFingerprint(model="Qwen3-8B", tokenizer=DIGEST)


class Machine:
    """A Redis that knows one model, and the registry of its drafters."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.source = drafter_folder(folder / "source")
        self.store = open_store(url, MODEL)
        self.registry = DrafterRegistry(self.store, folder / "drafters")

    def publish(self, group: str = "shared", **told: Any) -> int:
        told = {"parent": 0, "num_tokens": 12_345, "gate": gate_result(), **told}
        return self.registry.publish(group, self.source, **told).version

    def run(self, *arguments: object, code: int = 0, **environment: str) -> Result:
        done = CliRunner().invoke(
            cli,
            ["drafter", *map(str, arguments), "--redis", self.url],
            env=environment,
            catch_exceptions=False,
        )
        assert done.exit_code == code, done.output
        return done

    def makes(self, *arguments: object, code: int = 0) -> Result:
        return self.run(*arguments, "--registry", self.folder / "drafters", code=code)


@pytest.fixture
def machine(redis_server: RedisServer, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(redis_server.url, tmp_path)
    with closing(made.store.client):
        made.store.register(MODEL)
        yield made


def figures(replica: str, version: int, num_agreed: int, at: float) -> LiveFigures:
    return LiveFigures(
        replica=replica,
        version=version,
        num_rounds=1000,
        num_agreed=num_agreed,
        accepted_length=1.5,
        updated_at=at,
    )


def fill(machine: Machine) -> None:
    """Four versions, each in another state, and two replicas."""
    registry = machine.registry
    machine.publish(reason="from the offline drafter", gate=None)
    machine.publish(parent=1)
    machine.publish(gate=gate_result(passed=False))
    machine.publish(parent=2)
    registry.promote("shared", 1, reason="first")
    registry.promote("shared", 2, reason="not worse after 400 rounds")
    assert registry.begin_canary("shared", 4, "replica-b")
    now = machine.store.now()
    registry.report("shared", figures("replica-a", 2, 612, now))
    registry.report("shared", figures("replica-b", 4, 655, now))


def test_list_shows_every_version(machine: Machine) -> None:
    """Number, state, age, tokens, what the gate found, and how each replica does."""
    fill(machine)
    lines = machine.run("list").stdout.splitlines()
    assert lines[0] == (
        "Qwen3-8B, shared: version 2 is current, 1 is what to fall back to, 4 is on replica-b"
    )
    rows = [re.split(r" {2,}", line) for line in lines[1:]]
    assert rows[0] == [
        *("version", "state", "age", "tokens", "accepted a round", "at least", "live")
    ]
    assert [row[:2] for row in rows[1:]] == [
        ["1", "retired"],
        ["2", "current"],
        ["3", "rejected"],
        ["4", "canary"],
    ]
    assert rows[1][3:] == ["12,345", "-", "-", "-"]
    assert rows[2][3:] == ["12,345", "1.00 -> 1.50", "+0.250", "replica-a 61.2%"]
    assert rows[3][5] == "-0.100"
    assert rows[4][6] == "replica-b 65.5%"


def test_list_as_json_is_what_the_registry_holds(machine: Machine) -> None:
    """Groups with state, versions and live figures; one group if named."""
    fill(machine)
    machine.publish("private")
    found = json.loads(machine.run("list", "--json").stdout)
    assert found["model"] == "Qwen3-8B"
    private, shared = found["groups"]
    assert (private["group"], shared["group"]) == ("private", "shared")
    assert shared["state"]["canary_replica"] == "replica-b"
    assert [each["state"] for each in shared["versions"]] == [
        *("retired", "current", "rejected", "canary")
    ]
    assert shared["versions"][2]["gate"]["reasons"] == ["no better than the one that runs"]
    assert [each["num_agreed"] for each in shared["live"]] == [612, 655]
    only = json.loads(machine.run("list", "--json", "--group", "private").stdout)
    assert [each["group"] for each in only["groups"]] == ["private"]
    assert only["groups"][0]["versions"][0]["version"] == 1


def test_show_says_all_of_one(machine: Machine) -> None:
    """The current one if none is named: reasons, workloads, replicas, files."""
    fill(machine)
    shown = machine.run("show").stdout
    for line in (
        "version 2 of shared: current (not worse after 400 rounds)",
        "from version 1",
        "learned    12,345 tokens",
        "gate       passed: 1.000 -> 1.500 accepted tokens a round, the gain at least +0.250; 20",
        "agreement  50.0% -> 60.0%",
        "workload   edit: 1.500 -> 2.250 (12 sessions)",
        "workload   (unnamed): 0.500 -> 0.500 (8 sessions)",
        "live       replica-a: 61.2%, 1.50 tokens accepted, 1,000 rounds",
        machine.registry.version("shared", 2).checksum,
    ):
        assert line in shown
    assert "live       replica-b" not in shown
    assert shown.splitlines()[-1] == (
        "canary     version 4 is tried on replica-b, heard of 0 s ago"
    )
    refused = machine.run("show", 3).stdout
    assert "version 3 of shared: rejected (no better than the one that runs)" in refused
    assert "gate       refused it" in refused
    assert "reason     no better than the one that runs" in refused
    first = machine.run("show", 1).stdout
    assert "from no other version" in first
    assert "gate       was not asked" in first
    as_json = json.loads(machine.run("show", 4, "--json").stdout)
    assert as_json["version"] == 4
    assert as_json["gate"]["slices"][0]["after"] == 2.25
    assert [each["replica"] for each in as_json["live"]] == ["replica-b"]


def test_a_canary_whose_replica_is_quiet_is_told_apart(machine: Machine) -> None:
    """It is claimed, but nothing has been heard of who has it; without a canary nothing is said."""
    machine.publish()
    assert "canary  " not in machine.run("show", 1).stdout
    assert machine.registry.begin_canary("shared", 1, "replica-c")
    shown = machine.run("show").stdout.splitlines()
    assert shown[0] == "version 1 of shared: canary (on replica-c)"
    assert shown[-1] == "canary     version 1 is tried on replica-c, not heard of lately"


def test_promote_and_rollback_change_what_engines_run(machine: Machine) -> None:
    """With their reasons kept; a rollback takes the canary first, and --to goes past others."""
    fill(machine)
    done = machine.run("rollback", "--reason", "it stutters")
    assert done.stdout == (
        "version 4 of shared is rolled back\n"
        "shared: version 2 is current, 1 is what to fall back to\n"
    )
    assert machine.registry.version("shared", 4).state == "rolled_back"
    assert machine.registry.version("shared", 4).reason == "it stutters"
    machine.publish()
    assert machine.run("promote", 5, "--reason", "I know it").stdout == (
        "shared: version 5 is current, 2 is what to fall back to\n"
    )
    assert machine.registry.version("shared", 5).reason == "I know it"
    assert machine.run("rollback", "--to", 1).stdout == (
        "version 5 of shared is rolled back\n"
        "shared: version 1 is current, 2 is what to fall back to\n"
    )
    assert machine.registry.version("shared", 5).state == "rolled_back"
    assert machine.registry.version("shared", 5).reason == "by hand"
    machine.run("rollback")
    assert machine.run("rollback").stdout == (
        "version 2 of shared is rolled back\nshared: no version is current\n"
    )
    for words, message in (
        (["rollback"], "shared has neither a current version nor a canary to roll back"),
        (["promote", 5], "version 5 of shared is rolled_back; a candidate, canary or retired"),
        (["promote", 9], "shared has no version 9; there are: 1, 2, 3, 4, 5"),
        (["promote", 1, "--group", "g"], "g has no version 1; there are: none"),
        (["show"], "shared has no current version; name one: show VERSION"),
        (["show", 9], "shared has no version 9"),
        (["export", 9, machine.folder / "out"], "shared has no version 9"),
    ):
        assert f"Error: {message}" in machine.run(*words, code=1).output


def test_export_copies_a_version(machine: Machine) -> None:
    """Whole, into a new folder; nothing is overwritten, and nothing damaged is given out."""
    machine.publish()
    out = machine.folder / "out"
    machine.run("export", 1, out)
    assert folder_checksum(out) == folder_checksum(machine.source)
    again = machine.run("export", 1, out, code=1)
    assert f"{out} exists; give a folder that does not" in again.output
    (Path(machine.registry.version("shared", 1).folder) / "config.json").write_text("changed")
    other = machine.folder / "other"
    assert "its checksum is another" in machine.run("export", 1, other, code=1).output
    assert not other.exists()
    machine.publish()
    shutil.rmtree(machine.registry.version("shared", 2).folder)
    assert f"cannot be copied to {other}" in machine.run("export", 2, other, code=1).output
    nowhere = machine.folder / "nowhere" / "out"
    assert (
        "nowhere does not exist; make it first" in machine.run("export", 1, nowhere, code=1).output
    )


def test_publish_brings_a_drafter_in(machine: Machine) -> None:
    """As a candidate that says what it has learned from, or as what all engines run."""
    held_out = HeldOut(num_tokens=10, agreement=0.5, accepted_length=1.0, chain_tokens=4)
    distilled = Distilled(num_steps=5, num_tokens=777, before=held_out, after=held_out)
    write_record(
        machine.source,
        DrafterRecord(target="t", layers=(0, 1), vocab_size=97, distilled=distilled),
    )
    done = machine.makes("publish", machine.source, "--no-check")
    assert done.stdout == f"{machine.source} is version 1 of shared, a candidate\n"
    version = machine.registry.version("shared", 1)
    assert (version.num_tokens, version.parent, version.gate) == (777, 0, None)
    assert version.reason == "by hand"
    assert (Path(version.folder) / "paceline.json").is_file()
    done = machine.makes(
        *("publish", machine.source, "--promote", "--reason", "bootstrap", "--no-check")
    )
    assert done.stdout.endswith("shared: version 2 is current\n")
    assert machine.registry.version("shared", 2).reason == "bootstrap"
    empty = machine.makes("publish", machine.folder / "none", code=1)
    assert "has no config.json or no *.safetensors" in empty.output
    nowhere = machine.run("publish", machine.source, code=1)
    assert "give --registry FOLDER (or PACELINE_DRAFTER_REGISTRY)" in nowhere.output
    named = {"PACELINE_DRAFTER_REGISTRY": str(machine.folder / "drafters")}
    assert "version 3" in machine.run("publish", machine.source, "--no-check", **named).stdout


def test_publish_looks_at_what_it_brings_in(machine: Machine) -> None:
    """What a learner's candidates are held to: sound weights of this model's tokenizer, or none."""
    from drafter_folders import poison
    from model_folders import save_model
    from paceline.caches.tokenizer import TextTokenizer

    source = machine.folder / "sound"
    source.mkdir()
    save_model(source)
    other = machine.makes("publish", source, code=1)
    assert f"Qwen3-8B one of {DIGEST}: its tokens mean something else" in other.output
    tokenizer = TextTokenizer(str(source)).digest
    named = ("--model", "small", "--tokenizer", tokenizer)
    done = machine.makes("publish", source, *named)
    assert done.stdout == f"{source} is version 1 of shared, a candidate\n"
    poison(source)
    refused = machine.makes("publish", source, *named, "--promote", code=1)
    assert "has numbers in model.norm.weight that are infinite or none" in refused.output
    assert "it is not published (--no-check publishes it without a look)" in refused.output
    listed = json.loads(machine.run("list", "--json", "--model", "small").stdout)
    (shared,) = listed["groups"]
    assert [each["state"] for each in shared["versions"]] == ["candidate"]
    assert shared["state"]["current"] == 0


def test_retire_deletes_a_group(machine: Machine) -> None:
    """Its files and records, once it is confirmed; other groups stay."""
    machine.publish("private")
    machine.publish()
    folder = Path(machine.registry.version("private", 1).folder)
    asked = CliRunner().invoke(
        cli,
        [
            *("drafter", "retire", "--group", "private", "--redis", machine.url),
            *("--registry", str(machine.folder / "drafters")),
        ],
        input="n\n",
    )
    assert asked.exit_code == 1
    assert folder.is_dir()
    done = machine.makes("retire", "--group", "private", "--yes")
    assert "deleted 1 version(s) of private" in done.stdout
    assert not folder.exists()
    assert machine.registry.groups() == ["shared"]


def test_a_model_is_named_where_there_are_several(machine: Machine) -> None:
    """By name, by tokenizer, or both; what is known is listed."""
    machine.publish()
    other = ModelFingerprint(model="Qwen3-8B", tokenizer="f" * 32)
    third = ModelFingerprint(model="smollm2", tokenizer="e" * 32)
    for each in (other, third):
        machine.store.register(each)
    refused = machine.run("list", code=1).output
    assert "3 models in Redis are meant by --model (any) --tokenizer (any)" in refused
    assert f"smollm2 (tokenizer {third.tokenizer})" in refused
    assert "2 models" in machine.run("list", "--model", "Qwen3-8B", code=1).output
    assert "smollm2 has no drafter here" in machine.run("list", "--model", "smollm2").stdout
    named = machine.run("list", "--model", "Qwen3-8B", "--tokenizer", DIGEST).stdout
    assert "1        candidate" in named
    assert (
        "0 models in Redis are meant by --model gpt"
        in machine.run("list", "--model", "gpt", code=1).output
    )


def test_the_first_drafter_may_come_before_the_first_engine(machine: Machine) -> None:
    """A model that nobody has served yet is known by its name and tokenizer's folder."""
    from paceline.caches.tokenizer import TextTokenizer
    from small_traces import save_tokenizer

    machine.store.client.flushall()
    assert (
        "name one of those known: none" in machine.makes("publish", machine.source, code=1).output
    )
    tokenizer = save_tokenizer(machine.folder / "target")
    named = ("--model", "new", "--tokenizer", tokenizer)
    machine.makes("publish", machine.source, "--no-check", *named)
    fingerprint = ModelFingerprint(model="new", tokenizer=TextTokenizer(str(tokenizer)).digest)
    store = open_store(machine.url, fingerprint)
    with closing(store.client):
        registry = DrafterRegistry(store, machine.folder / "drafters")
        assert [each.version for each in registry.versions("shared")] == [1]
    assert "new, shared: no version is current" in machine.run("list").stdout


def test_records_that_cannot_be_read_are_counted(machine: Machine) -> None:
    """The others are shown."""
    machine.publish()
    machine.publish()
    key = machine.store.keys.drafter("shared").versions
    machine.store.client.hset(key, "1", '{"schema": 99}')
    done = machine.run("list").stdout
    assert "1 record(s) cannot be read here" in done
    assert "2        candidate" in done


def test_a_redis_that_is_away_is_named() -> None:
    """In one line, with what to look at."""
    done = CliRunner().invoke(cli, ["drafter", "list", "--redis", "redis://127.0.0.1:1"])
    assert done.exit_code == 1
    assert "Error: redis://127.0.0.1:1 cannot be used" in done.output


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (0.5, "0 s"), (59, "59 s"), (61, "1 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_ages_are_rough(seconds: float, shown: str) -> None:
    """In the largest unit."""
    assert age(seconds) == shown
