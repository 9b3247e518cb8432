"""A target that vLLM can serve, exported once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as a Hugging Face folder, exported by a process of its own."""
    folder = tmp_path_factory.mktemp("target")
    code = (
        "import sys, pathlib;"
        "from paceline.adapters.embedded.packaged import export_packaged_model;"
        "export_packaged_model(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return folder
