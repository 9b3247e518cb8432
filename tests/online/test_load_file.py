"""Engines tell of their requests in a file; what they leave behind tells nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from paceline import load_file
from paceline.adapters.vllm.step_load import StepLoad
from paceline.load_file import (
    FOLDER,
    SUFFIX,
    TEACHING_KEY,
    UNFINISHED_SECONDS,
    VERSION,
    WHOLE,
    EngineFiles,
    EngineLoad,
    boot_id,
)
from sessions import Clock

ENGINE = """
import sys
from pathlib import Path
from paceline.load_file import EngineLoad
load = EngineLoad(Path(sys.argv[1]))
for name in sys.argv[2:]:
    load.begin(name)
print("told", load.is_told, flush=True)
sys.stdin.read()
load.close()
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[EngineFiles]:
    found = EngineFiles(tmp_path)
    yield found
    found.close()


def engine(registry: Path, *requests: str) -> subprocess.Popen[str]:
    """An engine's process that has told of its requests."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(registry), *requests],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "told True\n"
    return process


def told(registry: Path) -> list[Path]:
    return sorted((registry / FOLDER).iterdir()) if (registry / FOLDER).exists() else []


def test_an_engine_that_is_killed_is_forgotten(tmp_path: Path, files: EngineFiles) -> None:
    """Requests of all processes count; those of one that died do not, and its file goes."""
    first, second = engine(tmp_path, "a", "b", "b"), engine(tmp_path, "c")
    try:
        files.find()
        assert (len(files), files.num_open()) == (2, 3)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert len(told(tmp_path)) == 2
        files.find()
        assert (len(files), files.num_open()) == (1, 1)
        assert len(told(tmp_path)) == 1
        second.communicate("")
        assert told(tmp_path) == []
        assert files.num_open() == 0
        files.find()
        assert len(files) == 0
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_requests_come_and_go(tmp_path: Path, files: EngineFiles) -> None:
    """Each counts once; the first of those that overlap says since when the engine is busy."""
    load = EngineLoad(tmp_path)
    files.find()
    assert (files.num_open(), files.busy_since()) == (0, None)
    before = time.monotonic()
    load.begin("a")
    since = files.busy_since()
    assert since is not None
    assert before <= since <= time.monotonic()
    load.begin("b")
    load.end("a")
    load.end("a")
    assert (files.num_open(), files.busy_since()) == (1, since)
    load.end("b")
    assert files.busy_since() is None
    load.begin("c")
    assert files.busy_since() > since  # type: ignore[operator]
    load.close()
    load.begin("d")
    assert (files.num_open(), told(tmp_path)) == (0, [])


def test_the_registrys_folder_is_waited_for(tmp_path: Path) -> None:
    """It belongs to who publishes there: an engine does not make it, and looks again later."""
    clock, registry = Clock(), tmp_path / "registry"
    load = EngineLoad(registry, clock=clock)
    files = EngineFiles(registry)
    load.begin("a")
    assert not registry.exists()
    registry.mkdir()
    load.begin("b")
    assert not load.is_told
    clock.now += load_file.RETRY_SECONDS
    load.begin("c")
    files.find()
    assert files.num_open() == 3
    load.close()
    files.close()


@pytest.mark.parametrize("fails", ["folder", "machine", "lock", "write"])
def test_an_engine_that_cannot_tell_goes_on(
    tmp_path: Path,
    files: EngineFiles,
    fails: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder that is none, no boot id, no locks, a full disk: said once, and nothing is left."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    if fails == "folder":
        (tmp_path / FOLDER).write_text("in the way")
    if fails == "machine":
        monkeypatch.setattr(load_file, "BOOT_ID_FILE", tmp_path / "none")
    if fails == "lock":
        monkeypatch.setattr(fcntl, "flock", full)
    load = EngineLoad(tmp_path)
    assert load.is_told is (fails == "write")
    if fails == "write":
        monkeypatch.setattr(os, "pwrite", full)
    for name in "abc":
        load.begin(name)
        load.end(name)
    assert not load.is_told
    assert caplog.text.count("cannot be written") == 1
    files.find()
    assert len(files) == 0
    if fails != "folder":
        assert told(tmp_path) == []
    load.close()


def test_files_that_tell_nothing_are_left_out(
    tmp_path: Path, files: EngineFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine's, a newer version's, a short one, a link: each is said once and stays."""
    load = EngineLoad(tmp_path)
    load.begin("a")
    (mine,) = told(tmp_path)
    whole = mine.read_bytes()
    named = {
        f"another{mine.name}": whole,
        f"{boot_id()}-short{SUFFIX}": whole[:-1],
        f"{boot_id()}-other{SUFFIX}": WHOLE.pack(1, VERSION, 5, 1),
        f"{boot_id()}-newer{SUFFIX}": WHOLE.pack(load_file.MAGIC, VERSION + 1, 5, 1),
    }
    for name, data in named.items():
        (mine.parent / name).write_bytes(data)
    (mine.parent / f"{boot_id()}-link{SUFFIX}").symlink_to(mine)
    for _ in range(2):
        files.find()
        assert (len(files), files.num_open()) == (1, 1)
    assert caplog.text.count("tells nothing") == 4
    assert len(told(tmp_path)) == 6
    load.close()


def test_the_next_engine_tidies_up(tmp_path: Path) -> None:
    """What dead ones left goes, for learners that may not; who has just begun is let be."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    dead, half, begun = (
        folder / f"{beginning}{boot_id()}-{name}{SUFFIX}"
        for beginning, name in (("", "dead"), (".", "half"), (".", "begun"))
    )
    for file in (dead, half, begun):
        file.write_bytes(WHOLE.pack(load_file.MAGIC, VERSION, 5, 1))
    past = time.time() - 2 * UNFINISHED_SECONDS
    os.utime(half, (past, past))
    alive = EngineLoad(tmp_path)
    assert [file.exists() for file in (dead, half, begun)] == [False, False, True]
    other = EngineLoad(tmp_path)
    assert alive.is_told
    assert len(told(tmp_path)) == 3
    for load in (alive, other):
        load.close()


def step(new: dict[str, dict[str, int] | None], *finished: str) -> SimpleNamespace:
    """What vLLM's worker is told of a step."""
    return SimpleNamespace(
        finished_req_ids=set(finished),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=extra))
            for name, extra in new.items()
        ],
    )


def test_steps_of_vllm_tell(tmp_path: Path, files: EngineFiles) -> None:
    """Requests from the step that they come in to the one behind their last; no teacher's."""
    steps = StepLoad(EngineLoad(tmp_path))
    files.find()
    seen = []
    for each in (
        step({"a": None, "b": {"paceline_learn": 1}}),
        step({"taught": {TEACHING_KEY: 1}}),
        step({"c": {}}, "a", "taught"),
        step({}, "b", "c"),
    ):
        steps.begin(each)
        seen.append(files.num_open())
    assert seen == [2, 2, 2, 0]
    steps.close()


def test_steps_that_are_not_known_end_the_telling(
    tmp_path: Path, files: EngineFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """A vLLM of another shape is served as ever, and does not keep a gate closed."""
    steps = StepLoad(EngineLoad(tmp_path))
    files.find()
    steps.begin(step({"a": None}))
    for _ in range(2):
        steps.begin(SimpleNamespace(finished_req_ids=set()))
    assert files.num_open() == 0
    assert caplog.text.count("not as we know") == 1
    assert told(tmp_path) == []
