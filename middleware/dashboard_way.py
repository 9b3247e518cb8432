"""The way to the dashboard: who may see it, and passing its pages on from its process."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from paceline.api_errors import ApiError
from paceline.middleware.config import ProxyConfig, is_loopback
from paceline.middleware.engine_client import Connections, HttpUpstream
from paceline.middleware.exchange import Exchange, RawHeaders
from paceline.middleware.identity import key_of
from paceline.middleware.upstream import UpstreamError
from paceline.policies.tenants import PolicyFile

DASHBOARD_PATH: Final = "/dashboard"
MAX_BODY_BYTES: Final = 1024 * 1024
SILENCE_SECONDS: Final = 20.0
REALM: Final = b'Basic realm="Paceline, with an admin key as the password", charset="UTF-8"'
PASSED_ON: Final = frozenset((b"content-type", b"cache-control", b"etag"))
SAFETY: Final = (
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"frame-ancestors 'none'; connect-src 'self'"),
)


class DashboardWay:
    """Shows admins what the dashboard's process serves.

    Where the policy file has an admin key, one of them is wanted, from wherever a request comes.
    Without any, only this machine may look, and only at a proxy that listens to nobody else.

    Args:
        config: of the proxy.
    """

    def __init__(self, config: ProxyConfig) -> None:
        self._url = None if config.dashboard is None else config.dashboard.url
        self._is_local = is_loopback(config.listen.host)
        self._upstream: HttpUpstream | None = None

    def open(self, connections: Connections) -> None:
        """Ask through these connections from now on."""
        if self._url is not None:
            self._upstream = HttpUpstream(
                connections, self._url, read_timeout_seconds=SILENCE_SECONDS
            )

    async def answer(self, exchange: Exchange, policy: PolicyFile | None) -> None:
        """Answer a request for a path under `DASHBOARD_PATH`.

        Raises:
            ApiError: who asks may not see it, or there is none.
        """
        if exchange.method not in ("GET", "POST"):
            raise ApiError(405, "the dashboard takes GET and POST", code="method_not_allowed")
        self._authorise(exchange, policy)
        body = await exchange.read_body(max_bytes=MAX_BODY_BYTES)
        if self._upstream is None:
            raise ApiError(
                404,
                "this proxy has no dashboard: run `paceline dashboard` and name its URL in the "
                "proxy's configuration (dashboard: {url: ...})",
                code="no_dashboard",
            )
        if exchange.path == DASHBOARD_PATH:
            await exchange.answer(307, b"", [(b"location", b"/dashboard/")])
            return
        headers = {"accept-encoding": "identity"}
        if exchange.method == "POST":
            headers["content-type"] = "application/json"
        try:
            response = await self._upstream.send(
                exchange.method, exchange.path, headers, body if exchange.method == "POST" else None
            )
            page = b"".join([chunk async for chunk in response.chunks()])
        except UpstreamError as error:
            raise ApiError(
                503, f"the dashboard does not answer, it may be starting: {error}", "api_error"
            ) from error
        await exchange.answer(response.status, page, _passed_on(response.headers))

    def _authorise(self, exchange: Exchange, policy: PolicyFile | None) -> None:
        if policy is not None and policy.admin_keys:
            if not policy.is_admin(_admin_key_of(exchange.headers)):
                raise ApiError(
                    401,
                    "the dashboard is shown with an admin key: as the password a browser asks "
                    "for, or as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers=((b"www-authenticate", REALM),),
                )
            return
        is_here = is_loopback(exchange.client_host) and is_loopback(_host_of(exchange.headers))
        if not (self._is_local and is_here):
            raise ApiError(
                403,
                "no admin key is configured, so the dashboard is shown on this machine only, by a "
                "proxy that listens on a loopback address; make a key with `paceline keys new` "
                "and put its hash under admin_keys in the policy file",
                code="forbidden",
            )


def _admin_key_of(headers: Mapping[str, str]) -> str:
    """As a browser sends it, or as other clients do; "" if none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return key_of(headers)
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return decoded.partition(":")[2]


def _host_of(headers: Mapping[str, str]) -> str:
    """The host that a client believes to talk to: another site's name may lead here."""
    host = headers.get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _passed_on(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in headers if name in PASSED_ON]
    return [*kept, *SAFETY]


def is_dashboard(path: str) -> bool:
    """Whether a path is the dashboard's."""
    return path == DASHBOARD_PATH or path.startswith(f"{DASHBOARD_PATH}/")
