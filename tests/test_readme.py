"""README.md is true: its snippets run, its tables come from measured files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from paceline.benchmarks.tables import table
from paceline.middleware.cli import cli
from paceline.middleware.config import load_config
from paceline.policies.tenants import parse_policy
from serving import Serving

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/capture.md",
    "docs/corpus.md",
    "docs/drafter.md",
    "docs/journal.md",
    "docs/replay.md",
    "docs/workloads.md",
)
DEFAULT_URL = "http://127.0.0.1:8080/v1"


def snippets(language: str) -> list[str]:
    """Fenced blocks of one language, README's first."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Arguments of every shell line that starts with `program`."""
    lines = [line for block in snippets("sh") for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == program]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """What `make serve` leaves the reader with."""
    with Serving(tmp_path_factory.mktemp("readme")) as running:
        yield running


@pytest.mark.model
def test_python_snippets_run(serving: Serving) -> None:
    """Pasted as they are, with this server's address, they print replies."""
    assert DEFAULT_URL.removesuffix("/v1") in (ROOT / "README.md").read_text(encoding="utf-8")
    found = snippets("python")
    assert found
    for code in found:
        assert DEFAULT_URL in code
        done = subprocess.run(
            [sys.executable, "-c", code.replace(DEFAULT_URL, serving.base_url)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_the_readme_opens_with_two_commands() -> None:
    """`make serve` and `make test` come first, and both are recipes of the Makefile."""
    first = snippets("sh")[0]
    assert [line.split("#")[0].split() for line in first.splitlines()] == [
        ["make", "serve"],
        ["make", "test"],
    ]
    for target in commands("make"):
        subprocess.run(["make", "-n", *target], cwd=ROOT, check=True, capture_output=True)  # noqa: S607


def test_paceline_commands_parse() -> None:
    """Every command line shown names commands and options that exist."""
    shown = commands("paceline")
    assert len(shown) >= 3
    for words in shown:
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest.pop(0))
            assert found is not None, words
            command = found
        with command.make_context(command.name, rest):
            pass


def test_configuration_files_load(tmp_path: Path) -> None:
    """The shown configuration and policy are accepted together."""
    files = {}
    for block in snippets("yaml"):
        name, _, text = block.partition("\n")
        files[name.removeprefix("# ")] = text
        (tmp_path / name.removeprefix("# ")).write_text(text, encoding="utf-8")
    assert set(files) == {"proxy.yaml", "policy.yaml", "capturing.yaml", "naming.yaml"}
    assert load_config(tmp_path / "capturing.yaml").capture is not None
    assert load_config(tmp_path / "naming.yaml").workloads.redis_url
    assert len(load_config(tmp_path / "proxy.yaml").upstreams) == 2
    policy = parse_policy(files["policy.yaml"], name="policy.yaml")
    assert [tenant.name for tenant in policy.tenants] == [
        "search-team",
        "legal-team",
        "night-batch",
    ]


def test_every_setting_of_the_worker_is_described() -> None:
    """The variables named are those that are read."""
    from paceline.adapters.vllm.settings import WorkerSettings

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(PACELINE_\w+)`", text)) == set(WorkerSettings().to_env())


def test_every_setting_of_the_capture_is_described() -> None:
    """The table's settings are those that there are."""
    from paceline.middleware.config import CaptureConfig

    text = (ROOT / "docs" / "capture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(CaptureConfig.model_fields)


def test_every_setting_of_the_workloads_is_described() -> None:
    """The table's settings are those that there are."""
    from paceline.middleware.config import WorkloadsConfig

    text = (ROOT / "docs" / "workloads.md").read_text(encoding="utf-8")
    settings = set(WorkloadsConfig.model_fields)
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == settings


def test_tables_are_those_of_the_measured_files() -> None:
    """Each benchmark's table in README is what its JSON file gives."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("agent", "proxy"):
        assert table(ROOT / "docs" / "benchmarks" / f"{name}.json") in text


def test_what_the_memory_costs_is_what_was_measured() -> None:
    """The table of the index is made of its two files, rounded."""
    ours, both = (
        json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text("utf-8"))["figures"]
        for name in ("index", "index-arctic")
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    for figure, row in (
        ("insert_ns_per_token", "| {ours:.0f} ns | {us:.1f} µs | {factor:.0f} |"),
        ("resident_bytes_per_token", "| {ours:.0f} bytes | {peer:.0f} bytes | {factor:.0f} |"),
        ("start_ms", "| {ours:.1f} ms | {peer:.0f} ms | {factor:.0f} |"),
        ("batch_256_ms", "| {ours:.2f} ms | {peer:.1f} ms | {factor:.0f} |"),
    ):
        peer = both[f"10000000.arctic.{figure}"]
        values = {
            "ours": ours[f"10000000.paceline.{figure}"],
            "peer": peer,
            "us": peer / 1000,
            "factor": both[f"10000000.arctic_over_paceline.{figure}"],
        }
        assert row.format(**values) in text, figure
    for kind in ("unseen", "held"):
        mean, p99 = f"propose_{kind}_us_mean", f"propose_{kind}_us_p99"
        for figures, who in ((ours, "paceline"), (both, "arctic")):
            pair = (figures[f"10000000.{who}.{figure}"] for figure in (mean, p99))
            assert " and ".join(f"{value:.1f}" for value in pair) + " µs" in text


def test_links_lead_somewhere() -> None:
    """Relative links of the pages name files that exist."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text("utf-8")):
            assert (ROOT / page).parent.joinpath(target).exists(), target
