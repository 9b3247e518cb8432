"""docs/sdks.md is true: each snippet runs against a real server, in the environment of its SDK."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from paceline.middleware.config import make_config
from sdk_clients import OPENAI_2, OPENAI_3, ROOT, SdkClients

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

PAGE = (ROOT / "docs" / "sdks.md").read_text(encoding="utf-8")
SHOWN_ROOT = "http://127.0.0.1:8080"
SHOWN_URL = f"{SHOWN_ROOT}/v1"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OLD = "# needs openai < 3\n"
RUN = Path(__file__).parent / "clients" / "run_snippets.py"


@pytest.mark.parametrize("environment", [OPENAI_3, OPENAI_2])
def test_python_snippets_run(environment: str, clients: SdkClients, tmp_path: Path) -> None:
    """Pasted as they are, with this server's address, they print what the model said."""
    codes = [code for code in SNIPPETS if code.startswith(OLD) == (environment == OPENAI_2)]
    assert len(codes) >= 2
    assert all(SHOWN_ROOT in code for code in codes)
    root = clients.base_url.removesuffix("/v1")
    script = tmp_path / "snippets.json"
    script.write_text(json.dumps([code.replace(SHOWN_ROOT, root) for code in codes]))
    printed = json.loads(clients.run(RUN, environment, str(script)).splitlines()[-1])
    assert len(printed) == len(codes)
    assert all(each.strip() for each in printed), printed


def test_the_node_snippet_runs(clients: SdkClients) -> None:
    """Pasted beside its packages, it prints what the model said."""
    (code,) = re.findall(r"^```js\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert SHOWN_URL in code
    script = ROOT / "tests" / "sdks" / "node" / "node_modules" / "snippet.mjs"
    script.write_text(code.replace(SHOWN_URL, clients.base_url), encoding="utf-8")
    assert clients.run(script).strip()


def test_upstreams_load() -> None:
    """The shown configuration is one that the proxy takes."""
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert make_config(**yaml.safe_load(shown)).upstreams[0].health_path == "/health/liveliness"


def test_links_lead_somewhere() -> None:
    """Relative links name files that exist."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
