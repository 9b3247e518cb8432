"""Looks at the idle gate: work of any kind is told apart, waits, and comes to the same in parts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from idle_doors import Doors
from paceline.caches.drafter_versions import copy_drafter, folder_checksum
from paceline.online.greedy_replay import ReplayCounts
from paceline.online.learner_metrics import LearnerCollector
from paceline.online.learner_notes import LearnerFigures
from paceline.online.lessons import Lesson, LessonShards
from paceline.online.looks import Longest, Looks, StoppedError
from paceline.online.passages import Passage
from paceline.online.paused_file import PART_BYTES, PausedFile
from paceline.online.promotion import GateSettings, SessionReplay, judge
from paceline.online.repeats import without_learned
from small_models import random_model


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_parts_are_told_by_kind_and_by_both_clocks() -> None:
    """The longest of each kind; what comes within another kind counts for itself."""
    clock, processor = Hand(), Hand()
    looks = Looks(Doors(), threading.Event(), clock=clock, processor_clock=processor)

    def work(seconds: float, processor_seconds: float) -> None:
        clock.now += seconds
        processor.now += processor_seconds

    work(100.0, 100.0)  # before any work
    with looks.running("training"):
        work(2.0, 0.5)
        looks.pause()
        work(1.0, 0.75)
        with looks.running("loading"):
            work(4.0, 0.25)
        work(0.5, 0.5)
    looks.pause()  # after it: nothing
    assert looks.longest == {"training": Longest(2.0, 0.75), "loading": Longest(4.0, 0.25)}
    assert looks.seconds == 7.5
    assert looks.take_longest() == 4.0
    registry = CollectorRegistry()
    registry.register(LearnerCollector("shared", LearnerFigures(longest=looks.longest), dict))
    page = generate_latest(registry).decode()
    name = "paceline_learner_longest_seconds"
    assert f'{name}{{group="shared",kind="loading",time="clock"}} 4.0' in page
    assert f'{name}{{group="shared",kind="training",time="processor"}} 0.75' in page


def test_waiting_is_part_of_nothing() -> None:
    """Time in which the gate was closed is no part's."""
    clock = Hand()

    class Slow(Doors):
        def wait_until_open(self, stop: threading.Event) -> bool:
            clock.now += 50.0
            return super().wait_until_open(stop)

    looks = Looks(Slow(1, 2, 3), threading.Event(), clock=clock, processor_clock=Hand())
    with looks.running("judging"):
        clock.now += 1.0
        looks.pause()
        clock.now += 2.0
        looks.rest()
    assert looks.longest["judging"].seconds == 2.0
    assert looks.num_pauses == 3


def test_what_must_not_end_halfway_goes_on_once_it_is_to_stop() -> None:
    """Without waiting, at a gate that is closed; other work ends there."""
    stop, doors = threading.Event(), Doors(2)
    looks = Looks(doors, stop)
    with looks.finishing("checkpoint"):
        looks.rest()
        assert doors.waits == 1
        stop.set()
        looks.rest()
        assert doors.waits == 1
    with looks.finishing("checkpoint"):
        assert not looks.may_go_on()
    with pytest.raises(StoppedError), looks.running("training"):
        pytest.fail("it was to stop")


def _replay(i: int, before: ReplayCounts, after: ReplayCounts) -> SessionReplay:
    return SessionReplay(session=f"s{i}", workload="ab"[i % 2], before=before, after=after)


def sessions(num: int) -> list[SessionReplay]:
    """Of two workloads: one gains much, the other loses little."""
    rng = np.random.default_rng(1)
    found: list[SessionReplay] = []
    for i in range(num):
        before = int(rng.integers(20, 40))
        after = before + int(rng.integers(-6, 0) if i % 2 else rng.integers(5, 20))
        counts = (
            ReplayCounts(num_tokens=90, num_rounds=60, num_accepted=accepted)
            for accepted in (before, after)
        )
        found.append(_replay(i, *counts))
    return found


def test_resamples_are_the_same_in_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds and chances do not depend on how many are drawn at a time, bit by bit."""
    from paceline.online import promotion

    settings = GateSettings(min_sessions=2, num_resamples=999, slice_margin=0.0)
    results = []
    for draws in (1 << 30, 37 * 101, 1):
        monkeypatch.setattr(promotion, "PART_DRAWS", draws)
        doors = Doors()
        looks = Looks(doors, threading.Event())
        with looks.running("resampling"):
            results.append(judge(sessions(37), settings, pause=looks.pause))
        # the bound, the chance of the gain, and that of the loss of the worse workload
        assert doors.looks > 2 * min(999, 999 * 37 // draws) + min(999, 999 * 18 // draws)
    assert results[0] == results[1] == results[2]
    assert results[0].lower_bound > 0
    assert any("worse" in reason for reason in results[0].reasons)


def passages(num: int, *, seed: int) -> list[Passage]:
    rng = np.random.default_rng(seed)
    return [
        Passage(
            token_ids=rng.integers(0, 5, 6).astype(np.int32),
            is_said=np.arange(6) >= 3,
            tenant="a",
            scope="tenant:a",
            workload="w",
            session=f"{seed}-{i}",
            begun_at=0.0,
            finished_at=1.0,
        )
        for i in range(num)
    ]


def test_texts_are_compared_between_looks() -> None:
    """As many looks as there are parts; a stop ends it, and it comes to the same the next time."""
    measured, learned = passages(200, seed=0), passages(70, seed=1)
    whole = without_learned(measured, learned)
    assert 0 < len(whole) < 200
    stop, doors = threading.Event(), Doors(3)

    class Stopping(Doors):
        def wait_until_open(self, stop: threading.Event) -> bool:
            stop.set()
            return False

    looks = Looks(Stopping(3), stop)
    with pytest.raises(StoppedError), looks.running("comparing"):
        without_learned(measured, learned, pause=looks.pause)
    looks = Looks(doors, threading.Event())
    with looks.running("comparing"):
        assert without_learned(measured, learned, pause=looks.pause) == whole
    assert doors.looks == 1 + 200 // 64 + 70 // 64
    assert doors.waits == 1


def test_lessons_are_read_between_looks(tmp_path: Path) -> None:
    """One look a shard at least."""
    shards = LessonShards(tmp_path)
    lesson = Lesson(
        np.arange(3, dtype=np.int32), 1, np.ones((2, 1), np.int32), np.zeros((2, 1), np.float16)
    )
    for _ in range(5):
        shards.add([lesson], seconds=0.0)
    looked: list[int] = []
    lessons, _ = shards.read(pause=lambda: looked.append(1))
    assert (len(lessons), len(looked)) == (5, 5)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, 2 * PART_BYTES + 5])
def test_files_are_written_and_read_in_parts(tmp_path: Path, size: int) -> None:
    """What comes back is what was written, in whichever pieces, with a rest after each part."""
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    rests: list[str] = []
    with PausedFile(tmp_path / "f", "wb", lambda: rests.append("w")) as file:
        assert file.write(data[:100]) + file.write(data[100:]) == size
    assert (tmp_path / "f").read_bytes() == data
    with PausedFile(tmp_path / "f", "rb", lambda: rests.append("r")) as file:
        assert file.read(7) == data[:7]
        assert file.read() == data[7:]
        assert file.read(1) == b""
    assert rests == ["w"] * (size // PART_BYTES) + ["r"] * (size // PART_BYTES)


def test_a_drafter_is_copied_and_checked_in_parts(tmp_path: Path) -> None:
    """Its copy has its checksum, and one is taken after as many rests as there are parts."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "weights").write_bytes(bytes(range(256)) * 40_000)
    (source / "config.json").write_text("{}")
    (source / "config.json").chmod(0o600)
    rests: list[int] = []
    checksum = copy_drafter(source, tmp_path / "copy", rest=lambda: rests.append(1))
    assert checksum == folder_checksum(source) == folder_checksum(tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").stat().st_mode & 0o777 == 0o600
    # 10.24 MB: three parts copied, ten read twice, and the small file each time
    assert len(rests) == (3 + 1) + 2 * (10 + 1)


def trainer_of(rest: Callable[[], None], pause: Callable[[], None]) -> Any:
    from paceline.online.student import Student
    from paceline.online.training import Trainer, TrainingLimits

    rng = np.random.default_rng(0)
    lessons = [
        Lesson(
            token_ids=rng.integers(0, 90, size).astype(np.int32),
            num_prompt=1,
            top_ids=rng.integers(0, 90, (size - 1, 3)).astype(np.int32),
            top_logprobs=np.full((size - 1, 3), -1.5, np.float16),
        )
        for size in (9, 30, 12, 20)
    ]
    limits = TrainingLimits(steps=4, seconds=None, batch=3, learning_rate=1e-2, seed=0)
    student = Student(random_model("llama", num_hidden_layers=2))
    return Trainer(student, lessons, limits, clock=Hand(), pause=pause, rest=rest)


def weights(trainer: Any) -> list[Any]:
    return [it.detach().clone() for it in trainer._student.trained]


def test_weights_are_changed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in parts is a step; no part of it is left out once training is to stop."""
    import torch

    from paceline.online import training

    found, rests = [], []
    for most in (1 << 30, 1):
        monkeypatch.setattr(training, "PART_NUMBERS", most)
        stop, doors = threading.Event(), Doors()
        looks = Looks(doors, stop)
        trainer = trainer_of(looks.rest, looks.pause)
        steps = trainer.run()
        with looks.running("training"):
            next(steps)
            num = doors.looks
            next(steps)
            rests.append(doors.looks - num)
        found.append(weights(trainer))
    for one, other in zip(*found, strict=True):
        # the norm of all gradients is summed up in another order
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    num_parameters = len(found[0])
    assert rests[1] - rests[0] == 2 * (num_parameters - 1)


def test_a_checkpoint_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and read with rests, also once it is to stop; training goes on as if without it."""
    import torch

    from paceline.online import paused_file

    plain = trainer_of(lambda: None, lambda: None)
    for _ in plain.run():
        pass
    monkeypatch.setattr(paused_file, "PART_BYTES", 256)
    rests: list[int] = []
    first = trainer_of(lambda: rests.append(1), lambda: None)
    steps = first.run()
    next(steps), next(steps)
    rests.clear()
    first.save(tmp_path / "checkpoint")
    size = (tmp_path / "checkpoint").stat().st_size
    assert len(rests) >= size // 256
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
    rests.clear()
    again = trainer_of(lambda: rests.append(1), lambda: None)
    again.restore(tmp_path / "checkpoint")
    assert len(rests) > size // 1024
    for _ in again.run():
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(again), strict=True))
