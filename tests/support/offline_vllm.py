"""A real vLLM engine in a process of its own, run by a script that prints what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from paceline.adapters.vllm.launch import require_vllm, serve_environment


def run_offline(script: Path, *arguments: str | Path) -> dict[str, Any]:
    """What a script prints as JSON in a line that begins with RESULT."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=serve_environment(os.environ, None, device=require_vllm().device),
        check=False,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, f"the engine failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    result: dict[str, Any] = json.loads(results[0].removeprefix("RESULT "))
    return result
