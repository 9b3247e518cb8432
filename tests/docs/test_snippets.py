"""Every block of every page is what it says: commands parse, files load, Python imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from paceline.middleware.config import load_config
from snippets import (
    ROOT,
    SHELLS,
    Snippet,
    check_paceline,
    check_python,
    check_yaml,
    command_lines,
    snippets,
)

SHELL_SNIPPETS = snippets(*SHELLS)


@pytest.mark.parametrize("snippet", SHELL_SNIPPETS, ids=str)
def test_commands_parse(snippet: Snippet) -> None:
    """`paceline` takes its arguments, `make` its targets, and files of ours are there."""
    for words in command_lines(snippet.text):
        program, *arguments = words
        if program == "paceline":
            check_paceline(words)
        elif program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)  # noqa: S607
        for word in arguments:
            if word.startswith("deploy/"):
                assert list(ROOT.glob(word)), f"{word} does not exist"


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=str)
def test_yaml_is_what_is_read(snippet: Snippet) -> None:
    """Policies and configurations are right; other YAML is YAML."""
    check_yaml(snippet.text)


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_python_compiles_and_imports(snippet: Snippet) -> None:
    """What it imports exists here, as far as it is installed here."""
    check_python(snippet.text)


@pytest.mark.parametrize("snippet", snippets("json"), ids=str)
def test_json_is_json(snippet: Snippet) -> None:
    """One value, or one a line."""
    try:
        json.loads(snippet.text)
    except json.JSONDecodeError:
        for line in snippet.text.splitlines():
            json.loads(line)


def test_python_without_a_server_runs() -> None:
    """The page about bandits shows code that needs nothing but Paceline."""
    (code,) = [each.text for each in snippets("python") if each.page == "docs/bandits.md"]
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


RUN = ("policy check", "policy explain", "policy schema", "keys new")
"""Commands of pages that need nothing but the files which the same page shows."""


@pytest.mark.parametrize("page", ["README.md", "docs/policy.md", "docs/quickstart.md"])
def test_commands_run_on_the_files_of_their_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that look at a policy or make a key; the policy is the one shown there."""
    monkeypatch.chdir(tmp_path)
    texts = [each.text for each in snippets("yaml") if each.page == page]
    (policy,) = [text for text in texts if "tenants:" in text]
    Path("policy.yaml").write_text(policy, encoding="utf-8")
    for text in texts:
        name = text.partition("\n")[0].removeprefix("# ")
        if name.endswith(".yaml"):
            Path(name).write_text(text, encoding="utf-8")
    lines = [
        words for each in SHELL_SNIPPETS if each.page == page for words in command_lines(each.text)
    ]
    run = [words[1:] for words in lines if " ".join(words[1:3]) in RUN]
    if Path("proxy.yaml").exists():
        load_config(Path("proxy.yaml"))
    for arguments in run:
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        assert done.output.strip()
    assert run or page == "README.md"


def test_pages_of_ours_show_all_three_kinds() -> None:
    """Policies, the proxy's and the learner's files are recognised, not only parsed."""
    kinds = [check_yaml(snippet.text) for snippet in snippets("yaml")]
    assert {"policy", "proxy", "learner"} <= set(kinds)
    assert kinds.count("policy") >= 5
    assert (
        sum(words[0] == "paceline" for s in SHELL_SNIPPETS for words in command_lines(s.text)) > 40
    )


@pytest.mark.parametrize(
    "line",
    [
        "paceline polcy check policy.yaml",
        "paceline policy chekc policy.yaml",
        "paceline proxy --konfig proxy.yaml",
        "paceline vllm Qwen/Qwen3-8B --gpu-memory-utilisation 0.9",
    ],
)
def test_wrong_commands_are_seen(line: str) -> None:
    """The checks above can fail."""
    (words,) = command_lines(line)
    with pytest.raises(click.UsageError):
        check_paceline(words)


@pytest.mark.parametrize(
    "text",
    [
        "tenants: [{name: a, keys: [secret]}]",
        "upstreams: [{name: a, url: ftp://here}]",
        "cycle: {batch: 0}",
    ],
)
def test_wrong_files_are_seen(text: str) -> None:
    """Those of YAML too."""
    with pytest.raises((ConfigError, ValueError)):
        check_yaml(text)


@pytest.mark.parametrize("snippet", SHELL_SNIPPETS, ids=str)
def test_shell_blocks_are_shell(snippet: Snippet, tmp_path: Path) -> None:
    """The shell itself reads them without a complaint."""
    file = tmp_path / "snippet.sh"
    file.write_text(snippet.text, encoding="utf-8")
    shell = shutil.which("bash") or "sh"
    subprocess.run([shell, "-n", str(file)], check=True, capture_output=True)
