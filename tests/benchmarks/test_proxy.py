"""`paceline bench proxy` runs and reports its targets' figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.proxy.command import ProxyBenchSettings, _figures, run_proxy_bench
from paceline.benchmarks.proxy.endurance import EnduranceSettings, allow_files
from paceline.benchmarks.proxy.sections import TurnSettings, named, quantile
from paceline.benchmarks.proxy.ways import Peers, Way, divided_cores, on_cores
from paceline.errors import ConfigError
from paceline.middleware.cli import cli

SMALL = TurnSettings(
    requests=20,
    concurrent_requests=16,
    concurrency=4,
    large_requests=4,
    streams=1,
    chunks=10,
    crowd=4,
    crowd_chunks=3,
    aborts=1,
)


def test_a_small_run_measures_every_figure() -> None:
    """All ways and sections are measured, and nothing is lost; nothing is timed here."""
    settings = ProxyBenchSettings(
        rounds=1,
        turn=SMALL,
        endurance=EnduranceSettings(
            slow_streams=20, slow_chunks=2, slow_milliseconds=200, requests=640
        ),
        peers=Peers(capture=True),
    )
    cores = os.sched_getaffinity(0)
    report = json.loads(run_proxy_bench(settings).as_json())
    figures = report["figures"]
    assert report["bench"] == "proxy"
    assert report["settings"]["requests"] == 640
    assert (report["settings"]["capture"], report["settings"]["litellm"]) == (True, False)
    assert figures["proxied_p50_ms"] > figures["direct_p50_ms"] > 0
    for way in ("direct", "bare", "proxied", "captured"):
        for name in ("p50_ms", "requests_per_second", "large_requests_per_second"):
            assert figures[f"{way}_{name}"] > 0
        assert 0 < figures[f"{way}_crowd_p50_ms"] <= figures[f"{way}_crowd_p99_ms"]
    for way in ("direct", "proxied", "captured"):
        assert figures[f"{way}_abort_ms"] > 0
        assert figures[f"{way}_abort_stream_ms"] > 0
    for way in ("bare", "proxied", "captured"):
        for name in ("cpu_ms_per_request", "large_cpu_ms_per_request", "crowd_cpu_us_per_chunk"):
            assert figures[f"{way}_{name}"] > 0
        assert f"{way}_cpu_us_per_chunk" in figures
    for way in ("proxied", "captured"):
        assert figures[f"{way}_slow_streams_whole"] == 20
        assert figures[f"{way}_memory_requests"] == 640
        assert figures[f"{way}_memory_mb_4"] > 0
    assert os.sched_getaffinity(0) == cores


def test_sections_can_be_chosen() -> None:
    """Only what was asked for is measured, in the order in which it always is."""
    assert list(named(["aborts", "requests"])) == ["requests", "aborts"]
    settings = ProxyBenchSettings(rounds=1, sections=("aborts",), turn=SMALL)
    report = json.loads(run_proxy_bench(settings).as_json())
    ways = ("direct", "proxied")
    names = ("abort_ms", "abort_stream_ms")
    assert set(report["figures"]) == {f"{way}_{name}" for way in ways for name in names}


def test_figures_are_medians_of_what_differs_within_a_turn() -> None:
    """A machine that becomes slower between two turns changes neither differences nor ratios."""
    turns = [
        {
            "direct_p50_ms": speed,
            "bare_p50_ms": 2 * speed,
            "proxied_p50_ms": speed + 3,
            "bare_cpu_ms_per_request": speed,
            "proxied_cpu_ms_per_request": 2 * speed,
        }
        for speed in (1.0, 10.0, 4.0)
    ]
    figures = _figures(turns, ["direct", "bare", "proxied"])
    assert figures["direct_p50_ms"] == 4.0
    assert figures["proxied_added_p50_ms"] == 3.0
    assert figures["bare_added_p50_ms"] == 4.0
    assert figures["proxied_cpu_ms_per_request_over_bare"] == 2.0
    assert _figures([], ["direct"]) == {}
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0


def test_what_is_in_the_middle_has_a_core_of_its_own() -> None:
    """Where there is more than one; a slow peer is asked for less."""
    middle, rest = divided_cores()
    cores = os.sched_getaffinity(0)
    assert middle | rest in (cores, set())
    assert not middle & rest
    with on_cores(middle):
        assert os.sched_getaffinity(0) == (middle or cores)
    assert os.sched_getaffinity(0) == cores
    slow = Way("litellm", 1, 2, 3, divisor=20)
    assert (slow.share(400), slow.share(10)) == (20, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--rounds", "-1", "--requests", "10"], "--rounds is -1"),
        (["--requests", "-1"], "--requests is -1"),
        (["--slow-streams", "-1"], "--slow-streams is -1"),
        (["--litellm", "/nowhere/litellm"], "--litellm is /nowhere/litellm"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    """Nothing is started and nothing is written."""
    target = tmp_path / "out.json"
    done = CliRunner().invoke(cli, ["bench", "proxy", *options, "--json", str(target)])
    assert done.exit_code == 1
    assert message in done.output
    assert not target.exists()


def test_more_streams_than_a_machine_has_files_are_refused() -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match="open files"):
        allow_files(1 << 40)
