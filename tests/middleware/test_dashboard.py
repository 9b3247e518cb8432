"""The dashboard of a running stack, in a real browser."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

import paceline
from dashboard_stack import ADMIN_KEY, TENANTS, WORKLOADS, dashboard_stack, serve_some
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, answers, free_port
from redis_server import RedisServer
from serving import Serving
from waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.model, pytest.mark.timeout(600)]

DOCS = Path(__file__).parents[2] / "docs"
OBSERVABILITY, GRAFANA = DOCS / "observability.md", DOCS / "grafana" / "paceline.json"
SOURCES = Path(paceline.__file__).parent
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
SHOWN_MS = 90_000
PATIENCE = 180.0
LINE = re.compile(r"^M[-\d.,]+L")
"""A path from one place to another."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Everything, after some requests; its dashboard has seen them begin."""
    folder = tmp_path_factory.mktemp("dashboard")
    redis = RedisServer(folder)
    redis.start()
    try:
        with dashboard_stack(folder, redis.url) as running:
            wait_until(lambda: get(running, "/dashboard/", bearer())[0] == 200, PATIENCE)
            serve_some(running, 2)
            yield running
    finally:
        redis.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("chromium is not installed; `make test` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def bearer(key: str = ADMIN_KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'admin:{key}'.encode()).decode()}"}


def get(
    serving: Serving | str, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    url = serving if isinstance(serving, str) else serving.base_url
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)) as connection:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer("search-team"), 401),
        (basic("search-team"), 401),
        ({"authorization": "Basic !"}, 401),
        ({"authorization": "Basic /////w=="}, 401),
        (bearer(), 200),
        (basic(ADMIN_KEY), 200),
        ({"x-api-key": ADMIN_KEY}, 200),
    ],
)
def test_it_is_shown_to_admins_alone(
    serving: Serving, headers: dict[str, str], status: int
) -> None:
    """With an admin key as a browser or a client sends it; a tenant's is not enough, even here."""
    for path in ("/dashboard", "/dashboard/", "/dashboard/_dash-layout"):
        found, answered, body = get(serving, path, headers)
        assert found == (307 if path == "/dashboard" and status == 200 else status)
        if status == 401:
            assert answered["www-authenticate"].startswith("Basic realm=")
            assert b"admin key" in body
        elif path != "/dashboard":
            assert answered["x-frame-options"] == "DENY"
    assert get(serving, "/dashboard/", headers, "PUT")[0] == 405


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_panel_shows_what_runs(
    serving: Serving, browser: Browser, tmp_path: Path, size: str, scheme: Any
) -> None:
    """Real figures in every panel, on a phone and a desktop, light and dark, from here alone."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        http_credentials={"username": "admin", "password": ADMIN_KEY},
    )
    page, asked, problems = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    url = f"http://{urlsplit(serving.base_url).netloc}/dashboard"
    page.goto(url)
    serve_some(serving, 2)
    for part, words in PANELS.items():
        for word in words:
            expect(page.locator(f"#{part}")).to_contain_text(word, timeout=SHOWN_MS)
    for chart in ("tokens", "speedup", "acceptance"):
        drawn = page.locator(f"#{chart} path.recharts-curve").first
        expect(drawn).to_have_attribute("d", LINE, timeout=SHOWN_MS)
    assert figure(page, "Speedup") != "-"
    assert float(figure(page, "Tokens a step")) > 1
    assert figure(page, "First token").endswith("s")
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != (
        "rgb(255, 255, 255)"
    )
    assert is_dark == (scheme == "dark")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.wait_for_timeout(500)  # bars and lines move to their places
    folder = Path(os.environ.get("PACELINE_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"dashboard-{size}-{scheme}.png", full_page=True)
    assert {urlsplit(each).netloc for each in asked} == {urlsplit(url).netloc}
    assert not problems
    context.close()


PANELS = {
    "status": ("1 of 1 engines healthy",),
    "stats": ("Tokens a second", "Speedup", "Acceptance"),
    "tenants": (*TENANTS, *WORKLOADS),
    "arms": ("tenant:", "memory-"),
    "tiers": ("session", "workload", "of ", "In Redis, target"),
    "versions": ("v1", "v2", "passed", "refused", "48.0k tokens"),
    "replicas": ("embedded", "healthy", "connected"),
}


def figure(page: Page, name: str) -> str:
    """One of the figures at the top."""
    tile = page.locator("#stats > div").filter(has_text=name)
    return tile.locator("p").nth(1).inner_text()


def families(serving: Serving) -> dict[str, set[str]]:
    """Names of the samples that proxy and engine show, and their labels."""
    found: dict[str, set[str]] = {}
    engine = serving.engine_url
    for url in (f"http://{urlsplit(serving.base_url).netloc}", engine):
        text = get(url, "/metrics")[2].decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_metric_is_documented(serving: Serving) -> None:
    """docs/observability.md names all that a stack shows, and nothing that no code has."""
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in families(serving)}
    page = OBSERVABILITY.read_text()
    documented = set(re.findall(r"^\| `(paceline_\w+)`", page, re.MULTILINE))
    assert not sorted(
        name for name in shown if name.startswith("paceline_") and name not in documented
    )
    code = "".join(file.read_text() for file in SOURCES.rglob("*.py"))
    for name in documented - shown:
        bare = name.removesuffix("_total")
        assert f'"{bare}"' in code, f"{name} is not shown, and not in the code"


def test_grafana_asks_for_what_there_is(serving: Serving) -> None:
    """Each query of the dashboard file names samples and labels that a stack shows."""
    shown = families(serving)
    board = json.loads(GRAFANA.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    queries += [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    assert len(queries) > 20
    for query in queries:
        names = set(re.findall(r"\b(?:paceline|vllm)[\w:]+", query))
        assert names, query
        assert names <= set(shown), query
        labels = set(re.findall(r"(\w+)=~?\"", query))
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            labels |= {label.strip() for label in grouped.split(",")}
        for name in names:
            assert labels <= shown[name] | SCRAPED, (query, name)
    assert {panel["type"] for panel in board["panels"]} == {"row", "stat", "timeseries"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_nothing_to_show_is_said(browser: Browser, tmp_path: Path) -> None:
    """By `paceline dashboard` where neither proxy nor engine nor Redis answers."""
    port, config = free_port(), tmp_path / "proxy.yaml"
    url, dead = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    told = {"listen": {"port": free_port()}, "upstreams": [{"name": "gpu-0", "url": dead}]}
    config.write_text(json.dumps(told | {"dashboard": {"url": url}}))
    command = [
        sys.executable,
        "-m",
        "paceline.middleware.cli",
        "dashboard",
        "--config",
        str(config),
    ]
    command += ["--redis", f"redis://127.0.0.1:{free_port()}"]
    with ChildProcess("paceline dashboard", command, log=tmp_path / "log") as process:
        process.wait_until(lambda: answers(f"{url}/dashboard/"), timeout_seconds=PATIENCE)
        assert get(url, "/dashboard/", {"host": "elsewhere.example"})[0] == 403
        page = browser.new_page()
        page.goto(f"{url}/dashboard/")
        for part, words in {
            "status": ("0 of 1 engines healthy", "the proxy's figures are missing", "Redis"),
            "tenants": ("Nobody has asked for anything yet",),
            "arms": ("No bandit has learned anything",),
            "tiers": ("No engine has a draft memory",),
            "versions": ("No version of a drafter",),
            "replicas": ("gpu-0", "no figures"),
        }.items():
            for word in words:
                expect(page.locator(f"#{part}")).to_contain_text(word, timeout=SHOWN_MS)
        page.close()


def test_without_an_admin_key_only_this_machine_may_look(
    proxies: Callable[..., Any], tmp_path: Path
) -> None:
    """At a proxy that listens to nobody else, by a name of this machine; else it says how."""
    config: dict[str, Any] = {"dashboard": {"url": f"http://127.0.0.1:{free_port()}"}}
    dead, policy = f"http://127.0.0.1:{free_port()}", tmp_path / "policy.yaml"
    policy.write_text(f"tenants: [{{name: a, keys: ['{hash_key('a')}']}}]")
    here = proxies(dead, wait_for_health=False, **config).url
    open_to_all = proxies(
        dead,
        wait_for_health=False,
        listen={"host": "0.0.0.0", "port": 0},  # noqa: S104  that is what must be refused
        policy_file=policy,
        **config,
    ).url
    status, _, body = get(here, "/dashboard/")
    assert status == 503
    assert b"may be starting" in body
    for url, headers in ((here, {"host": "elsewhere.example"}), (open_to_all, {})):
        status, _, body = get(url.replace("0.0.0.0", "127.0.0.1"), "/dashboard/", headers)  # noqa: S104
        assert status == 403
        assert b"paceline keys new" in body
    without = proxies(dead, wait_for_health=False).url
    assert get(without, "/dashboard/")[0] == 404
    assert get(without, "/dashboards")[0] == 404
