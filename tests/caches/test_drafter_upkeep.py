"""Drafters' versions when machines fail, age, are forgotten, or are of another Paceline."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from drafter_files import drafter_folder, gate_result
from journals import MODEL
from paceline.caches import ModelFingerprint, drafter_scripts, drafter_versions
from paceline.caches.drafter_registry import (
    CANARY_SECONDS,
    LIVE_SECONDS,
    MAX_REPLICAS,
    DrafterRegistry,
    DrafterVersion,
    folder_checksum,
)
from paceline.caches.governance import MemoryGovernor
from paceline.caches.records import NewerSchemaError
from paceline.errors import ConfigError, RecordError
from redis_cluster import RedisCluster
from registry_machine import GROUP, RegistryMachine, figures

pytestmark = pytest.mark.redis


def test_a_folder_that_cannot_be_written_is_named(machine: RegistryMachine) -> None:
    """With what the system says."""
    (machine.folder / "drafters").write_text("a file in its place", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"drafters/.*cannot be written"):
        machine.publish()


def test_a_lost_redis_gives_no_number_twice(machine: RegistryMachine) -> None:
    """Files of a registry that is gone stay, and numbers go on behind them."""
    for weights in (b"1", b"2"):
        machine.publish(weights)
    machine.registry._store.client.flushall()
    assert machine.publish(b"3") == 3
    assert machine.files() == ["v000001", "v000002", "v000003"]
    assert machine.states() == {3: "candidate"}


def test_a_quiet_replica_loses_its_canary(machine: RegistryMachine) -> None:
    """Who goes on reporting keeps it; else the version is a candidate again, for another."""
    registry = machine.registry
    machine.publish()
    assert registry.begin_canary(GROUP, 1, "A")
    machine.age("state", "canary_seen", CANARY_SECONDS + 60)
    registry.report(GROUP, figures("A", 1, machine.now))
    assert registry.state(GROUP).canary_replica == "A"
    registry.report(GROUP, figures("B", 1, machine.now))
    machine.age("state", "canary_seen", CANARY_SECONDS + 60)
    registry.report(GROUP, figures("B", 1, machine.now))
    registry.report(GROUP, figures("A", 9, machine.now))  # runs something else
    before = registry.state(GROUP)
    assert (before.canary, before.canary_replica) == (0, "")
    assert registry.version(GROUP, 1).reason == "its replica A has gone quiet"
    assert registry.begin_canary(GROUP, 1, "B")
    assert registry.state(GROUP).generation > before.generation
    machine.age("state", "canary_seen", CANARY_SECONDS + 60)
    assert registry.begin_canary(GROUP, 1, "C"), "without a look at the state in between"
    assert not registry.begin_canary(GROUP, 1, "B")


def test_live_figures_of_the_gone_drop_out(machine: RegistryMachine) -> None:
    """Each replica has its last ones; the stale ones and those beyond the bound are no more."""
    registry = machine.registry
    registry.report(GROUP, figures("A", 1, 1000.0))
    registry.report(GROUP, figures("B", 1, 1000.0))
    registry.report(GROUP, figures("A", 2, 1010.0))
    assert registry.live(GROUP) == [figures("A", 2, 1010.0), figures("B", 1, 1000.0)]
    machine.now = 1000.0 + LIVE_SECONDS + 5
    assert [each.replica for each in registry.live(GROUP)] == ["A"]
    registry.report(GROUP, figures("C", 2, machine.now))
    key = registry._store.keys.drafter(GROUP).live
    assert set(registry._store.client.hkeys(key)) == {b"A", b"C"}
    registry._store.client.hset(key, "junk", b"{")
    assert [each.replica for each in registry.live(GROUP)] == ["A", "C"]
    assert registry.num_skipped_malformed == 1
    for number in range(MAX_REPLICAS + 3):
        registry.report(GROUP, figures(f"R{number:03d}", 2, machine.now + 1))
    replicas = [each.replica for each in registry.live(GROUP)]
    assert len(replicas) == MAX_REPLICAS
    assert replicas[0] == "R003"


def test_old_versions_are_pruned(machine: RegistryMachine) -> None:
    """The newest stay, and whatever runs, may run or is fallen back to, however old it is."""
    registry = machine.registry
    for number in range(1, 9):
        machine.publish(b"%d" % number, gate=gate_result(passed=number != 3))
    for number in (1, 2, 4, 5):
        registry.promote(GROUP, number, reason="")
    registry.roll_back(GROUP, reason="", version=6)
    assert registry.begin_canary(GROUP, 7, "A")
    assert machine.states() == {
        1: "retired",
        2: "retired",
        3: "rejected",
        4: "retired",
        5: "current",
        6: "rolled_back",
        7: "canary",
        8: "candidate",
    }
    assert registry.prune(GROUP, keep=2) == [1, 2]
    assert registry.prune(GROUP, keep=0) == [3, 6]
    assert registry._run(drafter_scripts.REMOVE, GROUP, 4, 5, 7, 8) == [], "whoever asks for it"
    assert machine.states() == {4: "retired", 5: "current", 7: "canary", 8: "candidate"}
    assert machine.files() == [f"v00000{number}" for number in (4, 5, 7, 8)]
    state = registry.roll_back(GROUP, reason="", version=5)
    assert (state.current, state.last_good) == (4, 0)


def test_a_crash_while_removing_is_made_up_for(
    machine: RegistryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record goes first; the files go with the next look."""
    machine.publish(b"1")
    machine.registry.roll_back(GROUP, reason="", version=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_args, **_more: None)
        assert machine.registry.prune(GROUP, keep=0) == [1]
    assert machine.states() == {}
    assert machine.files() == ["v000001"]
    assert machine.publish(b"2") == 2
    assert machine.files() == ["v000002"]


def test_a_group_is_taken_out_of_use(
    machine: RegistryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, files, figures and what is being published go; other groups and numbers stay."""
    registry = machine.registry
    for weights in (b"1", b"2"):
        machine.publish(weights, group="private")
    machine.publish(b"3", group="other")
    registry.promote("private", 1, reason="")
    registry.report("private", figures("A", 1, machine.now))
    before = registry.state("private").generation
    record = DrafterRegistry._record

    def retired_first(self: DrafterRegistry, version: DrafterVersion) -> None:
        assert machine.another().retire("private") == [1, 2, 3]
        record(self, version)

    with monkeypatch.context() as patch:
        patch.setattr(DrafterRegistry, "_record", retired_first)
        with pytest.raises(ConfigError, match="its group was retired meanwhile"):
            machine.publish(b"4", group="private")
    assert registry.groups() == ["other"]
    assert (registry.versions("private"), registry.live("private")) == ([], [])
    state = registry.state("private")
    assert (state.current, state.last_good) == (0, 0)
    assert state.generation > before
    assert machine.files() == ["v000001"]
    assert machine.publish(b"5", group="private") == 4


def test_forgetting_a_tenant_leaves_drafters(machine: RegistryMachine) -> None:
    """What a model has learned cannot be taken out of it: a drafter goes with its group only."""
    machine.publish()
    machine.registry.promote(GROUP, 1, reason="")
    machine.registry._store.register(MODEL)
    MemoryGovernor(machine.registry._store.client).forget(tenant="a")
    assert machine.states() == {1: "current"}


def test_groups_and_models_never_meet(machine: RegistryMachine) -> None:
    """Whatever they are called: each has numbers, files and states of its own."""
    names = ["shared", "..", ".", "a/b", "a", "a:b", "ü", "a%2Fb"]
    other = machine.another(ModelFingerprint(model="other", tokenizer="t"))
    for name in names:
        assert machine.publish(group=name) == 1
    assert machine.registry.groups() == sorted(names)
    assert other.groups() == []
    assert other.publish("a", machine.source, parent=0, num_tokens=0, gate=None).version == 1
    machine.registry.promote("a", 1, reason="")
    assert other.state("a").current == 0
    assert machine.registry.state("a/b").current == 0
    folders = {Path(machine.registry.version(name, 1).folder).resolve() for name in names}
    assert len(folders) == len(names)
    assert {folder.parents[2] for folder in folders} == {machine.folder / "drafters"}
    assert machine.files() == ["v000001"] * (len(names) + 1)


def test_records_of_a_newer_paceline_are_skipped_and_counted(machine: RegistryMachine) -> None:
    """As are damaged ones; the others are there, and nothing unreadable is promoted."""
    registry = machine.registry
    for weights in (b"1", b"2", b"3"):
        machine.publish(weights)
    key = registry._store.keys.drafter(GROUP).versions
    newer = json.loads(registry._store.client.hget(key, "2")) | {"schema": 2, "version": "two"}
    registry._store.client.hset(key, "2", json.dumps(newer))
    registry._store.client.hset(key, "3", b"junk")
    assert [each.version for each in registry.versions(GROUP)] == [1]
    assert (registry.num_skipped_newer, registry.num_skipped_malformed) == (1, 1)
    with pytest.raises(ConfigError, match="no version 2; there are: 1"):
        registry.promote(GROUP, 2, reason="")
    assert registry.state(GROUP).current == 0


def test_what_is_no_record_is_refused() -> None:
    """Foreign bytes, a state that is none, a newer schema."""
    decode = drafter_versions.decode_version
    good = msgspec.json.encode(
        {
            "schema": 1,
            "group": "g",
            "version": 1,
            "folder": "/f",
            "checksum": "c",
            "parent": 0,
            "created_at": 1.0,
            "num_tokens": 2,
            "later": "a field added later",
        }
    )
    assert decode(good, b"current:because: so").reason == "because: so"
    for data, state in (
        (b"[]", b"current:"),
        (b"{}", b"current:"),
        (good, b"odd:"),
        (good, b"\xff"),
    ):
        with pytest.raises(RecordError, match="damaged"):
            decode(data, state)
    with pytest.raises(NewerSchemaError, match="schema 7"):
        decode(good.replace(b'"schema":1', b'"schema":7'), b"current:")


def test_a_checksum_is_of_names_and_contents(tmp_path: Path) -> None:
    """Another byte, name, place or file is another checksum; where it lies and when is none."""
    one, two = (drafter_folder(tmp_path / name) for name in ("one", "two"))
    checksum = folder_checksum(one)
    assert folder_checksum(two) == checksum
    seen = {checksum}
    for change in (
        lambda: (two / "more").mkdir() or (two / "more" / "a").write_bytes(b""),
        lambda: (two / "more" / "a").rename(two / "a"),
        lambda: (two / "a").write_bytes(b"x"),
        lambda: (two / "config.json").rename(two / "config.jsox"),
    ):
        change()
        assert folder_checksum(two) not in seen
        seen.add(folder_checksum(two))
    with pytest.raises(ConfigError, match="is not a folder"):
        folder_checksum(tmp_path / "none")


def test_a_cluster_takes_the_keys(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They share a slot with the model's journal: every script runs on whichever node has it."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    slots = set()
    try:
        cluster.start()
        with ExitStack() as stack:
            machine = RegistryMachine(cluster.url, tmp_path, stack)
            for number in range(4):
                model = ModelFingerprint(model=f"m{number}", tokenizer="t")
                registry = machine.registry = machine.another(model)
                machine.publish(b"1")
                machine.publish(b"2")
                registry.promote(GROUP, 1, reason="")
                assert registry.begin_canary(GROUP, 2, "A")
                registry.report(GROUP, figures("A", 2, machine.now))
                assert [each.version for each in registry.live(GROUP)] == [2]
                assert registry.roll_back(GROUP, reason="").current == 1
                assert registry.prune(GROUP, keep=0) == [2]
                assert registry.groups() == [GROUP]
                assert registry.retire(GROUP) == [1]
                client = registry._store.client
                slots.add(client.get_node_from_key(registry._store.keys.drafter_groups).port)
    finally:
        cluster.kill()
    assert len(slots) > 1
