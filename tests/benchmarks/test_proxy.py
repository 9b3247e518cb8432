"""`paceline bench proxy` runs and reports its targets' figures."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from paceline.benchmarks.proxy import ProxyBenchSettings, run_proxy_bench
from paceline.middleware.cli import cli


def test_a_small_run_measures_every_figure() -> None:
    """All ways are measured; nothing is timed here, only counted."""
    settings = ProxyBenchSettings(
        rounds=1,
        requests=20,
        concurrent_requests=16,
        concurrency=4,
        streams=1,
        chunks=10,
        capture=True,
    )
    report = json.loads(run_proxy_bench(settings).as_json())
    assert report["bench"] == "proxy"
    assert report["settings"]["requests"] == 20
    assert report["figures"]["proxied_p50_ms"] > report["figures"]["direct_p50_ms"] > 0
    for way in ("bare", "proxied", "captured"):
        assert f"{way}_cpu_us_per_chunk" in report["figures"]
        assert f"{way}_cpu_ms_per_request" in report["figures"]


def test_a_wrong_number_of_rounds_is_refused(tmp_path: Path) -> None:
    """Nothing is started and nothing is written."""
    target = tmp_path / "out.json"
    done = CliRunner().invoke(cli, ["bench", "proxy", "--rounds", "0", "--json", str(target)])
    assert done.exit_code == 1
    assert "--rounds is 0" in done.output
    assert not target.exists()
