"""The core without Python, under AddressSanitizer and UndefinedBehaviorSanitizer."""

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


@pytest.mark.timeout(300)
def test_the_core_passes_its_own_tests_under_sanitizers(tmp_path: Path) -> None:
    """No memory error, no undefined behaviour and no broken invariant in the C++ core's tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=path)
    assert cmake, "cmake is not installed; `make test` installs it"
    configure = ["-S", SOURCES, "-B", tmp_path, "-G", "Ninja", "-DPACELINE_NATIVE_TESTS=ON"]
    run(cmake, *configure, path=path)
    run(cmake, "--build", tmp_path, "--parallel", "2", path=path)
    run(tmp_path / "paceline_core_test", path=path)
    run(tmp_path / "paceline_segment_test", path=path)
