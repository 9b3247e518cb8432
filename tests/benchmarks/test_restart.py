"""`paceline bench restart`: engines that start on a filled Redis, on a small generated trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.middleware.cli import cli
from redis_server import RedisServer
from small_traces import generated_rows, save_tokenizer, write_rows

pytestmark = pytest.mark.redis


def test_an_engine_that_read_everything_drafts_as_one_that_saw_it(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """It knows what was said before, and as many other tokens; without the journal it does not."""
    file = write_rows(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=6, seed=0))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    np.save(tmp_path / "other.npy", np.arange(5000, dtype=np.int32) % 997)
    report = tmp_path / "report.json"
    command = ["bench", "restart", str(file), "--tokenizer", str(tokenizer)]
    command += ["--tokens", str(tmp_path / "other.npy"), "--size", "20000", "--moments", "3"]
    command += ["--state", str(tmp_path / "state"), "--redis", redis_server.url]
    done = CliRunner().invoke(cli, [*command, "--json", str(report)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    assert figures["stored_tokens"] > 20_000
    assert figures["after_3s/read_tokens"] == pytest.approx(figures["stored_tokens"], rel=0.05)
    assert figures["cold/of_kept"] < figures["after_3s/of_kept"]
    assert figures["after_3s/of_kept"] > 0.95


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--moments", "soon"], "--moments is 'soon'; give seconds with commas"),
        (["--moments", "0"], "give more than 0 seconds each"),
        (["--size", "0"], "--size is 0; give at least 1 token"),
        (["--tokens", "few.npy"], "--tokens holds 9 tokens; give at least 500"),
    ],
)
def test_what_cannot_be_measured_is_named(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value, the limit and what to give."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=2, seed=0))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    np.save("other.npy", np.arange(1000, dtype=np.int32))
    np.save("few.npy", np.arange(9, dtype=np.int32))
    command = ["bench", "restart", "tau-bench.jsonl.gz", "--tokens", "other.npy"]
    command += ["--tokenizer", str(tokenizer), "--state", "state"]
    done = CliRunner().invoke(cli, [*command, *options])
    assert done.exit_code != 0
    assert says in done.output + str(done.exception)
