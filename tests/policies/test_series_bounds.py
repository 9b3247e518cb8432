"""However many names clients invent, a metric has so many series."""

from __future__ import annotations

from paceline.policies.series_bounds import OTHER, SeriesBounds


def test_names_beyond_the_bounds_share_one_series() -> None:
    """The first ones keep their own; one tenant's many workloads take none from another's."""
    bounds = SeriesBounds(max_tenants=2, max_workloads=3)
    first = [bounds.labels("a", f"w{number}") for number in range(10)]
    assert first == [*(("a", f"w{number}") for number in range(3)), *[("a", OTHER)] * 7]
    assert bounds.labels("b", "v") == ("b", "v")
    assert bounds.labels("c", "v") == (OTHER, OTHER)
    assert bounds.labels("a", "w1") == ("a", "w1")
    told = {bounds.labels(f"t{n}", f"w{m}") for n in range(200) for m in range(50)}
    assert told == {(OTHER, OTHER)}
