"""`paceline drafter`: a small model that drafts beside memory, made from the target."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from paceline.errors import ConfigError
from paceline.middleware.drafter_versions import COMMANDS
from paceline.online.settings import OBJECTIVES, DistilSettings, InitSettings
from paceline.processes import ChildProcess

WORKER: Final = "paceline.online"


@click.group()
def drafter() -> None:
    """A small model that drafts what memory has not seen, made from the target itself."""


@drafter.command()
@click.argument("target")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", help="Layers of the target to take, from 0, as in 0,29.")
@click.option(
    "--num-layers",
    type=int,
    help="Take so many, spread evenly from the first to the last.  [default: 2]",
)
@click.option(
    "--head-tokens",
    type=int,
    help="Draft only so many tokens, the most frequent ones.  [default: all]",
)
@click.option(
    "--token-counts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File or folder of text or JSON lines to count tokens in; repeatable.",
)
def init(
    target: str,
    out: Path,
    layers: str | None,
    num_layers: int | None,
    head_tokens: int | None,
    token_counts: tuple[Path, ...],
) -> None:
    """Cut a drafter from TARGET into the new folder OUT.

    TARGET is a Hugging Face folder or a GGUF file of a model built like Llama, Mistral or Qwen, or
    smollm2, the packaged model. OUT is a Hugging Face folder that vLLM and transformers load as any
    other. Untrained it is of little use: go on with `paceline drafter distil`.
    """
    if layers is not None and num_layers is not None:
        raise ConfigError("both --layers and --num-layers are given; name one of them")
    settings = InitSettings(
        target=target,
        out=str(out),
        layers=None if layers is None else _numbers(layers),
        num_layers=2 if num_layers is None else num_layers,
        head_tokens=head_tokens,
        token_counts=tuple(map(str, token_counts)),
    )
    _run("init", settings)


@drafter.command()
@click.argument("folder", metavar="DRAFTER", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Model whose replies it learns, as for `init`.")
@click.option(
    "--prompts",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="JSON lines of chats (messages) or texts (prompt, text); repeatable.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the trained drafter."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Folder of replies and checkpoints, kept for another run.  [default: OUT.work]",
)
@click.option("--num-prompts", default=2048, show_default=True, help="Most prompts answered.")
@click.option("--num-readings", default=2048, show_default=True, help="Most prompts only read.")
@click.option("--prompt-tokens", default=512, show_default=True, help="Most tokens of a prompt.")
@click.option("--reply-tokens", default=128, show_default=True, help="Most tokens of a reply.")
@click.option("--reply-batch", default=16, show_default=True, help="Replies written at a time.")
@click.option("--temperature", default=0.0, show_default=True, help="Of the replies; 0: greedy.")
@click.option("--top-k", default=16, show_default=True, help="Probabilities kept for each token.")
@click.option("--max-cache-mib", default=512, show_default=True, help="Most disk for replies.")
@click.option("--steps", type=int, help="Training steps.  [default: 1000, or what --minutes allow]")
@click.option("--minutes", type=float, help="Most time in all; half of it for training.")
@click.option("--batch", default=8, show_default=True, help="Replies of a training step.")
@click.option("--learning-rate", default=1e-3, show_default=True, help="At its highest.")
@click.option("--held-out-prompts", default=64, show_default=True, help="Most, for the report.")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="forward_kl",
    show_default=True,
    help="What is minimised.",
)
@click.option(
    "--held-out-share",
    default=0.1,
    show_default=True,
    help="Sessions that are not learned from, by a hash of their name.",
)
@click.option("--chain-tokens", default=8, show_default=True, help="Longest chain in the report.")
@click.option("--threads", type=int, help="Of torch.  [default: torch's choice]")
@click.option("--device", default="auto", show_default=True, help="Torch's: cpu, cuda, cuda:1.")
@click.option("--seed", default=0, show_default=True, help="Of prompts, replies and training.")
def distil(
    folder: Path,
    target: str,
    prompts: tuple[Path, ...],
    out: Path,
    work: Path | None,
    **options: Any,
) -> None:
    """Train DRAFTER on what its target replies to prompts.

    The target answers prompts and reads others, then the drafter learns how likely it found which
    tokens; its embeddings and head stay as they are. Sessions that are held out show what it is
    worth. Stopped anywhere, the same command goes on.
    """
    settings = DistilSettings(
        drafter=str(folder),
        target=target,
        out=str(out),
        prompts=tuple(map(str, prompts)),
        work=None if work is None else str(work),
        **options,
    )
    _run("distil", settings)


for command in COMMANDS:
    drafter.add_command(command)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--layers is {text!r}; give numbers with commas, as in 0,29") from error


def _run(command: str, settings: msgspec.Struct) -> None:
    """Have a process of its own do it; it has torch, we do not. Ends as it ends."""
    from paceline.middleware.serve import until_stopped

    data = msgspec.json.encode(settings).decode()
    # as for the embedded engine: threads must not wait for each other busily
    env = {"OMP_WAIT_POLICY": "passive", **os.environ}
    process = ChildProcess(
        "the drafter's maker", [sys.executable, "-m", WORKER, command, data], env=env
    )
    with until_stopped(lambda text: click.echo(text, err=True)), process:
        sys.exit(process.wait())
    sys.exit(1)
