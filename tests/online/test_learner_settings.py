"""Settings of the learner: read from a file, refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from paceline.errors import ConfigError
from paceline.online.learner_settings import (
    CycleSettings,
    JudgingSettings,
    LearnerSettings,
    LoadSettings,
    MetricsSettings,
    TeacherSettings,
    checked,
    read_settings,
)

LEAST = {
    "redis_url": "redis://r",
    "registry": "drafters",
    "data": "data",
    "model": "m",
    "target": "t",
    "load": {"load_average": True},
}


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    """And so does a target that lies there; a name stays a name."""
    (tmp_path / "t").mkdir()
    file = tmp_path / "learner.yaml"
    file.write_text(
        "redis_url: redis://r\nregistry: drafters\ndata: /data\nmodel: m\ntarget: t\n"
        "drafter: first\nload: {engines: ['http://e:1']}\ncycle: {epochs: 2}\n"
        "teacher: {kind: served, url: 'http://e:1'}\nidle: {high: 0.4}\n"
    )
    found = read_settings(file)
    assert found.registry == str(tmp_path / "drafters")
    assert found.data == "/data"
    assert found.drafter == str(tmp_path / "first")
    assert found.target == str(tmp_path / "t")
    assert (found.cycle.epochs, found.idle.high, found.load.engines) == (2, 0.4, ("http://e:1",))
    file.write_text(file.read_text().replace("target: t", "target: smollm2"))
    assert read_settings(file).target == "smollm2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": {}}, "tells whether there is time"),
        ({"cycle": {"epoch": 1}}, "cycle.epoch is no setting; cycle knows .*epochs"),
        ({"gate": {"min_session": 1}}, "gate.min_session is no setting"),
        ({"replays": {}}, "replays is no setting"),
        ({"teacher": {"kind": "served"}}, "give teacher.url"),
        ({"cycle": {"learning_rate": 2}}, "learning_rate is 2"),
        ({"cycle": {"error_emphasis": 0.5}}, "error_emphasis 0.5"),
        ({"cycle": {"objective": "best"}}, "objective"),
        ({"cycle": {"passages": 0}}, "cycle.passages is 0; give 1 or more"),
        ({"idle": {"low": 0.5}}, "low is 0.5"),
        ({"keep_versions": 0}, "keep_versions is 0"),
        ({"model": 3}, "model"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], message: str) -> None:
    """With its place, and what there is."""
    checked(dict(LEAST))
    with pytest.raises(ConfigError, match=message):
        checked(LEAST | change)


def test_a_file_that_holds_no_settings_is_named(tmp_path: Path) -> None:
    """Missing, not YAML, or a list."""
    file = tmp_path / "learner.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(file)
    for text in ("a: [", "- a"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"holds no settings|cannot be read"):
            read_settings(file)


def test_the_page_shows_settings_that_load(tmp_path: Path) -> None:
    """And its table names every block and setting of the learner's own."""
    page = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n# learner.yaml\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "learner.yaml"
    file.write_text(shown)
    assert read_settings(file).teacher.kind == "served"
    table = page[page.index("### Settings") : page.index("### Metrics")]
    named = set(re.findall(r"`(\w+)`", table))
    own = (TeacherSettings, LoadSettings, CycleSettings, JudgingSettings, MetricsSettings)
    for block in (LearnerSettings, *own):
        assert {field.name for field in msgspec.structs.fields(block)} <= named, block
