"""Drafters' versions on real servers: whole or not there, and never two that are current."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drafter_files import drafter_folder, gate_result
from paceline.caches import drafter_versions
from paceline.caches.drafter_registry import (
    CANARY_SECONDS,
    WRITE_SECONDS,
    DrafterRegistry,
    DrafterVersion,
    GroupState,
    folder_checksum,
)
from paceline.errors import ConfigError, RecordError
from registry_machine import GROUP, RegistryMachine, figures

pytestmark = pytest.mark.redis


def test_a_published_version_is_a_copy_with_its_record(machine: RegistryMachine) -> None:
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


def test_what_the_gate_refused_is_kept_and_never_runs(machine: RegistryMachine) -> None:
    """It is there to be looked at, says why, and can be neither tried, promoted nor taken back."""
    number = machine.publish(gate=gate_result(passed=False))
    assert machine.states() == {1: "rejected"}
    assert machine.registry.version(GROUP, 1).reason == "no better than the one that runs"
    assert not machine.registry.begin_canary(GROUP, number, "A")
    with pytest.raises(ConfigError, match="version 1 of shared is rejected; a candidate, canary"):
        machine.registry.promote(GROUP, number, reason="")
    with pytest.raises(ConfigError, match="is rejected; any version but a rejected one"):
        machine.registry.roll_back(GROUP, reason="", version=number)


def test_the_way_of_versions(machine: RegistryMachine) -> None:
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


def test_what_must_not_be_is_refused_with_its_reason(machine: RegistryMachine) -> None:
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


def test_a_second_call_changes_nothing(machine: RegistryMachine) -> None:
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


def test_a_verdict_takes_back_what_it_is_about(machine: RegistryMachine) -> None:
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


def test_one_goes_back_to_any_good_one(machine: RegistryMachine) -> None:
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


def test_one_replica_of_many_gets_the_canary(machine: RegistryMachine) -> None:
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


def test_whoever_changes_it_at_once_it_holds_together(machine: RegistryMachine) -> None:
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
    machine: RegistryMachine, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees it, its number is not used again, and its files go when it can be no more."""

    class KilledError(BaseException):
        pass

    def half(source: Path, target: Path, **_more: object) -> None:
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
    machine: RegistryMachine, is_swept: bool, monkeypatch: pytest.MonkeyPatch
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
    machine: RegistryMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its reason; nothing is left of it."""
    copytree = shutil.copytree

    def changing(source: Path, target: Path, **more: Any) -> None:
        copytree(source, target, **more)
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
