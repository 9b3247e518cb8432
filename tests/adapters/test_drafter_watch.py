"""Engines that follow a registry of drafters on a real Redis: good ones, bad ones, worse ones."""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from drafter_folders import (
    drop_weights,
    open_registry,
    poison,
    save_drafter,
    truncate,
    widen_vocabulary,
)
from embedded_server import MODEL as MODEL_NAME
from embedded_server import EmbeddedServer
from paceline.adapters.drafter_following import NEWS
from paceline.adapters.drafter_watch import RETRY_SECONDS, DrafterWatch
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.drafter_versions import folder_checksum
from paceline.caches.records import SHARED_GROUP
from paceline.load_file import EngineFiles
from redis_server import RedisServer
from small_models import random_model
from small_traces import save_tokenizer
from waiting import wait_until

pytestmark = pytest.mark.redis

NUM_REQUESTS = 4
MOST_CANARY_ROUNDS = 200
RIGHT, POOR, NOISY = 0.01, 0.02, 0.2
"""Noise on a drafter's weights: right in 56 rounds of a hundred, in 34, in one."""


def post_json(url: str, body: dict[str, Any]) -> None:
    data = json.dumps({"model": MODEL_NAME, **body}).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310  our own
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  our own
        response.read()


class Replica:
    """An embedded engine that follows the registry, step by step, on a clock of its own."""

    def __init__(
        self, url: str, place: Path, name: str, target: Path, drafter: Path | None, **options: Any
    ) -> None:
        from paceline.adapters.embedded.drafter_host import EmbeddedDrafterHost
        from paceline.adapters.embedded.engine import EmbeddedEngine
        from paceline.adapters.embedded.engine_settings import EngineSettings
        from paceline.adapters.embedded.target import Target

        self.now = time.time()
        model = None if drafter is None else Target.load_drafter(drafter)
        self.swapped: list[int] = []
        self.engine = EmbeddedEngine(
            Target.load(target),
            Speculator() if options.pop("memory", True) else None,
            EngineSettings(max_running=NUM_REQUESTS, always_draft=options.pop("always", True)),
            drafter=model,
            on_swap=self.swapped.append,
        )
        self.engine.target.eos_token_ids = frozenset()
        self.host = EmbeddedDrafterHost(self.engine)
        self.watch = DrafterWatch(
            lambda: open_registry(url, place),
            self.host,
            group=SHARED_GROUP,
            replica=name,
            folder=drafter,
            model=model,
            clock=lambda: self.now,
            **options,
        )
        self._turn = 0

    def serve(self, *, turns: int = 1, prompt: int = 0, looks: bool = True) -> list[list[int]]:
        """Replies to several requests at once, turn by turn, with a look each round."""
        from paceline.adapters.embedded.requests import GenerationRequest, Job
        from paceline.adapters.embedded.sampling import SamplingParams

        said: list[list[Any]] = []
        for turn in range(turns):
            for i in range(NUM_REQUESTS):
                said.append([])
                request = GenerationRequest(
                    info=RequestInfo(request_id=f"{self._turn}-{i}", tenant="t"),
                    prompt_ids=tuple((prompt + 31 * turn + 7 * i + k * k) % 251 for k in range(12)),
                    max_tokens=32,
                    sampling=SamplingParams(temperature=0.0),
                )
                self.engine.admit(Job(request, said[-1].append))
            self._turn += 1
            while self.engine.sizes()["running"]:
                self.engine.step()
                self.now += 1.0
                if looks:
                    assert self.watch.look()
        return [[token for step in steps for token in step.token_ids] for steps in said]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where versions lie."""
    return tmp_path / "versions"


@pytest.fixture
def registry(redis_server: RedisServer, place: Path) -> DrafterRegistry:
    return open_registry(redis_server.url, place)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target, and drafters of it by how noisy they are."""
    above = tmp_path_factory.mktemp("drafters")
    return {
        "target": save_drafter(above / "target"),
        "right": save_drafter(above / "right", noise=RIGHT),
        "poor": save_drafter(above / "poor", noise=POOR),
        "noisy": save_drafter(above / "noisy", noise=NOISY),
    }


@pytest.fixture
def replica(
    redis_server: RedisServer, place: Path, folders: dict[str, Path]
) -> Callable[..., Replica]:
    def make(name: str, drafter: str | None, **options: Any) -> Replica:
        folder = None if drafter is None else folders[drafter]
        return Replica(redis_server.url, place, name, folders["target"], folder, **options)

    return make


def publish(registry: DrafterRegistry, folder: Path, *, parent: int = 0) -> int:
    version = registry.publish(SHARED_GROUP, folder, parent=parent, num_tokens=1, gate=None)
    return version.version


def state_of(registry: DrafterRegistry, version: int) -> str:
    return registry.version(SHARED_GROUP, version).state


def expected(replica: Callable[..., Replica], **serving: Any) -> list[list[int]]:
    """What an engine without drafts says."""
    return replica("plain", None, memory=False).serve(looks=False, **serving)


def test_a_better_drafter_is_swapped_in_tried_and_kept(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Published while requests run, it drafts in their midst, is promoted, and changes no token."""
    one = replica("one", "poor")
    before = one.serve(turns=2)
    version = publish(registry, folders["right"])
    said = one.serve(turns=8)
    assert before == expected(replica, turns=2)
    assert said == expected(replica, turns=8)
    assert one.watch.version == version == registry.state(SHARED_GROUP).current
    assert state_of(registry, version) == "current"
    old, new = one.engine.tally.total(0), one.engine.tally.total(version)
    assert new.agreement > old.agreement + 0.1
    counts = one.watch.counts
    assert (counts.swaps, counts.canaries, counts.promotions) == (1, 1, 1)
    assert counts.rollbacks == counts.failures == one.watch.failures.count == 0
    assert "right in" in registry.version(SHARED_GROUP, version).reason


def test_a_planted_regression_is_rolled_back_within_200_rounds(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """A noised drafter that passed the gate is taken back live, and replies stay the target's."""
    one = replica("one", "poor")
    one.serve(turns=8)
    version = publish(registry, folders["noisy"])
    said = one.serve(turns=8, prompt=5)
    assert said == expected(replica, turns=8, prompt=5)
    assert state_of(registry, version) == "rolled_back"
    assert one.watch.version == 0
    assert one.swapped == [version, 0]
    assert one.engine._speculator.drafter_version == one.swapped[-1]
    assert 0 < one.engine.tally.total(version).num_rounds <= MOST_CANARY_ROUNDS
    counts = one.watch.counts
    assert (counts.canaries, counts.rollbacks, counts.promotions) == (1, 1, 0)
    rounds = one.engine.tally.total(0).num_rounds
    one.serve()
    assert one.engine.tally.total(0).num_rounds > rounds
    assert one.watch.counts.canaries == 1


def test_a_regression_is_found_though_the_model_rests(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Where drafting is by choice, a new version is asked often enough to be judged."""
    one = replica("one", "right", always=False, memory=False)
    one.serve(turns=6)
    version = publish(registry, folders["noisy"])
    for _ in range(20):
        one.serve(turns=2)
        if state_of(registry, version) == "rolled_back":
            break
    assert state_of(registry, version) == "rolled_back"
    assert one.engine.tally.total(version).num_rounds <= MOST_CANARY_ROUNDS
    assert not one.engine.is_judging


@pytest.mark.parametrize("damage", [truncate, poison, drop_weights, widen_vocabulary])
@pytest.mark.parametrize("is_seen", [True, False], ids=["before publishing", "after"])
def test_bad_files_are_never_drafted_with(
    registry: DrafterRegistry,
    replica: Callable[..., Replica],
    tmp_path: Path,
    damage: Callable[[Path], None],
    is_seen: bool,
) -> None:
    """Files that are damaged before or after they were published cost a rollback, no round."""
    source = save_drafter(tmp_path / "source", noise=RIGHT)
    if is_seen:
        damage(source)
    version = publish(registry, source)
    if not is_seen:
        damage(Path(registry.version(SHARED_GROUP, version).folder))
    one = replica("one", "poor")
    assert one.serve(turns=2) == expected(replica, turns=2)
    assert state_of(registry, version) == "rolled_back"
    assert "loaded" in registry.version(SHARED_GROUP, version).reason
    assert one.swapped == []
    assert one.watch.counts.failures == 1
    assert one.engine.tally.total(version).num_rounds == 0


def test_a_drafter_of_another_vocabulary_is_refused(
    registry: DrafterRegistry, replica: Callable[..., Replica], tmp_path: Path
) -> None:
    """A whole and sound model with more tokens than the target is not drafted with."""
    source = tmp_path / "source"
    random_model("llama", vocab_size=300).save_pretrained(source)
    version = publish(registry, save_tokenizer(source))
    one = replica("one", "poor")
    one.serve()
    assert state_of(registry, version) == "rolled_back"
    assert one.swapped == []


def test_two_engines_one_tries_the_other_follows(
    registry: DrafterRegistry,
    replica: Callable[..., Replica],
    folders: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While one engine tries a version the other keeps its own, and has it once it is promoted.

    The log says which one tries, and which has kept it.
    """
    caplog.set_level(logging.INFO, NEWS)
    one, two = replica("one", "poor"), replica("two", "poor")
    one.serve(turns=2)
    version = publish(registry, folders["right"])
    one.serve()
    two.serve()
    assert registry.state(SHARED_GROUP).canary_replica == "one"
    assert (one.watch.version, two.watch.version) == (version, 0)
    one.serve(turns=8)
    two.serve()
    assert two.watch.version == version
    assert two.watch.counts.canaries == 0
    assert {figures.replica for figures in registry.live(SHARED_GROUP)} == {"one", "two"}
    assert f"version {version} of shared is tried on one, beside version 0" in caplog.messages
    assert any(f"version {version} of shared is kept by one: " in it for it in caplog.messages)
    assert not any("tried on two" in message for message in caplog.messages)


def test_engines_follow_a_rollback_by_hand(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Taken back, the current version gives way to the last good one, and to the given folder."""
    first, second = publish(registry, folders["right"]), publish(registry, folders["noisy"])
    for version in (first, second):
        registry.promote(SHARED_GROUP, version, reason="by hand")
    one = replica("one", "poor")
    one.serve()
    assert one.watch.version == second
    registry.roll_back(SHARED_GROUP, reason="by hand")
    one.serve()
    assert one.watch.version == first
    registry.roll_back(SHARED_GROUP, reason="by hand")
    one.serve()
    assert one.watch.version == 0
    assert one.swapped == [second, first, 0]


def test_an_engine_begins_with_the_current_version(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Before its first round; where there is none, with the folder that it was given, or none."""
    none = replica("none", None)
    none.watch.begin()
    assert none.watch.version == 0
    version = publish(registry, folders["right"])
    registry.promote(SHARED_GROUP, version, reason="first")
    one = replica("one", None)
    one.watch.begin()
    assert one.watch.version == version
    said = one.serve(looks=False)
    assert said == expected(replica)
    assert one.engine.tally.total(version).num_rounds > 0


def test_a_damaged_current_version_is_taken_back_after_some_tries(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """The engine drafts on with what it has, tries again, and then takes the version back."""
    version = publish(registry, folders["right"])
    truncate(Path(registry.version(SHARED_GROUP, version).folder))
    registry.promote(SHARED_GROUP, version, reason="by hand")
    one = replica("one", "poor")
    one.watch.begin()
    assert (one.watch.version, one.watch.counts.failures) == (0, 1)
    assert state_of(registry, version) == "current"
    for tries in (2, 3):
        one.now += RETRY_SECONDS
        one.watch.look()
        assert one.watch.counts.failures == tries
    assert state_of(registry, version) == "rolled_back"
    one.serve()
    assert one.watch.version == 0


def test_a_canary_is_judged_while_redis_is_away(
    redis_server: RedisServer,
    registry: DrafterRegistry,
    replica: Callable[..., Replica],
    folders: dict[str, Path],
) -> None:
    """A worse version is swapped out without Redis, which is told of it when it is back."""
    one = replica("one", "right")
    one.serve(turns=6)
    version = publish(registry, folders["noisy"])
    while one.watch.version != version:
        one.serve()
    redis_server.kill()
    assert not one.watch.look()
    for number in range(10):
        one.serve(prompt=13 * number, looks=False)
        one.watch.look()
    assert one.swapped == [version, 0]
    redis_server.start()
    assert one.watch.look()
    assert state_of(open_registry(redis_server.url, registry._folder.parent), version) == (
        "rolled_back"
    )
    assert one.watch.counts.unreachable > 1


def test_a_canary_whose_replica_went_quiet_says_so_when_another_tries_it(
    registry: DrafterRegistry,
    replica: Callable[..., Replica],
    folders: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log of the engine that takes it over names the one that was not heard of."""
    caplog.set_level(logging.INFO, NEWS)
    version = publish(registry, folders["right"])
    assert registry.begin_canary(SHARED_GROUP, version, "gone")
    one = replica("one", "poor")
    one.serve()
    assert registry.state(SHARED_GROUP).canary_replica == "gone"
    registry._store.client.hset(registry._keys(SHARED_GROUP).state, "canary_seen", 1)
    one.serve()
    assert registry.state(SHARED_GROUP).canary_replica == "one"
    (tried,) = (message for message in caplog.messages if "is tried on" in message)
    assert tried.endswith("is tried on one, beside version 0 (its replica gone has gone quiet)")


def test_an_engine_without_traffic_leaves_a_candidate_to_others(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """It could not judge it."""
    one = replica("one", "poor")
    version = publish(registry, folders["right"])
    for _ in range(3):
        one.watch.look()
    assert state_of(registry, version) == "candidate"
    one.serve()
    assert state_of(registry, version) == "canary"


def test_a_canary_that_is_taken_from_an_engine_is_left(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Rolled back by hand while it is tried, it drafts no more."""
    one = replica("one", "poor")
    one.serve(turns=4)
    version = publish(registry, folders["right"])
    one.serve()
    assert one.watch.version == version
    registry.roll_back(SHARED_GROUP, reason="by hand", version=version)
    one.serve()
    assert one.watch.version == 0
    assert not one.engine.is_judging


def test_the_checksum_is_of_what_was_published(
    registry: DrafterRegistry, replica: Callable[..., Replica], folders: dict[str, Path]
) -> None:
    """Sound weights that are not the published ones are refused too."""
    version = publish(registry, folders["right"])
    published = registry.version(SHARED_GROUP, version)
    weights = Path(published.folder) / "model.safetensors"
    weights.write_bytes((folders["poor"] / "model.safetensors").read_bytes())
    assert folder_checksum(Path(published.folder)) != published.checksum
    one = replica("one", "poor")
    one.serve()
    assert state_of(registry, version) == "rolled_back"
    assert one.swapped == []


def open_requests(place: Path) -> int:
    """Requests that the one engine that follows a registry tells of in its folder."""
    files = EngineFiles(place)
    files.find()
    assert len(files) == 1
    found = files.num_open()
    files.close()
    return found


def test_a_served_engine_follows_by_itself(
    redis_server: RedisServer, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The command's engine takes over what is promoted, while it serves, and its metrics say so."""
    from paceline.adapters.embedded.__main__ import fingerprint_of
    from paceline.adapters.embedded.target import Target

    place = tmp_path / "versions"
    place.mkdir()
    fingerprint = fingerprint_of(Target.load(folders["target"]), MODEL_NAME)
    registry = open_registry(redis_server.url, place, fingerprint)
    arguments = ["--redis", redis_server.url, "--drafter", str(folders["poor"]), "--always-draft"]
    server = EmbeddedServer(
        folders["target"], tmp_path, "engine", *arguments, "--drafter-registry", str(place)
    )
    server.start()
    try:
        server.wait_ready()
        assert server.metric("paceline_drafter_version") == 0
        rounds = "paceline_drafter_rounds_total"

        def drafts_with(version: int) -> bool:
            post_json(f"{server.url}/v1/completions", {"prompt": "abc", "max_tokens": 8})
            return server.metric(rounds, version=str(version)) > 0

        wait_until(lambda: drafts_with(0), seconds=60)
        version = publish(registry, folders["right"])
        registry.promote(SHARED_GROUP, version, reason="first")
        wait_until(lambda: drafts_with(version), seconds=60)
        wait_until(lambda: server.metric("paceline_drafter_version") == version, seconds=60)
        assert open_requests(place) == 0
        asked = {"prompt": "abc", "max_tokens": 200, "ignore_eos": True}
        with ThreadPoolExecutor(1) as client:
            reply = client.submit(post_json, f"{server.url}/v1/completions", asked)
            wait_until(lambda: open_requests(place) == 1, seconds=60)
            reply.result()
        wait_until(lambda: open_requests(place) == 0, seconds=60)
        wait_until(lambda: [each.version for each in registry.live(SHARED_GROUP)] == [version], 60)
        log = (tmp_path / "engine.log").read_text(encoding="utf-8")
        assert f"paceline.drafter drafting with version {version} of shared" in log
    finally:
        server.stop()
