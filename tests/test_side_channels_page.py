"""docs/side-channels.md shows settings and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from paceline.benchmarks.leak.command import leak
from paceline.middleware.config import ShapingConfig, load_config
from paceline.middleware.shaping import BUCKETS
from paceline.policies.rules import SIDE_CHANNEL

PAGE = Path(__file__).parents[1] / "docs" / "side-channels.md"


def test_every_setting_is_described_with_its_default() -> None:
    """The table's settings are those that there are."""
    text = PAGE.read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE))
    fields = ShapingConfig.model_fields
    assert shown == {name: str(field.default) for name, field in fields.items()}
    assert f"{', '.join(map(str, BUCKETS[:-1]))} or {BUCKETS[-1]}" in text


def test_configuration_and_policy_load(tmp_path: Path) -> None:
    """The two files shown are accepted together, and show every side channel's setting."""
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^```yaml\n# (.*?)^```$", text, re.MULTILINE | re.DOTALL):
        name, _, content = block.partition("\n")
        (tmp_path / name).write_text(content, encoding="utf-8")
    config = load_config(tmp_path / "shaping.yaml")
    assert config.shaping == ShapingConfig()
    policy = config.load_policy()
    assert policy is not None
    channels = {policy.resolved(tenant).policy.side_channel for tenant in policy.tenants}
    assert channels == set(SIDE_CHANNEL)


def test_commands_parse() -> None:
    """Each has options that exist."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^paceline bench leak (.*)$", text, re.MULTILINE)
    assert commands
    for arguments in commands:
        words = shlex.split(arguments, comments=True)
        assert isinstance(leak.make_context("leak", words), click.Context)
