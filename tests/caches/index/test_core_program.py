"""The core without Python, under sanitizers of memory, undefined behaviour and threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "caches" / "native"


def run(*command: str | Path, path: str) -> None:
    # An allocator that the environment preloads would stand in the sanitizer's way.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PATH": path},
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def build(folder: Path, sanitizers: str, *programs: str, path: str) -> list[Path]:
    cmake = shutil.which("cmake", path=path)
    assert cmake, "cmake is not installed; `make test` installs it"
    configure = ["-S", SOURCES, "-B", folder, "-G", "Ninja", "-DPACELINE_NATIVE_TESTS=ON"]
    run(cmake, *configure, f"-DPACELINE_NATIVE_SANITIZERS={sanitizers}", path=path)
    run(cmake, "--build", folder, "--parallel", "2", "--target", *programs, path=path)
    return [folder / program for program in programs]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("sanitizers", "programs"),
    [
        (
            "address,undefined",
            [
                "paceline_core_test",
                "paceline_random_test",
                "paceline_segment_test",
                "paceline_thread_test",
            ],
        ),
        ("thread", ["paceline_thread_test"]),
    ],
)
def test_the_core_passes_its_own_tests_under_sanitizers(
    tmp_path: Path, sanitizers: str, programs: list[str]
) -> None:
    """No memory error, undefined behaviour, race or broken invariant in the C++ core's tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for program in build(tmp_path, sanitizers, *programs, path=path):
        run(program, path=path)
