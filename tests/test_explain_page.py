"""docs/explain.md names the headers, fields, limits and results that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from paceline.adapters.decisions import (
    LIMITS,
    MAX_FINISHED,
    SOURCE_NAMES,
    RequestDecisions,
    reason_of,
)
from paceline.middleware.config import load_config
from paceline.middleware.explaining import (
    MAX_REMEMBERED,
    REMEMBERED_SECONDS,
    RESULTS,
    WAIT_SECONDS,
    Explainer,
    headers_of,
)

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def text() -> str:
    return (DOCS / "explain.md").read_text(encoding="utf-8")


def first_cells(text: str, heading: str) -> set[str]:
    """Names in the first column of the table with that heading."""
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_record_shown_is_one(text: str) -> None:
    """It has all fields, each in the table, and the reason that its numbers give."""
    shown = json.loads(re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0])
    fields = set(RequestDecisions.__struct_fields__)
    assert set(shown) == fields == first_cells(text, "field")
    record = msgspec.convert(shown, RequestDecisions)
    assert record.reason == reason_of(record)
    assert record.draft_tokens == sum(tokens.drafted for tokens in record.sources.values())
    assert record.accepted_tokens == sum(tokens.accepted for tokens in record.sources.values())
    assert all(f"`{name}`" in text for name in SOURCE_NAMES.values())
    assert first_cells(text, "limit") == set(LIMITS)


def test_the_headers_are_those_that_are_sent(text: str) -> None:
    """An engine's all stand in the table."""
    made = headers_of(RequestDecisions(request_id="x", is_finished=True, arm="a", reason="b"))
    listed = first_cells(text, "header of the answer")
    assert {name.decode() for name, _ in made} < listed
    assert "x-paceline-request-id" in listed


def test_results_and_bounds_are_those_of_the_proxy(text: str) -> None:
    """What the counter can say, and how long and how many requests are remembered."""
    named = text.partition("counts by `result`:")[2].partition(". Requests")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(RESULTS)
    assert (WAIT_SECONDS, REMEMBERED_SECONDS) == (0.2, 600.0)
    assert f"the latest {MAX_REMEMBERED:,} of all tenants" in text
    assert f"latest {MAX_FINISHED:,} requests" in text
    registry = CollectorRegistry()
    Explainer(registry)
    assert registry.get_sample_value("paceline_proxy_explained_total", {"result": "told"}) == 0


def test_the_configuration_loads(text: str, tmp_path: Path) -> None:
    """As it is shown."""
    (block,) = re.findall(r"^```yaml\n# (.*?)^```$", text, re.MULTILINE | re.DOTALL)
    name, _, content = block.partition("\n")
    (tmp_path / name).write_text(content, encoding="utf-8")
    (upstream,) = load_config(tmp_path / name).upstreams
    assert upstream.decisions_url == "http://10.0.0.10:9400"


def test_links_lead_somewhere(text: str) -> None:
    """Pages that are named exist."""
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DOCS / target).exists(), target
