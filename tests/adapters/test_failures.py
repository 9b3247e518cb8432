"""Failures in drafting are counted always and logged rarely."""

import logging

import pytest

from paceline.adapters.failures import LOG_INTERVAL_SECONDS, FailureLog


def test_every_failure_counts_and_one_a_minute_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Many failures within a minute leave one line; the next minute's first leaves another."""
    now = [0.0]
    failures = FailureLog(logging.getLogger("test"), "drafting", clock=lambda: now[0])
    for _ in range(5):
        failures.record(ValueError("broken"))
        now[0] += 1.0
    assert (failures.count, len(caplog.records)) == (5, 1)
    now[0] += LOG_INTERVAL_SECONDS
    failures.record(ValueError("broken"))
    assert (failures.count, len(caplog.records)) == (6, 2)
    assert "6 so far" in caplog.records[-1].message
