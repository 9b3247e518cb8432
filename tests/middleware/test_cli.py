"""The `paceline` command: readable help, errors in one line, a doctor that knows what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paceline import __version__
from paceline.adapters.vllm import launch
from paceline.adapters.vllm.launch import InstalledVllm
from paceline.middleware.cli import cli
from paceline.policies.tenants import hash_key
from redis_server import RedisServer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ([], ["serve", "proxy", "vllm", "doctor", "keys", "corpus", "drafter", "bench"]),
        (["serve"], ["--port", "--policy", "Ctrl-C"]),
        (["proxy"], ["--config"]),
        (["vllm"], ["MODEL", "--redis", "--draft-tokens", "vllm serve"]),
        (["doctor"], ["--redis", "--config"]),
        (["keys", "new"], ["policy file"]),
        (["corpus"], ["add", "list", "remove"]),
        (["corpus", "add"], ["SOURCES", "--tenant", "--group", "PACELINE_CORPUS_DIR"]),
        (["drafter"], ["init", "distil"]),
        (["drafter", "init"], ["TARGET", "OUT", "--layers", "--head-tokens", "--token-counts"]),
        (["drafter", "distil"], ["DRAFTER", "--target", "--prompts", "--out", "--minutes"]),
        (["bench"], ["agent", "drafter", "engine", "index", "proxy", "replay"]),
        (["bench", "agent"], ["--traces", "--json"]),
        (["bench", "replay"], ["TRACES", "--plot", "--json"]),
    ],
)
def test_help_can_be_read(command: list[str], expected: list[str]) -> None:
    """Every command explains itself."""
    done = run(*command, "--help")
    assert done.exit_code == 0
    for words in expected:
        assert words in " ".join(done.output.split())


def test_help_is_quick_to_load() -> None:
    """The command's help imports neither torch nor transformers nor vllm nor the proxy."""
    code = (
        "import sys; from paceline.middleware.cli import cli;"
        "cli(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'transformers', 'vllm', 'aiohttp', 'uvicorn'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_packages() -> None:
    """`--version` names it."""
    assert __version__ in run("--version").output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("upstreams: [", "is not YAML"),
        ("upstreams: []", "upstreams"),
        ("upstreams: [{name: a, url: ftp://x}]", "ftp://x"),
        ("upstreams: [{name: a, url: 'http://h:1'}]\nlisten: {host: 0.0.0.0}", "policy_file"),
        ("upstreams: [{name: a, url: 'http://h:1'}]\npolicy_file: none.yaml", "none.yaml"),
        ("upstreams: [{name: a, url: 'http://h:1'}]\nport: 3", "port"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, content: str | None, message: str
) -> None:
    """The error names the value and the rule; no traceback."""
    file = tmp_path / "proxy.yaml"
    if content is not None:
        file.write_text(content)
    done = run("proxy", "--config", str(file))
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--max-draft-tokens", "0"), "max_draft_tokens is 0; give at least 1"),
        (("--max-branches", "20"), "max_branches is 20; give 1 (chains) to 16"),
        (("--min-probability", "1.5"), "min_probability is 1.5; give a number above 0, at most 1"),
    ],
)
def test_serving_refuses_drafts_out_of_range(option: tuple[str, str], message: str) -> None:
    """Before anything is started; the value, the limit and the fix are named."""
    done = run("serve", *option)
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_vllm_outside_the_tested_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives the tested range; nothing is started."""
    monkeypatch.setattr(launch, "find_vllm", lambda: InstalledVllm("0.33.0", "gpu"))
    done = run("vllm", "some/model")
    assert done.exit_code == 1
    assert "0.26 to 0.32" in done.output


def test_vllm_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(launch, "find_vllm", lambda: None)
    done = run("vllm", "some/model")
    assert done.exit_code == 1
    assert "pip install vllm" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speculative-config", "{}"], "--speculative-config is set by Paceline"),
        (["--worker-cls=x.Y"], "--worker-cls is set by Paceline"),
        (["--draft-tokens", "0"], "give a number from 1 to 128"),
    ],
)
def test_vllm_arguments_that_are_ours_are_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """What Paceline sets cannot be set twice."""
    monkeypatch.setattr(launch, "find_vllm", lambda: InstalledVllm("0.32.0", "gpu"))
    done = run("vllm", "some/model", *arguments)
    assert done.exit_code == 1
    assert message in done.output


def test_a_new_key_matches_its_hash() -> None:
    """The printed hash is the one that the policy file wants for the printed key."""
    lines = dict(line.split() for line in run("keys", "new").output.splitlines())
    assert lines["hash:"] == hash_key(lines["key:"])
    assert run("keys", "new").output.split()[1] != lines["key:"]


def test_the_doctor_reports_on_a_healthy_machine(redis_server: RedisServer, tmp_path: Path) -> None:
    """Everything that is there is listed; the exit code says that nothing failed."""
    config = tmp_path / "proxy.yaml"
    config.write_text("upstreams: [{name: a, url: 'http://127.0.0.1:8000'}]")
    done = run("doctor", "--redis", redis_server.url, "--config", str(config))
    assert done.exit_code == 0, done.output
    for subject in ("Python", "torch", "vLLM", "GPU", "packaged model", "Redis", "configuration"):
        assert subject in done.output
    assert "fail" not in done.output


def test_the_doctor_says_what_to_do(tmp_path: Path) -> None:
    """A Redis that does not answer and a wrong configuration fail, each with its remedy."""
    config = tmp_path / "proxy.yaml"
    config.write_text("upstreams: []")
    url = "redis://user:secret@127.0.0.1:1"
    done = run("doctor", "--redis", url, "--config", str(config))
    assert done.exit_code == 1
    assert done.output.count("fail ") == 2
    assert "check address" in done.output
    assert "upstreams" in done.output
    assert "secret" not in done.output


def test_versions_of_a_drafter_need_one_to_start_with() -> None:
    """Following a registry without a drafter is refused, with what to add."""
    done = run("vllm", "some/model", "--drafter-registry", "/drafters")
    assert done.exit_code != 0
    assert "--drafter FOLDER" in done.output
