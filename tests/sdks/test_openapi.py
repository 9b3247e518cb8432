"""The OpenAPI document, and Schemathesis holding the proxy and the engine behind it to it."""

from __future__ import annotations

import re

import httpx
import pytest

from paceline.middleware.openapi import OPENAPI_PATH, document
from schemathesis_run import run_schemathesis
from sdk_clients import SdkClients

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

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
    # for vectors this engine has no model, and says so: 501; tests/vllm asks a vLLM that has one
    run_schemathesis(clients, "--exclude-path", EMBEDDINGS)
