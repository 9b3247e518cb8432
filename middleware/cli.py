"""The `paceline` command: the composition root.

Heavy parts are imported by the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from paceline import __version__
from paceline.adapters.embedded.draft_options import draft_options
from paceline.errors import PacelineError
from paceline.middleware.corpus import corpus
from paceline.middleware.drafter import drafter as drafter_commands
from paceline.middleware.learner import learner
from paceline.middleware.memory import memory
from paceline.middleware.workload import workload

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
DEFAULT_DRAFT_TOKENS = 16
DEFAULT_DRAFTER_TOKENS = 4
DEFAULT_DRAFTER_GROUP = "shared"
workers_option = click.option(
    "--workers",
    "num_workers",
    envvar="PACELINE_WORKERS",
    default=1,
    show_default=True,
    help="Processes of the proxy, which share its address; more than one want a Redis.",
)
BENCHMARKS = "paceline.benchmarks"
"""Entry-point group of the benchmarks; each entry is a click command."""


class FriendlyGroup(click.Group):
    """A group whose commands end in one readable line when Paceline raises on purpose."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `PacelineError` becomes ``Error: message`` and exit code 1."""
        try:
            return super().invoke(ctx)
        except PacelineError as error:
            raise click.ClickException(str(error)) from error


class BenchmarkGroup(FriendlyGroup):
    """The benchmarks installed beside us, found through entry points and loaded when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the installed benchmarks."""
        return sorted(entry.name for entry in metadata.entry_points(group=BENCHMARKS))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one benchmark; None if there is none of that name."""
        for entry in metadata.entry_points(group=BENCHMARKS, name=cmd_name):
            command = entry.load()
            assert isinstance(command, click.Command)
            return command
        return None


@click.group(cls=FriendlyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="paceline")
def cli() -> None:
    """Agents on self-hosted vLLM, faster the more they are used, token for token the same.

    Start with `paceline serve`: a model, a memory and the proxy on this machine, nothing to
    configure. Beside a vLLM of your own: `paceline vllm MODEL`, then `paceline proxy --config FILE`
    in front of it.
    """


@cli.command()
@click.option("--host", default=DEFAULT_HOST, show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=DEFAULT_PORT, show_default=True, help="Port to listen on; 0 takes a free one."
)
@click.option("--model", help="Hugging Face folder to serve.  [default: the packaged SmolLM2-135M]")
@click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="What the model computes in; bfloat16 is quicker on processors that have it.",
)
@click.option("--drafter", help="Folder of a small model that drafts too (`paceline drafter`).")
@draft_options
@click.option(
    "--redis", "redis_url", help="Redis for the shared memory.  [default: an embedded Valkey]"
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    help="Tenants and their keys (YAML).",
)
@click.option(
    "--learn",
    is_flag=True,
    help="The drafter goes on learning from what is said, while nobody is served.",
)
@click.option(
    "--dashboard/--no-dashboard",
    default=None,
    help="Show a dashboard at /dashboard.  [default: where it is installed]",
)
@workers_option
@click.option(
    "--data",
    "data_folder",
    type=click.Path(path_type=Path),
    help="Folder of the embedded memory.  [default: per user]",
)
def serve(
    host: str,
    port: int,
    model: str | None,
    dtype: str,
    drafter: str | None,
    max_draft_tokens: int,
    max_branches: int,
    min_probability: float,
    redis_url: str | None,
    policy_file: Path | None,
    data_folder: Path | None,
    learn: bool,
    dashboard: bool | None,
    num_workers: int,
) -> None:
    """Serve everything on this machine: embedded engine, memory and proxy.

    Ctrl-C stops it all. What agents said stays in the data folder and speeds up the next run.
    """
    from paceline.middleware.serve import ServeSettings, serve_all

    settings = ServeSettings(
        host=host,
        port=port,
        model=model,
        dtype=dtype,
        drafter=drafter,
        max_draft_tokens=max_draft_tokens,
        max_branches=max_branches,
        min_probability=min_probability,
        redis_url=redis_url,
        policy_file=policy_file,
        data_folder=data_folder,
        learn=learn,
        dashboard=dashboard,
        num_workers=num_workers,
    )
    serve_all(settings, click.echo)


@cli.command()
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Proxy configuration (YAML).",
)
@workers_option
def proxy(config_file: Path, num_workers: int) -> None:
    """Run the proxy in front of one or several vLLM servers."""
    from paceline.middleware.config import load_config
    from paceline.middleware.server import run_proxy
    from paceline.middleware.workers import check_workers, run_workers

    config = load_config(config_file)
    check_workers(config, num_workers)
    if num_workers > 1:
        run_workers(config, num_workers, config_file)
    else:
        run_proxy(config, config_file)


@cli.command()
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Configuration of the proxy that is looked at (YAML).",
)
@click.option(
    "--redis",
    "redis_url",
    envvar="PACELINE_REDIS_URL",
    default="",
    help="Redis that holds the memory.  [default: the one in the configuration]",
)
@click.option(
    "--admin-key",
    envvar="PACELINE_ADMIN_KEY",
    default="",
    help="For the proxy's metrics, where it listens on no loopback address; best in the variable.",
)
def dashboard(config_file: Path, redis_url: str, admin_key: str) -> None:
    """Run the dashboard that `paceline proxy` shows at /dashboard, on the proxy's machine."""
    from paceline.middleware.config import load_config
    from paceline.middleware.dashboard_starting import run_dashboard

    run_dashboard(load_config(config_file), redis_url=redis_url, admin_key=admin_key)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.option(
    "--redis",
    "redis_url",
    envvar="PACELINE_REDIS_URL",
    help="Redis for the shared memory.  [default: an embedded Valkey]",
)
@click.option(
    "--data",
    "data_folder",
    type=click.Path(path_type=Path),
    help="Folder of the embedded memory.  [default: per user]",
)
@click.option(
    "--draft-tokens",
    default=DEFAULT_DRAFT_TOKENS,
    show_default=True,
    help="Most tokens drafted a request and step.",
)
@click.option(
    "--drafter",
    help="Model with MODEL's tokenizer that drafts beside the memory.  [default: none]",
)
@click.option(
    "--drafter-tokens",
    envvar="PACELINE_DRAFTER_TOKENS",
    default=DEFAULT_DRAFTER_TOKENS,
    show_default=True,
    help="Most tokens that it drafts a request and step.",
)
@click.option(
    "--drafter-registry",
    envvar="PACELINE_DRAFTER_REGISTRY",
    default="",
    help="Folder of the drafter's versions to follow.  [default: keep the one given]",
)
@click.option(
    "--drafter-group",
    envvar="PACELINE_DRAFTER_GROUP",
    default=DEFAULT_DRAFTER_GROUP,
    show_default=True,
    help="Whose drafter it is; another than shared drafts for that group's requests alone.",
)
@click.option(
    "--always-draft",
    is_flag=True,
    envvar="PACELINE_ALWAYS_DRAFT",
    help="Draft also where it is not expected to be worth its time.",
)
@click.option(
    "--bandit/--no-bandit",
    default=False,
    show_default=True,
    envvar="PACELINE_BANDIT",
    help="Let a bandit narrow who drafts, and how far, where that was slower.",
)
@click.option("--allow-untested", is_flag=True, help="Try a vLLM outside the tested range.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def vllm(
    model: str,
    redis_url: str | None,
    data_folder: Path | None,
    draft_tokens: int,
    drafter: str | None,
    drafter_tokens: int,
    drafter_registry: str,
    drafter_group: str,
    always_draft: bool,
    bandit: bool,
    allow_untested: bool,
    vllm_args: Sequence[str],
) -> None:
    """Serve MODEL with the installed vLLM and Paceline's worker in it.

    Every argument that is not listed here goes to `vllm serve` as it is.
    """
    from paceline.middleware.serve import VllmSettings, serve_vllm

    settings = VllmSettings(
        model=model,
        vllm_args=tuple(vllm_args),
        redis_url=redis_url,
        data_folder=data_folder,
        num_draft_tokens=draft_tokens,
        drafter=drafter,
        num_drafter_tokens=drafter_tokens,
        drafter_registry=drafter_registry,
        drafter_group=drafter_group,
        always_draft=always_draft,
        bandit=bandit,
        allow_untested=allow_untested,
    )
    sys.exit(serve_vllm(settings, click.echo))


@cli.command()
@click.option("--redis", "redis_url", envvar="PACELINE_REDIS_URL", help="Redis to reach.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Proxy configuration to check."
)
def doctor(redis_url: str | None, config_file: Path | None) -> None:
    """Check what is installed here and say what to do about what is not."""
    from paceline.middleware.doctor import examine, report

    if not report(examine(redis_url=redis_url, config=config_file), click.echo):
        sys.exit(1)


@cli.group(cls=FriendlyGroup)
def policy() -> None:
    """What a policy file says, and what holds because of it."""


@policy.command("check")
@click.argument("file", type=click.Path(path_type=Path))
def check_policy(file: Path) -> None:
    """Check FILE, as a proxy would before it takes it over."""
    from paceline.middleware.policy import checked

    for line in checked(file):
        click.echo(line)


@policy.command("explain")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tenant", required=True, help="Name of the tenant.")
@click.option("--workload", default="", help="Name of the kind of work.  [default: none]")
@click.option(
    "--header",
    "headers",
    multiple=True,
    help="A header of the request, NAME=VALUE; repeatable.",
)
def explain_policy(file: Path, tenant: str, workload: str, headers: Sequence[str]) -> None:
    """Say what holds for a request under FILE, and who said so."""
    from paceline.middleware.policy import explained

    for line in explained(file, tenant, workload, headers):
        click.echo(line)


@policy.command("schema")
def policy_schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    from paceline.middleware.policy import schema

    click.echo(schema(), nl=False)


@cli.group(cls=FriendlyGroup)
def keys() -> None:
    """Keys of tenants."""


@keys.command("new")
def new_key() -> None:
    """Make a key: give the first line to its user, put the second into the policy file."""
    from paceline.policies.tenants import new_key as make_key

    key, hashed = make_key()
    click.echo(f"key:  {key}\nhash: {hashed}")


cli.add_command(corpus)
cli.add_command(drafter_commands)
cli.add_command(learner)
cli.add_command(memory)
cli.add_command(workload)


@cli.group(cls=BenchmarkGroup)
def bench() -> None:
    """Measure Paceline against a peer in the same run; each benchmark takes --json FILE."""


def main() -> None:
    """Entry point of the `paceline` command."""
    cli()


if __name__ == "__main__":
    main()
