"""Memory fused with vLLM's own model drafter, in a real vLLM.

Target and drafter are cut from the packaged model: what they say makes little sense, but they are
real models that a crowded machine can run, and one agrees with the other now and then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cut_models import cut_model
from offline_vllm import run_offline
from paceline.adapters.chain_fusing import COUNTERS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).with_name("offline_fused.py")
TARGET_LAYERS = [0, 1, 2, 3, 28, 29]
DRAFTER_LAYERS = [0, 1, 2, 28, 29]


@pytest.fixture(scope="module")
def small_target(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_model(target_folder, tmp_path_factory.mktemp("small"), TARGET_LAYERS)


@pytest.fixture(scope="module")
def off(small_target: Path) -> dict[str, Any]:
    """The engine without speculation."""
    return run_offline(SCRIPT, small_target, "off")


@pytest.fixture(scope="module")
def fused(
    small_target: Path, target_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The engine with memory and a drafter."""
    drafter = cut_model(target_folder, tmp_path_factory.mktemp("drafter"), DRAFTER_LAYERS)
    return run_offline(SCRIPT, small_target, "fused", drafter)


@pytest.fixture(scope="module")
def twin(small_target: Path) -> dict[str, Any]:
    """The engine with a drafter that is the target."""
    return run_offline(SCRIPT, small_target, "twin", small_target)


def test_every_token_is_the_targets(off: dict[str, Any], fused: dict[str, Any]) -> None:
    """Twenty greedy replies in float32 are those without speculation, again from memory too."""
    assert len(off["outputs"]) >= 20
    assert fused["outputs"] == off["outputs"]
    assert fused["again"] == off["outputs"][: len(fused["again"])]
    for name in ("always", "seldom", "blind"):
        assert fused[f"outputs_{name}"] == off["outputs"][: len(fused["again"])]
    assert fused["preemptions"] > 0
    assert fused["first"]["failures"] == 0


def test_drafts_come_from_both(fused: dict[str, Any]) -> None:
    """Memory's rows and the model's are drafted and accepted, and counted apart for Prometheus."""
    counts = fused["counts_always"]
    assert counts["rows_memory"] > 0
    assert counts["rows_model"] > 0
    assert counts["accepted_memory"] > 0
    assert counts["accepted_model"] > 0
    assert 0 < counts["accepted_behind"] <= counts["drafted_behind"]
    assert set(COUNTERS) < set(fused["metrics"])


def test_each_request_says_who_drafted_for_it(fused: dict[str, Any]) -> None:
    """Accepted tokens of all records together are the fuser's, memory's and the model's apart.

    Drafts that were handed out and not verified (to a preempted request, behind an end) are counted
    by the fuser alone.
    """
    told, counted = fused["decided"], fused["first"]
    assert told["requests"] == len(fused["outputs"])
    for name in ("accepted_memory", "accepted_model", "tokens_cut"):
        assert told[name] == counted[name]
    assert told["accepted_memory"] > 0
    assert 0 < told["drafted_memory"] <= counted["drafted_memory"]
    assert told.get("drafted_model", 0) <= counted["drafted_model"]
    assert told["model_rounds"] > 0


def test_a_drafter_equal_to_the_target_is_always_right(
    off: dict[str, Any], twin: dict[str, Any]
) -> None:
    """With it every drafted token of the model's is accepted, unless its request ends before."""
    assert twin["outputs"] == off["outputs"][: len(twin["outputs"])]
    stats = twin["stats"]
    assert stats["drafted_model"] > 100
    assert stats["accepted_model"] >= 0.9 * stats["drafted_model"]


def test_the_model_rests_where_it_is_not_worth_its_time(fused: dict[str, Any]) -> None:
    """Left to its own choice the engine goes many rounds without the model."""
    first = fused["first"]
    assert first["rounds_without_model"] > 0
    assert first["rounds_with_model"] > 0


def test_a_model_that_rested_drafts_as_if_it_had_not(fused: dict[str, Any]) -> None:
    """Its chains are those of a run in which it never rested; without catching up they are not."""
    seldom, blind = fused["seldom"], fused["blind"]
    assert fused["counts_seldom"]["rounds_without_model"] > 20
    assert fused["counts_seldom"]["tokens_caught_up"] > 100
    assert seldom["num_compared"] > 20
    assert seldom["num_different"] == 0
    assert seldom["largest_difference"] < 1e-3
    assert blind["largest_difference"] > 1e-2


def test_policy_and_client_say_who_drafts_and_how_far(
    off: dict[str, Any], fused: dict[str, Any]
) -> None:
    """Memory alone, the model alone, few tokens, none: and the same is said."""
    narrowed = fused["narrowed"]
    for counts in narrowed.values():
        assert counts["outputs"] == off["outputs"][: len(counts["outputs"])]
    memory, model, few = (narrowed[name] for name in ("memory", "model", "few"))
    assert memory["drafted_memory"] > 0 == memory["drafted_model"]
    assert model["drafted_model"] > 0 == model["drafted_memory"]
    assert few["longest"] == 2 < memory["longest"]
    assert few["drafted_memory"] > 0 < few["drafted_model"]
    assert narrowed["off"]["drafted_memory"] == narrowed["off"]["drafted_model"] == 0


def test_sampled_requests_are_answered(fused: dict[str, Any]) -> None:
    """Sampling, with and without a seed, beside greedy requests, ends where it should."""
    assert set(fused["sampled"]) == {16}
    assert fused["failures"] == 0


def test_what_fails_leaves_the_other_and_the_target_alone(
    off: dict[str, Any], fused: dict[str, Any]
) -> None:
    """Memory that raises leaves vLLM's own drafts, a model that raises leaves memory's."""
    expected = off["outputs"][: len(fused["again"])]
    assert fused["without_memory"] == expected
    assert fused["failures_of_memory"] > 0
    assert fused["accepted_without_memory"] > 0
    assert fused["without_model"] == expected
    assert fused["failures_of_model"] > 0
    assert fused["accepted_without_model"] > 0
