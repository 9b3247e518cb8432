"""The worker's settings travel through the environment."""

from __future__ import annotations

from dataclasses import fields

import pytest

from paceline.adapters.vllm.settings import WorkerSettings
from paceline.errors import ConfigError


def test_settings_come_back_from_the_environment() -> None:
    """What one process writes the other reads; variables that are not set keep their defaults."""
    settings = WorkerSettings(
        redis_url="redis://h:1",
        shared_capacity=7,
        min_probability=0.5,
        always_draft=True,
        drafter_registry="/drafters",
        drafter_group="team",
        bandit=True,
        replica="engine-3",
    )
    assert WorkerSettings.from_env({"HOME": "/", **settings.to_env()}) == settings
    assert WorkerSettings.from_env({}) == WorkerSettings()


def test_a_switch_is_one_or_zero() -> None:
    """Also written as Python and YAML do."""
    for text, expected in {
        "1": True,
        "true": True,
        "True": True,
        "0": False,
        "False": False,
    }.items():
        found = WorkerSettings.from_env({"PACELINE_ALWAYS_DRAFT": text})
        assert found.always_draft is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PACELINE_SHARED_CAPACITY", "many"),
        ("PACELINE_SHARED_CAPACITY", "0"),
        ("PACELINE_WARM_UP_TOKENS", "-1"),
        ("PACELINE_MIN_PROBABILITY", "1.5"),
        ("PACELINE_MIN_PROBABILITY", "0"),
        ("PACELINE_DRAFTER_TOKENS", "0"),
        ("PACELINE_DRAFTER_TOKENS", "129"),
        ("PACELINE_ALWAYS_DRAFT", "perhaps"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """The error gives variable and value."""
    with pytest.raises(ConfigError, match=name) as caught:
        WorkerSettings.from_env({name: value})
    assert value in str(caught.value)


def test_every_setting_is_documented() -> None:
    """Each field stands in the class's docstring."""
    for setting in fields(WorkerSettings):
        assert f"{setting.name}:" in (WorkerSettings.__doc__ or "")


def test_versions_of_a_drafter_need_a_redis_and_a_group() -> None:
    """Without them the settings are refused, with what to do."""
    with pytest.raises(ConfigError, match="--redis"):
        WorkerSettings(drafter_registry="/drafters")
    with pytest.raises(ConfigError, match="group"):
        WorkerSettings(drafter_group="")
