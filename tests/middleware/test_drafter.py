"""`paceline drafter`: the work is done by a process of its own, whose end is the command's."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from paceline.drafter_folder import read_record
from paceline.middleware.cli import cli
from serving import Serving
from small_chats import write_prompts, write_target
from waiting import wait_until

PACELINE = [sys.executable, "-m", "paceline.middleware.cli", "drafter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small target and prompts."""
    folder = tmp_path_factory.mktemp("drafter")
    write_target(folder / "target", num_hidden_layers=4)
    write_prompts(folder / "prompts.jsonl", 40)
    return folder


def paceline(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PACELINE, *map(str, words)], capture_output=True, text=True, check=False
    )


def distil_words(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "distil",
        str(folder / "drafter"),
        *("--target", str(folder / "target"), "--prompts", str(folder / "prompts.jsonl")),
        *("--out", str(out), "--num-prompts", "8", "--reply-tokens", "8", "--num-readings", "8"),
        *("--held-out-prompts", "4", "--threads", "1", *more),
    ]


@pytest.fixture(scope="module")
def drafter(folder: Path) -> Path:
    """Cut by the command."""
    done = paceline("init", folder / "target", folder / "drafter", "--layers", "0,3")
    assert done.returncode == 0, done.stderr
    assert "layers 0, 3 of target, 97 tokens" in done.stderr
    return folder / "drafter"


def test_a_cut_drafter_is_trained(folder: Path, drafter: Path, tmp_path: Path) -> None:
    """Both commands end well, say what came of it, and leave a folder with its record."""
    done = paceline(*distil_words(folder, tmp_path / "out", "--steps", "5"))
    assert done.returncode == 0, done.stderr
    assert "5 steps on" in done.stderr
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.distilled is not None
    assert record.layers == (0, 3)
    assert f"before {record.distilled.before.agreement:6.1%}" in done.stderr
    assert f"after  {record.distilled.after.agreement:6.1%}" in done.stderr
    assert drafter.is_dir()


def test_a_mistake_ends_in_one_line(folder: Path, drafter: Path) -> None:
    """What the process refuses is the command's error, without a traceback."""
    done = paceline("init", folder / "target", drafter)
    assert done.returncode == 1
    assert "exists; give a folder that does not" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """By the command itself, which does not know torch."""
    words = ["drafter", "init", str(tmp_path / "target"), str(tmp_path / "out")]
    for more, message in (
        (["--layers", "0,x"], "--layers is '0,x'; give numbers with commas"),
        (["--layers", "0", "--num-layers", "1"], "both --layers and --num-layers"),
        (["--num-layers", "0"], "--num-layers is 0; give 1 or more"),
        (["--head-tokens", "100"], "give --token-counts FILE"),
    ):
        done = CliRunner().invoke(cli, [*words, *more])
        assert done.exit_code == 1
        assert message in done.output


def test_a_stopped_training_goes_on(folder: Path, drafter: Path, tmp_path: Path) -> None:
    """SIGTERM leaves a checkpoint and no folder; the same command goes on from there."""
    out, checkpoint = tmp_path / "out", tmp_path / "out.work" / "checkpoint.pt"
    assert drafter.is_dir()
    command = [*PACELINE, *distil_words(folder, out, "--steps", "100000")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(checkpoint.exists, seconds=120)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "the same command goes on from here" in said
    assert checkpoint.exists()
    assert not out.exists()
    again = paceline(*distil_words(folder, out, "--steps", "5"))
    assert again.returncode == 1
    assert "was begun with other settings: steps 100000, now 5" in again.stderr


def test_a_missing_library_is_named() -> None:
    """With what to install, as one line."""
    from paceline.online.__main__ import missing

    error = ImportError("No module named 'transformers'", name="transformers")
    assert missing(error) == (
        "transformers is not installed; making drafters needs: pip install 'paceline[learn]'"
    )


@pytest.mark.model
def test_a_drafter_of_the_packaged_model_drafts(tmp_path: Path) -> None:
    """Cut from smollm2 with a trimmed head, it drafts beside memory that holds nothing yet."""
    text = tmp_path / "text.md"
    text.write_text("The riders share the work at the front of the bunch. " * 9, encoding="utf-8")
    cut = paceline(
        *("init", "smollm2", tmp_path / "drafter", "--num-layers", "30"),
        *("--head-tokens", "64", "--token-counts", text),
    )
    assert cut.returncode == 0, cut.stderr
    record = read_record(tmp_path / "drafter")
    assert record is not None
    assert 10 < len(record.kept_token_ids) < 64
    asked = [{"role": "user", "content": "Who shares the work?"}]
    with (
        Serving(tmp_path / "serve", "--drafter", str(tmp_path / "drafter")) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key="local", max_retries=0) as client,
    ):
        reply = client.chat.completions.create(
            model="smollm2", messages=asked, max_tokens=24, temperature=0
        )
        assert reply.choices[0].message.content
        assert serving.engine_metric("draft_tokens") > 0
        assert serving.engine_metric("accepted_tokens") > 0
