"""One `paceline serve` for all SDKs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdk_clients import SdkClients
from serving import Serving


@pytest.fixture(scope="package")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`paceline serve` on embedded defaults."""
    with Serving(tmp_path_factory.mktemp("sdks")) as running:
        yield running


@pytest.fixture(scope="package")
def clients(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> SdkClients:
    """Scripts that ask it."""
    home = tmp_path_factory.mktemp("home")
    return SdkClients(serving.base_url, f"{serving.engine_url}/metrics", home)
