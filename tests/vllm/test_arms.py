"""Arms in a real vLLM: they are chosen from its own rounds, and change no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline_vllm import run_offline

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("offline_arms.py")


@pytest.fixture(scope="module")
def off(target_folder: Path) -> dict[str, Any]:
    """The engine without speculation."""
    return run_offline(SCRIPT, target_folder, "off")


@pytest.fixture(scope="module")
def on(target_folder: Path) -> dict[str, Any]:
    """The engine with our worker."""
    return run_offline(SCRIPT, target_folder, "on")


def test_replies_do_not_depend_on_arms(off: dict[str, Any], on: dict[str, Any]) -> None:
    """Greedy outputs in float32 are those without speculation, with good drafts and with junk."""
    assert on["outputs"] == on["again"] == on["junk"] == off["outputs"]


def test_arms_are_chosen_from_the_engines_rounds(on: dict[str, Any]) -> None:
    """Rounds are timed, contexts are taught, and nothing of it fails."""
    events = on["figures_2"]["events"]
    assert events["arm_failures"] == events["failures"] == 0
    assert events["arms_pulled"] > 10
    assert events["rounds_timed"] > 0
    assert sum(on["figures"]["arms"].values()) > 100
    assert on["open_alike"]  # who has left is closed at the next step


def test_junk_is_not_verified_for_long(on: dict[str, Any]) -> None:
    """A scope whose memory is sure of what the target never says ends without drafts."""
    before, after = on["figures_1"]["arms"], on["figures_2"]["arms"]
    used = {arm: num - before.get(arm, 0) for arm, num in after.items()}
    assert used["none"] > 0.7 * sum(used.values())
