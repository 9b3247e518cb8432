"""Write docs/reference: `make reference`. A test compares the pages with what this would write."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import click

from cli_reference import cli_page
from paceline.adapters.vllm.settings import PREFIX, WorkerSettings
from paceline.middleware.cli import cli
from paceline.middleware.config import ProxyConfig
from paceline.online.learner_settings import LearnerSettings
from paceline.policies.tenants import PolicyFile
from settings_reference import settings_page

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE = "This page is written by `make reference`; change what it is made from instead."


@cache
def pages() -> Mapping[str, str]:
    """Every page by its file's name."""
    return {
        "policy.md": settings_page(
            "Policy file",
            "What `policy_file` of the proxy's configuration may say. How the layers narrow each "
            f"other is told in [The policy file](../policy.md). {MADE}",
            PolicyFile,
        ),
        "proxy.md": settings_page(
            "Proxy configuration",
            f"What the file of `paceline proxy --config FILE` may say (YAML). {MADE}",
            ProxyConfig,
        ),
        "learner.md": settings_page(
            "Learner configuration",
            "What the file of `paceline learner --config FILE` may say (YAML). How it learns is "
            f"told in [Learning from live traffic](../learning.md). {MADE}",
            LearnerSettings,
        ),
        "worker.md": settings_page(
            "Worker environment",
            "What the worker inside vLLM reads from its environment; `paceline vllm` sets those "
            f"that it has an option for and passes the others on. {MADE}",
            WorkerSettings,
            variables=PREFIX,
        ),
        "cli.md": cli_page(
            "Commands",
            f"Every command takes `--help`. Benchmarks need `paceline[bench]`. {MADE}",
            cli,
        ),
    }


def main() -> None:
    """Write the pages whose text has changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        file = FOLDER / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            click.echo(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
