"""Schemathesis, in the SDKs' environment, holds what is served to the OpenAPI document."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from paceline.middleware.openapi import OPENAPI_PATH
from sdk_clients import OPENAI_3, ROOT, SdkClients, sdk_python

CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
HOOKS: Final = ROOT / "tests" / "sdks" / "clients" / "schemathesis_hooks.py"
NUM_EXAMPLES: Final = 8


def run_schemathesis(clients: SdkClients, *arguments: str) -> None:
    """Ask for what the document describes, rightly and wrongly; assert that nothing is found.

    Args:
        clients: whom to ask.
        arguments: further ones, such as ``--include-path``.
    """
    url = clients.base_url.removesuffix("/v1") + OPENAPI_PATH
    done = subprocess.run(
        [
            *(str(Path(sdk_python(OPENAI_3)).with_name("schemathesis")), "run"),
            *(url, "--checks", ",".join(CHECKS)),
            *("--max-examples", str(NUM_EXAMPLES), "--seed", "1", "--no-shrink"),
            *("--continue-on-failure", "--phases", "examples,coverage,fuzzing"),
            *("--suppress-health-check", "all", "--warnings", "off"),
            *("--request-timeout", "60", "--header", f"Authorization: Bearer {clients.key}"),
            *arguments,
        ],
        env={**clients.env, "SCHEMATHESIS_HOOKS": str(HOOKS), "COLUMNS": "140"},
        cwd=clients.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No issues found" in done.stdout, done.stdout[-2000:]
