"""The page: one, which asks for the latest figures every few seconds."""

from __future__ import annotations

from typing import Any, Final

import dash
import dash_mantine_components as dmc
import flask
from dash import Input, Output, dcc

from paceline.middleware.config import is_loopback
from paceline.middleware.dashboard import panels
from paceline.middleware.dashboard.settings import PREFIX
from paceline.middleware.dashboard.watcher import Watcher

FORBIDDEN: Final = 403
CHART_HEIGHT: Final = 220
PARTS: Final = (
    *(("status", "children"), ("stats", "children"), ("updated", "children")),
    *(("tokens", "data"), ("speedup", "data"), ("acceptance", "data"), ("acceptance", "series")),
    *(("tenants", "children"), ("arms", "children"), ("tiers", "children")),
    *(("versions", "children"), ("replicas", "children")),
)
"""What is brought up to date."""
REFRESH_SECONDS: Final = 3


def make_app(watcher: Watcher) -> flask.Flask:
    """The WSGI application; it shows what `watcher` has seen."""
    app = dash.Dash(
        __name__,
        title="Paceline",
        update_title="",
        url_base_pathname=PREFIX,
        serve_locally=True,
        assets_folder="",
        include_assets_files=False,
    )
    app.layout = layout
    server = app.server
    assert isinstance(server, flask.Flask)

    @server.before_request
    def only_here() -> None:
        """Another site's name that leads to this machine must not reach it through a browser."""
        if not is_loopback(host_of(flask.request.host)):
            flask.abort(FORBIDDEN)

    @app.callback([Output(part, what) for part, what in PARTS], Input("tick", "n_intervals"))
    def refresh(_number: int | None) -> list[Any]:
        now = watcher.latest
        if now is None:
            return [dash.no_update] * len(PARTS)
        return [
            panels.status(now),
            panels.stats(now),
            panels.updated(now),
            *panels.charts(now),
            panels.tenants(now),
            panels.arms(now),
            panels.tiers(now),
            panels.versions(now),
            panels.replicas(now),
        ]

    return server


def host_of(header: str) -> str:
    """The host of a ``Host`` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def layout() -> dmc.MantineProvider:
    """The page before any figure has come."""
    return dmc.MantineProvider(
        dmc.Container(
            [
                dcc.Interval("tick", interval=1000 * REFRESH_SECONDS),
                dmc.Stack(
                    [
                        _header(),
                        dmc.SimpleGrid([], id="stats", cols={"base": 2, "sm": 3, "lg": 6}),
                        dmc.SimpleGrid(
                            [_tokens(), _speedup(), _acceptance()],
                            cols={"base": 1, "sm": 2, "lg": 3},
                        ),
                        _panel("Tenants and workloads", "tenants"),
                        dmc.SimpleGrid(
                            [
                                _panel("Arms of the bandit, over no drafts", "arms"),
                                _panel("Memory by tier", "tiers"),
                            ],
                            cols={"base": 1, "md": 2},
                        ),
                        _panel("Versions of the drafter", "versions"),
                        _panel("Engines", "replicas"),
                    ],
                    gap="md",
                ),
            ],
            size="xl",
            py="md",
            px={"base": "xs", "sm": "md"},
        ),
        defaultColorScheme="auto",
        theme={"primaryColor": "teal", "defaultRadius": "md"},
    )


def _header() -> dmc.Group:
    return dmc.Group(
        [
            dmc.Group([dmc.Title("Paceline", order=2), dmc.Group([], id="status")], gap="sm"),
            dmc.Group(
                [
                    dmc.Text("waiting for figures", id="updated", size="xs", c="dimmed"),
                    dmc.ColorSchemeToggle(
                        lightIcon="☀",
                        darkIcon="☾",
                        color="gray",
                        variant="default",
                        **{"aria-label": "Light or dark"},
                    ),
                ],
                gap="xs",
            ),
        ],
        justify="space-between",
    )


def _panel(title: str, part: str) -> dmc.Paper:
    body = dmc.Box(panels.nothing("Waiting for figures."), id=part)
    return _framed(title, body)


def _framed(title: str, body: Any) -> dmc.Paper:
    return dmc.Paper(
        [dmc.Text(title, fw=600, size="sm", mb="xs"), body], withBorder=True, p="sm", radius="md"
    )


def _tokens() -> dmc.Paper:
    chart = dmc.AreaChart(
        id="tokens",
        data=[],
        series=[{"name": "tokens/s", "color": "teal.6"}],
        **_chart_options(),
    )
    return _framed("Tokens a second", chart)


def _speedup() -> dmc.Paper:
    chart = dmc.LineChart(
        id="speedup",
        data=[],
        series=[{"name": "speedup", "color": "indigo.5"}],
        referenceLines=[{"y": 1, "color": "gray.6", "label": "no drafts"}],
        **_chart_options(),
    )
    return _framed("Estimated speedup, minute by minute", chart)


def _acceptance() -> dmc.Paper:
    chart = dmc.LineChart(
        id="acceptance",
        data=[],
        series=[],
        unit="%",
        withLegend=True,
        legendProps={"verticalAlign": "bottom"},
        **_chart_options(most=100),
    )
    return _framed("Acceptance by source, minute by minute", chart)


def _chart_options(most: float | str = "auto") -> dict[str, Any]:
    return {
        "dataKey": "time",
        "h": CHART_HEIGHT,
        "withDots": False,
        "curveType": "linear",
        "connectNulls": False,
        "strokeWidth": 2,
        "xAxisProps": {"minTickGap": 40},
        "yAxisProps": {"width": 42, "domain": [0, most]},
    }
