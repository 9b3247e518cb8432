"""`paceline bench journal` measures two engines on a real Redis and leaves nothing in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.journal import JournalBenchSettings, Records, journal, measure_away
from paceline.errors import ConfigError
from redis_server import RedisServer

pytestmark = pytest.mark.redis


def test_every_figure_is_measured(redis_server: RedisServer, tmp_path: Path) -> None:
    """Each record's lag is noted, a start reads everything back, and no key remains."""
    file, report = tmp_path / "text.npy", tmp_path / "report.json"
    rng = np.random.default_rng(0)
    np.save(file, rng.integers(0, 49_152, 250_000).astype(np.int32))
    arguments = ["--tokens", str(file), "--redis", redis_server.url, "--sizes", "2e5"]
    done = CliRunner().invoke(
        journal,
        [*arguments, "--rate", "4000", "--seconds", "1", "--json", str(report)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    assert figures["lag.records"] == 20
    assert 0 < figures["lag.p50_ms"] <= figures["lag.p99_ms"] <= figures["lag.max_ms"]
    assert figures["200000.start_tokens"] == 200_000
    assert figures["200000.start_first_drafts_s"] <= figures["200000.start_whole_s"]
    assert (
        1 < figures["200000.accounted_bytes_per_token"] <= figures["200000.redis_bytes_per_token"]
    )
    assert all(value >= 0 for value in figures.values())
    with redis_server.client() as client:
        assert client.keys("paceline:2:{*") == []


def test_a_redis_that_is_away_drops_the_oldest() -> None:
    """With nobody listening every call returns, and what the queue cannot hold is dropped."""
    calls, dropped = measure_away(np.arange(5000, dtype=np.int32), JournalBenchSettings())
    assert (len(calls), dropped) == (1000, 1000 - 64)


def test_records_are_the_text_in_order() -> None:
    """Consecutive stretches without borders, each under an id of its own."""
    settings = JournalBenchSettings(output_tokens=2, prompt_tokens=1)
    records = Records(np.array([1, 2, -1, 3, 4, 5, 6, 7], np.int32), settings, "o")
    got = [records.next() for _ in range(3)]
    assert [r.token_ids.tolist() for r in got] == [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
    assert len({r.request_id for r in got}) == 3


def test_bad_options_are_named() -> None:
    """No text, no rate, or sizes of nothing are refused with the fix."""
    for arguments, reason in (
        ([], "give the text"),
        (["--tokens", "x", "--rate", "0"], "more than 0"),
        (["--sizes", "10"], "at least 10000"),
        (["--sizes", "many"], "numbers with commas"),
    ):
        with pytest.raises(ConfigError, match=reason):
            CliRunner().invoke(journal, arguments, catch_exceptions=False)
