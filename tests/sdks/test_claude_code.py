"""Claude Code itself on a real stack, where it is installed: `make test` does not fetch 235 MB."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from captured import metric
from paceline.adapters.speculator import Speculator
from paceline.middleware.config import make_config
from paceline.middleware.server import running_proxy
from sdk_clients import QUIET, ROOT
from served_engine import served_engine
from waiting import wait_until

pytestmark = [pytest.mark.sdks, pytest.mark.timeout(300)]

LONG_CONTEXT = 65_536
SECONDS = 200


@pytest.mark.skipif(
    shutil.which("claude") is None,
    reason="no claude on PATH; npm install -g @anthropic-ai/claude-code",
)
def test_a_conversation_goes_on(tmp_path: Path) -> None:
    """Two runs of it are one conversation, which the engine has read before; nothing is refused."""
    work = tmp_path / "work"
    work.mkdir()
    with served_engine(tmp_path, max_tokens=LONG_CONTEXT, speculator=Speculator()) as engine:
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": "e", "url": engine.url}],
            health_interval_seconds=0.1,
        )
        with running_proxy(config) as proxy:
            wait_until(lambda: proxy.proxy.ready)
            done = subprocess.run(
                [str(ROOT / "examples" / "claude_code.sh")],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(tmp_path),
                    "PACELINE_URL": f"{proxy.url}/v1",
                    "PACELINE_MODEL": "target",
                    **QUIET,
                },
                cwd=work,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            first, second = map(json.loads, done.stdout.splitlines())
            for told in (first, second):
                assert told["result"]
                assert not told["is_error"]
                assert told["usage"]["output_tokens"] > 1
            assert first["session_id"] == second["session_id"]
            assert second["usage"]["cache_read_input_tokens"] > 1000
            answered = "paceline_proxy_requests_total"
            num_good = metric(proxy, answered, tenant="local", status="200")
            assert num_good == metric(proxy, answered, tenant="local")
            assert metric(proxy, answered, route="/v1/messages", status="200") >= 2
