"""What the dashboard makes of what engines and the proxy show."""

from __future__ import annotations

import pytest

from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from paceline.middleware.dashboard.samples import Samples, ScrapeError
from paceline.middleware.dashboard.standing import quantile, replica_row, tenant_rows
from paceline.middleware.dashboard.totals import HISTORY_SECONDS, History, Totals
from paceline.middleware.dashboard_starting import dashboard_settings

ENGINE = """
# TYPE paceline_served_requests_total counter
paceline_served_requests_total{tenant="a",workload="sql"} 3
paceline_served_requests_total{tenant="b",workload=""} 1
# TYPE paceline_served_tokens_total counter
paceline_served_tokens_total{tenant="a",workload="sql"} 300
paceline_served_tokens_total{tenant="b",workload=""} 400
# TYPE paceline_served_rounds_total counter
paceline_served_rounds_total{tenant="a",workload="sql"} 100
paceline_served_rounds_total{tenant="b",workload=""} 399
# TYPE paceline_served_saved_rounds_total counter
paceline_served_saved_rounds_total{tenant="a",workload="sql"} 197
# TYPE paceline_served_round_seconds_total counter
paceline_served_round_seconds_total{tenant="a",workload="sql"} 2.0
# TYPE paceline_served_undrafted_seconds_total counter
paceline_served_undrafted_seconds_total{tenant="a",workload="sql"} 5.0
# TYPE paceline_served_drafted_tokens_total counter
paceline_served_drafted_tokens_total{tenant="a",workload="sql",source="session"} 250
paceline_served_drafted_tokens_total{tenant="a",workload="sql",source="model"} 4
# TYPE paceline_served_accepted_tokens_total counter
paceline_served_accepted_tokens_total{tenant="a",workload="sql",source="session"} 196
paceline_served_accepted_tokens_total{tenant="a",workload="sql",source="model"} 1
"""
PROXY = """
# TYPE paceline_proxy_upstream_healthy gauge
paceline_proxy_upstream_healthy{upstream="gpu-0"} 1
paceline_proxy_upstream_healthy{upstream="gpu-1"} 0
# TYPE paceline_proxy_first_token_seconds histogram
paceline_proxy_first_token_seconds_bucket{tenant="a",workload="sql",le="0.1"} 2
paceline_proxy_first_token_seconds_bucket{tenant="a",workload="sql",le="0.5"} 6
paceline_proxy_first_token_seconds_bucket{tenant="a",workload="sql",le="+Inf"} 8
# TYPE paceline_proxy_upstream_first_byte_seconds histogram
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="0",le="0.1"} 0
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="0",le="0.5"} 4
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="0",le="+Inf"} 4
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="1",le="0.1"} 2
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="1",le="0.5"} 2
paceline_proxy_upstream_first_byte_seconds_bucket{upstream="gpu-0",worker="1",le="+Inf"} 2
"""
PLAIN_VLLM = """
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="m"} 1200
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="m"} 2
"""


def test_totals_are_over_tenants() -> None:
    """Ratios follow from sums; a source that has drafted next to nothing has no acceptance."""
    totals = Totals.of(Samples.parse(ENGINE))
    assert (totals.tokens, totals.rounds, totals.saved) == (700, 499, 197)
    assert totals.speedup == 2.5
    assert totals.tokens_per_step == pytest.approx((499 + 197) / 499)
    assert totals.acceptance == pytest.approx(197 / 254)
    assert totals.acceptance_of("session") == pytest.approx(196 / 250)
    assert totals.acceptance_of("model") is totals.acceptance_of("corpus") is None
    assert Totals().speedup is Totals().acceptance is Totals().tokens_per_step is None


def test_an_engine_that_begins_anew_or_comes_makes_no_step() -> None:
    """What it had said before it was first seen, or loses with a restart, is not a rate."""
    history = History()
    history.look(0.0, [("a", Totals(tokens=1_000_000))])
    history.look(10.0, [("a", Totals(tokens=1_000_100)), ("b", Totals(tokens=9_000_000))])
    history.look(20.0, [("a", Totals(tokens=50)), ("b", Totals(tokens=9_000_030))])
    history.look(30.0, [("b", Totals(tokens=9_000_030))])
    assert [point.tokens_per_second for point in history.points()] == [10.0, 8.0, 0.0]
    assert history.over(HISTORY_SECONDS) == (30.0, Totals(tokens=180.0))
    assert history.over(15.0)[1].tokens == 0.0


def test_what_is_long_ago_is_forgotten() -> None:
    """Points reach back a quarter of an hour, a ratio over a minute."""
    history = History()
    for number in range(200):
        saved, rounds = (0, 10 * number) if number < 190 else (30 * (number - 189), 10 * number)
        history.look(10.0 * number, [("a", Totals(tokens=1, rounds=rounds, saved=saved))])
    points = history.points()
    assert len(points) == 90
    assert points[0].at == 1100.0
    assert points[50].window.tokens_per_step == 1.0
    assert points[-1].window.tokens_per_step == 4.0


def test_tenants_have_what_engines_and_the_proxy_say_of_them() -> None:
    """Those with most tokens first; medians from the histogram, within its bucket."""
    first, second = tenant_rows(Samples.parse(ENGINE), Samples.parse(PROXY))
    assert (first.tenant, second.tenant, second.workload) == ("b", "a", "sql")
    assert first.first_token_seconds is first.totals.speedup is None
    assert second.totals.speedup == 2.5
    assert second.first_token_seconds == pytest.approx(0.3)
    assert quantile(Samples.parse(PROXY), "paceline_proxy_first_token_seconds", 0.99) == 0.5
    assert quantile(Samples(), "paceline_proxy_first_token_seconds") is None


def test_a_replica_without_our_worker_shows_what_vllm_does() -> None:
    """Its load and tokens, no memory; one that does not answer says why."""
    proxy = Samples.parse(PROXY)
    row = replica_row("gpu-0", Samples.parse(PLAIN_VLLM), "", proxy)
    assert (row.running, row.waiting, row.tokens, row.is_healthy) == (3, 2, 1200, True)
    assert row.is_sharing is row.version is None
    assert row.first_byte_seconds == pytest.approx(0.2)  # over both workers
    away = replica_row("gpu-1", None, "refused", proxy)
    assert (away.is_healthy, away.problem) == (False, "refused")
    assert away.first_byte_seconds is None
    assert replica_row("gpu-2", None, "", proxy).is_healthy is None
    with pytest.raises(ScrapeError, match="cannot be read"):
        Samples.parse("<html>no metrics {</html>")


def test_a_dashboard_listens_on_this_machine_only() -> None:
    """It asks nobody who they are: another address, or none, is refused with what to write."""
    upstreams = [
        {"name": "gpu-0", "url": "http://a:1", "decisions_url": "http://a:2"},
        {"name": "gpu-1", "url": "http://b:1"},
    ]
    config = make_config(
        upstreams=upstreams,
        dashboard={"url": "http://127.0.0.1:8090"},
        limits={"redis_url": "redis://shared"},
    )
    told = dashboard_settings(config, proxy_url="http://127.0.0.1:8080")
    assert told.port == 8090
    assert told.redis_url == "redis://shared"
    assert [each.urls for each in told.engines] == [("http://a:1", "http://a:2"), ("http://b:1",)]
    for dashboard in (None, {"url": "http://10.0.0.1:8090"}, {"url": "http://127.0.0.1"}):
        wrong = make_config(upstreams=upstreams, dashboard=dashboard)
        with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:PORT"):
            dashboard_settings(wrong, proxy_url="http://127.0.0.1:8080")
