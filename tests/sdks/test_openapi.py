"""The OpenAPI document, and Schemathesis holding the proxy and the engine behind it to it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from paceline.middleware.openapi import OPENAPI_PATH, document
from sdk_clients import OPENAI_3, SdkClients, sdk_python

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
HOOKS = Path(__file__).parent / "clients" / "schemathesis_hooks.py"
NUM_EXAMPLES = 8
EMBEDDINGS = "/v1/embeddings"


def root(clients: SdkClients) -> str:
    return clients.base_url.removesuffix("/v1")


def test_the_document_is_served_to_anybody(clients: SdkClients) -> None:
    """It is JSON, without a key, and all that it refers to is in it."""
    served = httpx.get(root(clients) + OPENAPI_PATH)
    assert served.headers["content-type"] == "application/json"
    assert served.json() == document()
    names = set(re.findall(r'"#/components/schemas/(\w+)"', served.text))
    assert names == set(document()["components"]["schemas"])


def test_schemathesis_finds_nothing(clients: SdkClients) -> None:
    """Right or wrong, what it makes up is answered as the document says, and never with 5xx."""
    done = subprocess.run(
        [
            *(str(Path(sdk_python(OPENAI_3)).with_name("schemathesis")), "run"),
            *(root(clients) + OPENAPI_PATH, "--checks", ",".join(CHECKS)),
            *("--max-examples", str(NUM_EXAMPLES), "--seed", "1", "--no-shrink"),
            *("--continue-on-failure", "--phases", "examples,coverage,fuzzing"),
            *("--suppress-health-check", "all", "--warnings", "off"),
            *("--request-timeout", "60"),
            *("--exclude-path", EMBEDDINGS),  # this engine has no model for it, and says so: 501
        ],
        env={**clients.env, "SCHEMATHESIS_HOOKS": str(HOOKS), "COLUMNS": "140"},
        cwd=clients.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout, done.stdout[-2000:]
