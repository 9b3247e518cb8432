"""A drafter that changes while a real vLLM runs, followed through a real Redis.

Target and drafters are cut from the packaged model. The first drafter has other layers of it and
knows nothing; the one that is published is the target itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cut_models import cut_model
from offline_vllm import run_offline
from redis_server import RedisServer

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(1800)]

SCRIPT = Path(__file__).with_name("offline_swap.py")
TARGET_LAYERS = [0, 1, 2, 3, 28, 29]
POOR_LAYERS = [0, 5, 10, 15, 20, 25]
MOST_CANARY_ROUNDS = 200


@pytest.fixture(scope="module")
def small_target(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_model(target_folder, tmp_path_factory.mktemp("small"), TARGET_LAYERS)


@pytest.fixture(scope="module")
def off(small_target: Path) -> list[list[int]]:
    """What the engine says without speculation."""
    outputs: list[list[int]] = run_offline(SCRIPT, small_target, "off")["outputs"]
    return outputs


@pytest.fixture(scope="module")
def swapped(
    small_target: Path, target_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """An engine that follows a registry."""
    above = tmp_path_factory.mktemp("swapped")
    poor = cut_model(target_folder, above / "poor", POOR_LAYERS)
    redis_folder = above / "redis"
    redis_folder.mkdir()
    redis = RedisServer(redis_folder)
    redis.start()
    try:
        return run_offline(
            SCRIPT, small_target, "swap", poor, small_target, redis.url, above / "versions"
        )
    finally:
        redis.kill()


def test_every_token_across_swaps_is_the_targets(
    off: list[list[int]], swapped: dict[str, Any]
) -> None:
    """Greedy replies in float32 are those without speculation, whichever drafter comes when."""
    assert all(outputs == off for outputs in (*swapped["poor"], *swapped["across"]))
    for name in ("always", "mid", "mixed", "bad"):
        assert swapped[f"outputs_{name}"] == off
    assert swapped["failures"] == 0


def test_a_published_drafter_is_tried_and_kept(swapped: dict[str, Any]) -> None:
    """Swapped in while requests run, it is promoted, drafts rightly, and metrics name it."""
    assert swapped["state"] == "current"
    assert swapped["version"] == 1
    assert swapped["counts"] == [1, 1, 0]
    assert swapped["agreement_poor"] < 0.1
    assert swapped["agreement_good"] > 0.99
    assert swapped["rounds_good"] > 200


def test_a_planted_regression_is_rolled_back_live(
    off: list[list[int]], swapped: dict[str, Any]
) -> None:
    """Weights that know nothing, let pass by the gate, are tried, found worse and swapped out.

    In the midst of requests, within 200 rounds, and no reply shows it. The one before drafts on.
    """
    found = swapped["regression"]
    assert found["state"] == "rolled_back"
    assert "its first token was right in" in found["reason"]
    assert found["current"]
    assert 0 < found["rounds"] <= MOST_CANARY_ROUNDS
    assert found["agreement"] < 0.5
    assert (found["version"], found["canary"]) == (swapped["version"], 0)
    assert found["rounds_after"] > 20
    assert found["counts"] == [2, 1, 1]
    assert all(outputs == off for outputs in found["outputs"])


def test_swapped_weights_draft_as_if_they_had_always_been_there(swapped: dict[str, Any]) -> None:
    """In mid-request too: what the old ones read is read again. Kept, it would show."""
    assert swapped["skips"]
    assert swapped["mid"]["num_compared"] > 50
    assert swapped["mid"]["num_different"] == 0
    assert swapped["mid"]["largest_difference"] < 1e-3
    assert swapped["mixed"]["largest_difference"] > 1e-2


def test_weights_that_cannot_be_put_leave_the_drafter_that_ran(swapped: dict[str, Any]) -> None:
    """Its own are put back, and it is right as before."""
    assert swapped["bad_is_refused"]
    assert swapped["usable"]
    assert swapped["agreed_after_bad"] > 50
