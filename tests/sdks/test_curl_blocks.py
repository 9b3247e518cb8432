"""Every block of the documentation that calls curl does what its page says, on a running stack."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from serving import Serving
from snippets import SHELLS, Snippet, snippets
from waiting import wait_until

pytestmark = [pytest.mark.sdks, pytest.mark.model, pytest.mark.timeout(300)]

BLOCKS: dict[str, list[Snippet]] = {}
for _each in snippets(*SHELLS):
    if "curl " in _each.text:
        BLOCKS.setdefault(_each.page, []).append(_each)
SHOWN = re.compile(r"http://(?:127\.0\.0\.1|proxy):8080\b")
MODELS = re.compile(r"Qwen/Qwen3-8B")


@pytest.fixture(scope="module")
def proxy(serving: Serving) -> Iterator[RunningProxy]:
    """The proxy of the pages: no policy file, one engine, named as in them."""
    engine = {"name": "gpu-1", "url": serving.engine_url, "decisions_url": serving.engine_url}
    with running_proxy(make_config(listen={"port": 0}, upstreams=[engine])) as running:
        wait_until(lambda: running.proxy.ready)
        yield running


def run(proxy: RunningProxy, block: Snippet, request_id: str = "") -> str:
    """What a block prints, pasted with this proxy's address and what stands for something in it."""
    assert SHOWN.search(block.text), block
    text = MODELS.sub("smollm2", SHOWN.sub(proxy.url, block.text))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text.replace("/requests/ID", f"/requests/{request_id}")],  # noqa: S607
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "ADMIN": "any"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_are_run() -> None:
    """A page with a further block says so here, and is run below."""
    assert {page: len(blocks) for page, blocks in BLOCKS.items()} == {
        "docs/explain.md": 2,
        "docs/quickstart.md": 1,
        "docs/routing.md": 1,
    }


def headers_of(printed: str) -> dict[str, str]:
    return dict(re.findall(r"^(x-paceline-[\w-]+): (.*?)\r?$", printed, re.MULTILINE))


def test_a_request_is_explained(proxy: RunningProxy) -> None:
    """The quickstart's question says whether drafts are allowed; asked again it is drafted for."""
    (block,) = BLOCKS["docs/quickstart.md"]
    told = headers_of(run(proxy, block))
    assert told["x-paceline-speculation"] == "auto"
    again = headers_of(run(proxy, block))
    assert int(again["x-paceline-accepted-tokens"]) > int(told["x-paceline-accepted-tokens"])


def test_a_request_is_asked_for_afterwards(proxy: RunningProxy) -> None:
    """By the id that its headers tell."""
    asks, looks = BLOCKS["docs/explain.md"]
    request_id = headers_of(run(proxy, asks))["x-paceline-request-id"]
    record = json.loads(run(proxy, looks, request_id))
    assert record["request_id"] == request_id
    assert record["is_finished"]


def test_an_engine_is_drained(proxy: RunningProxy) -> None:
    """It gets nothing new, as both answers of the block say, until it is resumed."""
    (block,) = BLOCKS["docs/routing.md"]
    drained, listed = run(proxy, block).replace("}{", "}\n{").splitlines()
    for told in (drained, listed):
        assert json.loads(told)["upstreams"][0]["drained_by"] == "admin"
    resumed = httpx.post(f"{proxy.url}/admin/upstreams/gpu-1/resume")
    assert resumed.json()["upstreams"][0]["drained_by"] == ""
