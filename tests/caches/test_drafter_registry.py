"""Drafters' versions on real servers: whole or not there, and never two that are current."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drafter_files import drafter_folder, gate_result
from journals import MODEL, open_store
from paceline.caches import ModelFingerprint, drafter_scripts, drafter_versions
from paceline.caches.drafter_registry import (
    CANARY_SECONDS,
    LIVE_SECONDS,
    MAX_REPLICAS,
    WRITE_SECONDS,
    DrafterRegistry,
    DrafterVersion,
    GroupState,
    LiveFigures,
    folder_checksum,
)
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.governance import MemoryGovernor
from paceline.caches.records import SHARED_GROUP, NewerSchemaError
from paceline.errors import ConfigError, RecordError
from redis_cluster import RedisCluster
from redis_server import RedisServer

pytestmark = pytest.mark.redis

GROUP = SHARED_GROUP


class Machine:
    """A server, a folder beside it, and registries on both."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url = url
        self.folder = folder
        self.now = 1000.0
        self.source = drafter_folder(folder / "source")
        self._stack = stack
        self.registry = self.another()

    def another(self, model: ModelFingerprint = MODEL) -> DrafterRegistry:
        """A registry on a connection of its own, as another thread or process has it."""
        store = open_store(self.url, model)
        self._stack.enter_context(closing(store.client))
        return DrafterRegistry(store, self.folder / "drafters", clock=lambda: self.now)

    def publish(self, weights: bytes = b"weights", group: str = GROUP, **more: Any) -> int:
        drafter_folder(self.source, weights)
        told = {"parent": 0, "num_tokens": 7, "gate": None, **more}
        return self.registry.publish(group, self.source, **told).version

    def states(self, group: str = GROUP) -> dict[int, str]:
        return {each.version: each.state for each in self.registry.versions(group)}

    def files(self) -> list[str]:
        """Folders of versions, whole or not."""
        return sorted(each.name for each in (self.folder / "drafters").glob("*/*/*"))

    def age(self, kind: str, field: str, seconds: float) -> None:
        """Have something begun so long ago by the server's clock."""
        store = self.registry._store
        key = getattr(store.keys.drafter(GROUP), kind)
        store.client.hset(key, field, int(store.now() - seconds))


@pytest.fixture(params=["redis", "valkey"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> Iterator[Machine]:
    """On a redis-server and on the embedded Valkey."""
    with ExitStack() as stack:
        if request.param == "redis":
            url = start_redis().url
        else:
            url = stack.enter_context(EmbeddedStore(tmp_path / "store")).url
        yield Machine(url, tmp_path, stack)


def figures(replica: str, version: int, at: float) -> LiveFigures:
    return LiveFigures(
        replica=replica,
        version=version,
        num_rounds=10,
        num_agreed=5,
        accepted_length=1.25,
        updated_at=at,
    )


def test_a_published_version_is_a_copy_with_its_record(machine: Machine) -> None:
    """What is read is what was said, and the folder holds the source's files whatever comes."""
    gate = gate_result()
    machine.source.chmod(0o700)  # as a temporary folder is
    made = machine.registry.publish(
        GROUP, machine.source, parent=0, num_tokens=99, gate=gate, reason="first"
    )
    assert (made.version, made.state, made.created_at) == (1, "candidate", 1000.0)
    assert machine.another().versions(GROUP) == [made]
    assert machine.another().version(GROUP, 1) == made
    drafter_folder(machine.source, b"changed")
    folder = Path(made.folder)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder_checksum(folder) == made.checksum
    assert folder.stat().st_mode & 0o777 == 0o755, "engines may be other users"
    assert folder.parent.parent.parent == machine.folder / "drafters"
    assert machine.registry.groups() == [GROUP]
    assert machine.registry.groups() == machine.another().groups()


def test_what_the_gate_refused_is_kept_and_never_runs(machine: Machine) -> None:
    """It is there to be looked at, says why, and can be neither tried, promoted nor taken back."""
    number = machine.publish(gate=gate_result(passed=False))
    assert machine.states() == {1: "rejected"}
    assert machine.registry.version(GROUP, 1).reason == "no better than the one that runs"
    assert not machine.registry.begin_canary(GROUP, number, "A")
    with pytest.raises(ConfigError, match="version 1 of shared is rejected; a candidate, canary"):
        machine.registry.promote(GROUP, number, reason="")
    with pytest.raises(ConfigError, match="is rejected; any version but a rejected one"):
        machine.registry.roll_back(GROUP, reason="", version=number)


def test_the_way_of_versions(machine: Machine) -> None:
    """Candidate, canary, current, retired, rolled back; each change is a new generation."""
    registry = machine.registry
    assert registry.state(GROUP) == GroupState(
        current=0, last_good=0, canary=0, canary_replica="", generation=0
    )
    for weights in (b"1", b"2", b"3"):
        machine.publish(weights)
    generations = [registry.state(GROUP).generation]
    registry.promote(GROUP, 1, reason="first")
    generations.append(registry.state(GROUP).generation)
    assert registry.begin_canary(GROUP, 2, "A")
    state = registry.state(GROUP)
    assert (state.current, state.canary, state.canary_replica) == (1, 2, "A")
    generations.append(state.generation)
    assert registry.promote(GROUP, 2, reason="not worse").state == "current"
    assert machine.states() == {1: "retired", 2: "current", 3: "candidate"}
    state = registry.state(GROUP)
    assert (state.current, state.last_good, state.canary) == (2, 1, 0)
    generations.append(state.generation)
    assert registry.begin_canary(GROUP, 3, "B")
    state = registry.roll_back(GROUP, reason="worse")
    assert (state.current, state.last_good, state.canary) == (2, 1, 0)
    assert machine.states() == {1: "retired", 2: "current", 3: "rolled_back"}
    assert registry.version(GROUP, 3).reason == "worse"
    generations.append(state.generation)
    state = registry.roll_back(GROUP, reason="also worse")
    assert (state.current, state.last_good) == (1, 0)
    assert registry.version(GROUP, 1).reason == "version 2 was rolled back: also worse"
    generations.append(state.generation)
    state = registry.roll_back(GROUP, reason="all of them")
    assert (state.current, state.last_good) == (0, 0)
    assert machine.states() == dict.fromkeys((1, 2, 3), "rolled_back")
    generations.append(state.generation)
    assert generations == sorted({*generations})


def test_what_must_not_be_is_refused_with_its_reason(machine: Machine) -> None:
    """The state a version is in, and what may be done; nothing changes."""
    registry = machine.registry
    with pytest.raises(ConfigError, match="neither a current version nor a canary"):
        registry.roll_back(GROUP, reason="")
    with pytest.raises(ConfigError, match="shared has no version 1; there are: none"):
        registry.promote(GROUP, 1, reason="")
    for weights in (b"1", b"2", b"3"):
        machine.publish(weights)
    registry.promote(GROUP, 1, reason="")
    registry.promote(GROUP, 2, reason="")
    registry.roll_back(GROUP, reason="worse")
    before = registry.state(GROUP)
    for call, message in (
        (lambda: registry.promote(GROUP, 2, reason=""), "version 2 of shared is rolled_back; a"),
        (lambda: registry.promote(GROUP, 9, reason=""), "has no version 9; there are: 1, 2, 3"),
        (lambda: registry.version(GROUP, 9), "has no version 9; there are: 1, 2, 3"),
        (lambda: registry.roll_back(GROUP, reason="", version=9), "has no version 9"),
        (lambda: registry.roll_back(GROUP, reason="", to=9), "has no version 9"),
        (lambda: registry.roll_back(GROUP, reason="", to=2), "2 of shared is rolled_back; go back"),
        (lambda: registry.roll_back(GROUP, reason="", to=3), "3 of shared is candidate; go back"),
        (lambda: registry.roll_back(GROUP, reason="", to=1), "1 of shared is current; go back"),
        (
            lambda: registry.roll_back(GROUP, reason="", version=3, to=1),
            "3 of shared is candidate; the current version can be",
        ),
        (lambda: registry.prune(GROUP, keep=-1), "keep is -1"),
        (lambda: registry.state(""), "group's name is ''"),
        (lambda: registry.state("g" * 129), "give one of 1 to 128 bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert not registry.begin_canary(GROUP, 2, "A")
    assert not registry.begin_canary(GROUP, 9, "A")
    assert registry.state(GROUP) == before


def test_a_second_call_changes_nothing(machine: Machine) -> None:
    """Whoever did not hear the answer may ask again."""
    registry = machine.registry
    machine.publish(b"1")
    machine.publish(b"2")
    registry.promote(GROUP, 1, reason="")
    for call in (
        lambda: registry.begin_canary(GROUP, 2, "A"),
        lambda: registry.promote(GROUP, 2, reason=""),
        lambda: registry.roll_back(GROUP, reason="", version=2),
    ):
        call()
        state, states = registry.state(GROUP), machine.states()
        call()
        assert (registry.state(GROUP), machine.states()) == (state, states)


def test_a_verdict_takes_back_what_it_is_about(machine: Machine) -> None:
    """A late verdict on a canary leaves alone what has been promoted meanwhile."""
    registry = machine.registry
    for weights in (b"1", b"2", b"3"):
        machine.publish(weights)
    registry.promote(GROUP, 1, reason="")
    assert registry.begin_canary(GROUP, 2, "A")
    registry.promote(GROUP, 3, reason="by hand")
    assert machine.states() == {1: "retired", 2: "candidate", 3: "current"}
    state = registry.roll_back(GROUP, reason="worse", version=2)
    assert (state.current, state.last_good, state.canary) == (3, 1, 0)
    assert machine.states() == {1: "retired", 2: "rolled_back", 3: "current"}


def test_one_goes_back_to_any_good_one(machine: Machine) -> None:
    """Past others, which stay what to fall back upon; a canary is tried anew against it."""
    registry = machine.registry
    for weights in (b"1", b"2", b"3", b"4"):
        machine.publish(weights)
    for number in (1, 2, 3):
        registry.promote(GROUP, number, reason="")
    assert registry.begin_canary(GROUP, 4, "A")
    state = registry.roll_back(GROUP, reason="worse", to=1)
    assert (state.current, state.last_good, state.canary) == (1, 2, 0)
    assert machine.states() == {1: "current", 2: "retired", 3: "rolled_back", 4: "candidate"}
    registry.promote(GROUP, 2, reason="again")
    state = registry.state(GROUP)
    assert (state.current, state.last_good) == (2, 1)


def test_one_replica_of_many_gets_the_canary(machine: Machine) -> None:
    """However many ask at once, and it is the one that the state names."""
    machine.publish()
    with ThreadPoolExecutor(8) as pool:
        for turn in range(5):
            registries = [machine.another() for _ in range(8)]
            names = [f"R{turn}-{i}" for i in range(8)]
            won = pool.map(lambda r, n: r.begin_canary(GROUP, 1, n), registries, names)
            winners = [name for name, is_it in zip(names, won, strict=True) if is_it]
            assert [machine.registry.state(GROUP).canary_replica] == winners
            machine.age("state", "canary_seen", CANARY_SECONDS + 60)
            assert machine.registry.state(GROUP).canary == 0


def check(registry: DrafterRegistry) -> None:
    """Fail unless the states of versions and of their group say the same."""
    before = registry.state(GROUP)
    by_state: dict[str, list[int]] = {}
    for each in registry.versions(GROUP):
        by_state.setdefault(each.state, []).append(each.version)
    if registry.state(GROUP) != before:
        return  # another has changed it in between
    assert by_state.get("current", []) == [before.current] * bool(before.current)
    assert by_state.get("canary", []) == [before.canary] * bool(before.canary)
    assert before.last_good == 0 or before.last_good in by_state["retired"]
    assert before.last_good == 0 or before.current


def test_whoever_changes_it_at_once_it_holds_together(machine: Machine) -> None:
    """Four threads do anything in any order: one current, one canary, a good one to fall back to;
    what remains in the end is whole."""

    def work(seed: int) -> None:
        registry = machine.another()
        rng = random.Random(seed)  # noqa: S311  test data
        source = drafter_folder(machine.folder / f"source-{seed}", b"%d" % seed)
        for _ in range(40):
            number = rng.randint(1, 8)
            told: list[Callable[[], object]] = [
                lambda: registry.publish(GROUP, source, parent=0, num_tokens=0, gate=None),
                lambda n=number: registry.begin_canary(GROUP, n, f"R{seed}"),
                lambda n=number: registry.promote(GROUP, n, reason=""),
                lambda: registry.roll_back(GROUP, reason=""),
                lambda n=number: registry.roll_back(GROUP, reason="", version=n),
                lambda n=number: registry.roll_back(GROUP, reason="", to=n),
                lambda n=number: registry.report(GROUP, figures(f"R{seed}", n, 1000.0)),
                lambda: registry.prune(GROUP, keep=2),
            ]
            with suppress(ConfigError):
                rng.choice(told)()
            check(registry)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    check(machine.registry)
    versions = machine.registry.versions(GROUP)
    assert len(versions) > 2
    assert machine.files() == [Path(each.folder).name for each in versions]
    assert all(folder_checksum(Path(each.folder)) == each.checksum for each in versions)


@pytest.mark.parametrize("moment", ["in the middle", "before the record"])
def test_a_crash_leaves_no_half_version(
    machine: Machine, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees it, its number is not used again, and its files go when it can be no more."""

    class KilledError(BaseException):
        pass

    def half(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(source / "config.json", target)
        raise KilledError

    def not_recorded(_self: DrafterRegistry, _version: DrafterVersion) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        if moment == "in the middle":
            patch.setattr(drafter_versions.shutil, "copytree", half)
        else:
            patch.setattr(DrafterRegistry, "_record", not_recorded)
        with pytest.raises(KilledError):
            machine.publish()
    assert machine.registry.versions(GROUP) == []
    assert machine.registry.groups() == []
    left = machine.files()
    assert left == [".v000001" if moment == "in the middle" else "v000001"]
    assert machine.publish() == 2
    assert machine.files() == sorted([*left, "v000002"]), "it may still be at work"
    machine.age("claims", "1", WRITE_SECONDS + 60)
    assert machine.publish() == 3
    assert machine.files() == ["v000002", "v000003"]
    assert machine.states() == {2: "candidate", 3: "candidate"}


@pytest.mark.parametrize("is_swept", [True, False])
def test_who_was_taken_for_dead_is_refused(
    machine: Machine, is_swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that took too long records nothing once its files are swept away, or will be."""
    record = DrafterRegistry._record

    def late(self: DrafterRegistry, version: DrafterVersion) -> None:
        machine.age("claims", "1", WRITE_SECONDS + 60)
        with monkeypatch.context() as patch:
            if not is_swept:
                patch.setattr(shutil, "rmtree", lambda *_args, **_more: None)
            assert machine.another().sweep(GROUP) == [1]
        record(self, version)

    monkeypatch.setattr(DrafterRegistry, "_record", late)
    with pytest.raises(ConfigError, match="version 1 of shared was swept away"):
        machine.publish()
    assert machine.files() == []
    assert machine.states() == {}


def test_a_source_that_changes_or_is_none_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its reason; nothing is left of it."""
    copytree = shutil.copytree

    def changing(source: Path, target: Path) -> None:
        copytree(source, target)
        (source / "model.safetensors").write_bytes(b"another")

    with monkeypatch.context() as patch:
        patch.setattr(drafter_versions.shutil, "copytree", changing)
        with pytest.raises(ConfigError, match="changed while it was copied"):
            machine.publish()
    for missing in ("config.json", "model.safetensors"):
        (drafter_folder(machine.source) / missing).unlink()
        with pytest.raises(ConfigError, match=r"no config\.json or no \*\.safetensors"):
            machine.registry.publish(GROUP, machine.source, parent=0, num_tokens=0, gate=None)
    with pytest.raises(RecordError, match="damaged"):
        machine.publish(num_tokens=0, gate=gate_result(gain=float("nan")))
    assert machine.files() == []
    assert machine.registry.sweep(GROUP) == []


def test_a_folder_that_cannot_be_written_is_named(machine: Machine) -> None:
    """With what the system says."""
    (machine.folder / "drafters").write_text("a file in its place", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"drafters/.*cannot be written"):
        machine.publish()


def test_a_lost_redis_gives_no_number_twice(machine: Machine) -> None:
    """Files of a registry that is gone stay, and numbers go on behind them."""
    for weights in (b"1", b"2"):
        machine.publish(weights)
    machine.registry._store.client.flushall()
    assert machine.publish(b"3") == 3
    assert machine.files() == ["v000001", "v000002", "v000003"]
    assert machine.states() == {3: "candidate"}


def test_a_quiet_replica_loses_its_canary(machine: Machine) -> None:
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


def test_live_figures_of_the_gone_drop_out(machine: Machine) -> None:
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


def test_old_versions_are_pruned(machine: Machine) -> None:
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
    machine: Machine, monkeypatch: pytest.MonkeyPatch
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


def test_a_group_is_taken_out_of_use(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_forgetting_a_tenant_leaves_drafters(machine: Machine) -> None:
    """What a model has learned cannot be taken out of it: a drafter goes with its group only."""
    machine.publish()
    machine.registry.promote(GROUP, 1, reason="")
    machine.registry._store.register(MODEL)
    MemoryGovernor(machine.registry._store.client).forget(tenant="a")
    assert machine.states() == {1: "current"}


def test_groups_and_models_never_meet(machine: Machine) -> None:
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


def test_records_of_a_newer_paceline_are_skipped_and_counted(machine: Machine) -> None:
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
            machine = Machine(cluster.url, tmp_path, stack)
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
