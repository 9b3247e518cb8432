"""`paceline bench fleet`: engines that share a Redis, on a small generated trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.fleet import PLANS, Fleet, Plan
from paceline.middleware.cli import cli
from redis_server import RedisServer
from small_traces import generated_rows, save_tokenizer, write_rows

pytestmark = pytest.mark.redis

TEXT = np.arange(100, 164, dtype=np.int32)


def test_a_request_at_one_engine_is_drafted_at_the_next(redis_server: RedisServer) -> None:
    """Turn by turn, and after a restart, drafts come from what another engine served."""
    fleet = Fleet(redis_server.url, Plan("turns", num_engines=2, by_request=True))
    try:
        for number in range(4):
            fleet.start(number, f"session-{number}", "scope", TEXT[:8])
            drafted = list(fleet.propose(number, 4).token_ids)
            assert drafted == ([] if number == 0 else TEXT[8 : 8 + len(drafted)].tolist())
            assert bool(drafted) == (number > 0)
            fleet.commit(number, TEXT[8:].tolist())
            fleet.finish(number)
            if number == 2:
                fleet.restart()
    finally:
        fleet.close()


def test_every_plan_is_reported(redis_server: RedisServer, tmp_path: Path) -> None:
    """Figures of each plan, and what they are of one engine's, which drafts at all."""
    file = write_rows(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=4, seed=0))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    report = tmp_path / "report.json"
    command = ["bench", "fleet", str(file), "--tokenizer", str(tokenizer)]
    command += ["--state", str(tmp_path / "state"), "--redis", redis_server.url]
    done = CliRunner().invoke(cli, [*command, "--json", str(report)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    assert figures["tau-bench/one/tokens_per_step"] > 1.5
    for plan in PLANS[1:]:
        alone = figures["tau-bench/one/tokens_per_step"]
        ratio = figures[f"tau-bench/{plan.name}/tokens_per_step"] / alone
        assert figures[f"tau-bench/{plan.name}/tokens_per_step_of_one"] == pytest.approx(ratio)
