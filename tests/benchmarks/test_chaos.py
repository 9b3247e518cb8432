"""`paceline bench chaos`: what it counts, and a short run of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paceline.benchmarks.chaos.command import ChaosSettings, run_chaos
from paceline.benchmarks.chaos.judge import Life, judge, step_figures
from paceline.errors import ConfigError


def life(said: str, got: str, *, num_flushed: int | None = None, has_ended: bool = True) -> Life:
    return Life(
        said=said.split(),
        num_flushed=len(said.split()) if num_flushed is None else num_flushed,
        got=got.split(),
        has_ended=has_ended,
        steps=np.array(
            [[10.0, 0.001, 0.0], [11.0, 0.003, 0.0], [20.0, 0.5, 0.499], [21.0, 0.1, 0.0]]
        ),
    )


def test_every_fate_of_a_record_is_told() -> None:
    """Lost, lost with a killed engine, stored twice, delivered twice, not delivered."""
    survivor = life("a1 a2 a3", "b1 b1")
    killed = life("b1 b2 b3", "", num_flushed=2, has_ended=False)
    figures = judge([survivor, killed], ["a1", "a1", "a2", "b1", "c1"])
    assert figures == {
        "records.said": 6,
        "records.stored": 4,
        "records.lost": 2,  # a3, b2
        "records.lost_with_engine": 1,  # b3
        "records.stored_twice": 1,
        "records.delivered_twice": 1,
        "records.not_delivered": 1,  # c1 to the survivor
    }


def test_steps_are_told_by_stretch() -> None:
    """Each stretch has its own quantiles, with and without the wait for a processor."""
    windows = {"quiet": (0.0, 15.0), "chaos": (15.0, 30.0), "never": (30.0, 40.0)}
    figures = step_figures([life("", "")], windows)
    assert figures["quiet.steps"] == 2
    assert figures["quiet.step_max_ms"] == pytest.approx(3.0)
    assert figures["chaos.step_max_ms"] == pytest.approx(500.0)
    assert figures["chaos.own_max_ms"] == pytest.approx(100.0)
    assert figures["quiet.step_late"] == figures["quiet.own_late"] == 0
    assert (figures["chaos.step_late"], figures["chaos.own_late"]) == (2, 1)
    assert np.isnan(figures["never.step_p99_ms"])


@pytest.mark.timeout(180)
def test_a_short_run_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Two engines, some accidents: every record is stored and delivered once."""
    settings = ChaosSettings(
        engines=2, quiet_seconds=1.0, chaos_seconds=10.0, heal_seconds=12.0, seed=3
    )
    figures = run_chaos(settings, tmp_path).figures
    assert figures["records.said"] > 50
    for fate in ("lost", "stored_twice", "delivered_twice", "not_delivered"):
        assert figures[f"records.{fate}"] == 0, fate
    assert sum(n for name, n in figures.items() if name.startswith("accidents.")) >= 1
    assert figures["quiet.steps"] > 0


def test_settings_are_checked() -> None:
    """One engine has nobody to share with; stretches have a length."""
    with pytest.raises(ConfigError, match="--engines is 1; give at least 2"):
        ChaosSettings(engines=1)
    with pytest.raises(ConfigError, match=r"--quiet is 0, --seconds 600\.0; give more than 0"):
        ChaosSettings(quiet_seconds=0)
