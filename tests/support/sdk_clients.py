"""Agent SDKs as users run them: scripts in environments of their own (`make sdks`)."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 240
OPENAI_3 = "sdks"
OPENAI_2 = "sdks-openai2"
"""LlamaIndex and CrewAI want the openai SDK before 3."""
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
}
"""SDKs that would call home are told not to: nothing but this machine is asked."""


def sdk_python(environment: str) -> str:
    """The interpreter of one of the environments."""
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    assert python.exists(), f"{python} is missing: `make test` installs it"
    return str(python)


@dataclass(frozen=True)
class SdkClients:
    """Runs scripts against one server.

    Attributes:
        base_url: what the SDKs are pointed at.
        metrics_url: where the engine says how many requests it has.
        home: folder in which SDKs may keep what they like.
    """

    base_url: str
    metrics_url: str
    home: Path
    model: str = "smollm2"
    key: str = "local"

    @property
    def env(self) -> dict[str, str]:
        """What a script finds in its environment."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            **QUIET,
            "HOME": str(self.home),
            "PACELINE_URL": self.base_url,
            "PACELINE_KEY": self.key,
            "PACELINE_MODEL": self.model,
            "ENGINE_METRICS": self.metrics_url,
        }

    def run(self, script: Path, environment: str = OPENAI_3, *arguments: str) -> str:
        """What a script printed; a script for Node ends with ``mjs``."""
        program = "node" if script.suffix == ".mjs" else sdk_python(environment)
        done = subprocess.run(
            [program, str(script), *arguments],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{script.name}: {done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def found(self, script: Path, environment: str = OPENAI_3) -> dict[str, Any]:
        """The JSON object on the script's last line."""
        found: dict[str, Any] = json.loads(self.run(script, environment).splitlines()[-1])
        return found
