"""Statements of pages that have no test of their own, held against the code."""

from __future__ import annotations

import re

from paceline.adapters.vllm.launch import OWNED_FLAGS, TESTED_RANGE
from paceline.caches.keys import AnswerKeys, JournalKeys, KindKeys, LimitKeys, Shelf
from paceline.middleware.config import ProxyConfig
from paceline.middleware.request_body import PROTECTED
from snippets import ROOT

DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    """A page of docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_key_in_redis_is_listed() -> None:
    """The table of journal.md has the keys of `caches/keys.py`."""
    shown = set(re.findall(r"`paceline:2:\{NAMESPACE\}:([a-z-]+)", text_of("journal.md")))
    keys = JournalKeys("namespace")
    shelf = Shelf(scope="tenant:a", tenant="a")
    made = [value for name, value in vars(keys).items() if name not in ("namespace", "_prefix")]
    made += [keys.owned("a"), keys.tail(shelf), keys.index(shelf), keys.segment(shelf, "1-0")]
    made += [keys.shelf(shelf), keys.tenant("a"), keys.workloads(shelf), keys.phrases(shelf, "a")]
    made += [keys.policy("a"), keys.lease("a"), keys.seen(shelf, "a"), *keys.drafter("a").all()]
    assert {key.split("}:", 1)[1].split(":")[0] for key in made} == shown
    kinds = [key.rpartition(":")[2] for key in KindKeys("tenant:a").all()]
    assert all(f"`{name}`" in text_of("journal.md") for name in kinds)
    limits = LimitKeys("a").places("b").replace("{a}", "{TENANT}").replace(":b", ":WORKLOAD")
    assert f"`{limits}`" in text_of("journal.md")
    records, times = (key.replace("{a}", "{TENANT}") for key in AnswerKeys("a").all())
    assert f"`{records}`, `…:{times.rpartition(':')[2]}`" in text_of("journal.md")


def test_what_is_taken_out_of_requests_is_told() -> None:
    """security.md lists all fields, and no other."""
    named = text_of("security.md").partition("beyond itself (")[2].partition(")")[0]
    assert set(re.findall(r"`(\w+)`", named)) == set(PROTECTED)


def test_limits_and_ranges_are_those_of_the_code() -> None:
    """Numbers in quickstart.md and troubleshooting.md."""
    assert f"vLLM {TESTED_RANGE}" in text_of("quickstart.md")
    assert all(f"`{flag}`" in text_of("quickstart.md") for flag in OWNED_FLAGS[:2])
    mib = ProxyConfig.model_fields["max_body_bytes"].default >> 20
    assert f"`max_body_bytes` ({mib} MiB)" in text_of("troubleshooting.md")


def test_answers_named_by_their_code_are_given() -> None:
    """Every code in the table of refusals stands in the proxy's source."""
    table = text_of("troubleshooting.md").partition("| status, code |")[2].partition("\n\n")[0]
    rooms = ("middleware", "core")
    source = "".join(
        file.read_text("utf-8") for room in rooms for file in (ROOT / room).rglob("*.py")
    )
    codes = re.findall(r"^\| \d{3} ((?:`\w+`(?:, )?)+)", table, re.MULTILINE)
    assert len(codes) >= 8
    for code in re.findall(r"`(\w+)`", "".join(codes)):
        assert f'code="{code}"' in source, code


def test_messages_named_as_symptoms_are_said() -> None:
    """What the table of those who cannot start quotes, the code says."""
    table = text_of("troubleshooting.md").partition("| what it says |")[2].partition("\n\n")[0]
    rooms = ("middleware", "core", "caches", "adapters")
    files = [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines is one
    quoted = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(quoted) >= 8
    for message in quoted:
        for part in filter(None, (piece.strip(" ;") for piece in message.split("..."))):
            assert part in source, message
