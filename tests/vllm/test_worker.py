"""The worker in a real vLLM: chunked prefill, preemption, the end of the context."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offline_vllm import run_offline

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("offline.py")


@pytest.fixture(scope="module")
def off(target_folder: Path) -> dict[str, Any]:
    """The engine without speculation."""
    return run_offline(SCRIPT, target_folder, "off")


@pytest.fixture(scope="module")
def on(target_folder: Path) -> dict[str, Any]:
    """The engine with our worker."""
    return run_offline(SCRIPT, target_folder, "on")


def test_the_situations_really_occur(off: dict[str, Any], on: dict[str, Any]) -> None:
    """Requests are preempted, reach the end of the context, and are longer than a prefill chunk."""
    assert on["preemptions"] > 0
    assert off["preemptions"] > 0
    assert max(len(output) for output in off["outputs"]) > 200


def test_every_token_is_the_targets(off: dict[str, Any], on: dict[str, Any]) -> None:
    """Greedy outputs in float32 equal those without speculation, the first time and from memory."""
    assert on["outputs"] == off["outputs"]
    assert on["again"] == off["outputs"]


def test_drafts_are_accepted_and_none_fails(on: dict[str, Any]) -> None:
    """The memory drafts in spite of it all: many tokens are accepted and no drafting failed."""
    assert on["first"]["accepted"] > 100
    assert on["first"]["failures"] == 0
    assert on["first"]["stats"]["shared_tokens"] > 0


def test_each_request_says_what_was_decided_for_it(on: dict[str, Any]) -> None:
    """All records together are vLLM's own counters, preempted and partly read requests included."""
    told = on["first"]["decisions"]
    assert len(told) == len(on["outputs"])
    assert sum(each["accepted_tokens"] for each in told) == on["first"]["accepted"]
    assert sum(each["draft_tokens"] for each in told) == on["first"]["drafted"]
    for each in told:
        assert each["rounds"] > 0
        assert each["draft_tokens"] == sum(s["drafted"] for s in each["sources"].values())
    assert any("length" in each["limited_by"] for each in told)


def test_what_is_not_worth_its_time_is_not_verified(
    off: dict[str, Any], on: dict[str, Any]
) -> None:
    """The engine learns what its rounds take; where a round is as long as its tokens none is cheap.

    Then a drafted token yields less than what is said without it, however sure memory is.
    """
    assert on["rounds_known"]
    assert on["dear"] == off["outputs"]
    assert on["tokens_cut"] > 100
    assert on["drafted_dear"] == 0


def test_failing_drafts_leave_the_target_alone(off: dict[str, Any], on: dict[str, Any]) -> None:
    """A draft memory that raises on every round changes no output; its failures are counted."""
    assert on["broken"] == off["outputs"]
    assert on["failures"] > on["failures_of_one"]


def test_one_request_that_fails_leaves_the_others_their_drafts(
    off: dict[str, Any], on: dict[str, Any]
) -> None:
    """A request that cannot be opened goes undrafted; the rest of its batch is drafted for."""
    assert on["one_broken"] == off["outputs"]
    assert on["failures_of_one"] > 0
    assert on["accepted_beside_it"] > 100


def test_a_seed_does_not_end_the_engine(on: dict[str, Any]) -> None:
    """Sampling with a seed after a chunked prefill works on a CPU."""
    assert on["seeded"] == [8, 8]


def test_a_top_k_does_not_end_the_engine(on: dict[str, Any]) -> None:
    """Sampling among the likeliest tokens works on a CPU, in steps without drafts too."""
    assert on["top_k"] == [8, 8]


@pytest.mark.parametrize(
    ("name", "platform"), [("CPUWorker", "cpu_worker"), ("GPUWorker", "gpu_worker")]
)
def test_each_platforms_worker_is_extended(name: str, platform: str) -> None:
    """Our worker class of a platform is vLLM's own with ours before it."""
    code = (
        f"from paceline.adapters.vllm import worker; kind = worker.{name};"
        "names = [base.__module__ for base in kind.__mro__];"
        f"assert names.index('vllm.v1.worker.{platform}') > names.index(worker.__name__), names"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
