"""docs/reference is what the models and commands say today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paceline.adapters.vllm.settings import WorkerSettings
from paceline.middleware.config import ProxyConfig
from paceline.policies.rules import FIELDS
from write_reference import FOLDER, pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_page_is_up_to_date(name: str) -> None:
    """`make reference` would change nothing."""
    written = (FOLDER / name).read_text(encoding="utf-8")
    assert written == pages()[name], "run `make reference`"


def test_nothing_is_left_over() -> None:
    """Every page of the folder is written by it."""
    assert {file.name for file in FOLDER.iterdir()} == set(pages())


@pytest.mark.parametrize("name", ["policy.md", "proxy.md", "learner.md", "worker.md"])
def test_every_setting_has_a_meaning(name: str) -> None:
    """No row of a table ends empty."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", pages()[name], re.MULTILINE)
    assert rows
    assert not [setting for setting, meaning in rows if not meaning.strip()]


def test_the_pages_have_what_they_are_made_from() -> None:
    """Fields of the models, and commands with their options."""
    made = pages()
    assert all(f"| `{name}` |" in made["proxy.md"] for name in ProxyConfig.model_fields)
    assert all(f"| `{name}` |" in made["worker.md"] for name in WorkerSettings().to_env())
    assert all(f"| `{name.rpartition('.')[2]}` |" in made["policy.md"] for name in FIELDS)
    assert "## `paceline memory forget`" in made["cli.md"]
    assert "| `--drafter-registry` TEXT |" in made["cli.md"]


def test_an_older_page_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing mends what differs, and writes nothing else."""
    import write_reference

    monkeypatch.setattr(write_reference, "FOLDER", tmp_path)
    write_reference.main()
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    (tmp_path / "proxy.md").write_text("old", encoding="utf-8")
    write_reference.main()
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"proxy.md"}
    assert (tmp_path / "proxy.md").read_text(encoding="utf-8") == pages()["proxy.md"]
