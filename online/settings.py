"""What `paceline drafter` is told, checked; its process gets it as JSON."""

from __future__ import annotations

from typing import Final, Literal, get_args

import msgspec

from paceline.errors import ConfigError

Objective = Literal[
    "forward_kl", "total_variation", "log_acceptance", "hybrid", "greedy", "expected_acceptance"
]
"""What a drafter is trained to do, see `objective`."""
OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)
MIN_HEAD_TOKENS: Final = 16
"""Least tokens a trimmed head keeps: fusion looks at the eight likeliest."""


class InitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`paceline drafter init`.

    Attributes:
        target: Hugging Face folder, GGUF file or a folder with one, or the packaged model's name.
        out: folder to make.
        layers: of the target to take, from 0, in order; None takes `num_layers`, spread evenly
            from the first to the last.
        num_layers: see `layers`.
        head_tokens: most tokens that a trimmed head keeps; None leaves the head whole.
        token_counts: files and folders of text whose most frequent tokens are kept.

    Raises:
        ConfigError: a value is out of range, or one of the head's two settings is missing.
    """

    target: str
    out: str
    layers: tuple[int, ...] | None = None
    num_layers: int = 2
    head_tokens: int | None = None
    token_counts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ConfigError(f"--num-layers is {self.num_layers}; give 1 or more")
        if self.head_tokens is not None and self.head_tokens < MIN_HEAD_TOKENS:
            raise ConfigError(
                f"--head-tokens is {self.head_tokens}; give {MIN_HEAD_TOKENS} or more, or leave it "
                "out to keep the whole head"
            )
        if self.head_tokens is not None and not self.token_counts:
            raise ConfigError(
                "--head-tokens needs text to count tokens in: give --token-counts FILE with what "
                "your agents say (a tokenizer's own order is not by frequency)"
            )
        if self.token_counts and self.head_tokens is None:
            raise ConfigError("--token-counts needs --head-tokens N, how many tokens to keep")


class CheckSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a drafter can be loaded and drafts, as `paceline drafter publish` wants to know.

    Attributes:
        folder: of the drafter.
        checksum: `folder_checksum` of it.
    """

    folder: str
    checksum: str


class DistilSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`paceline drafter distil`.

    Attributes:
        drafter: folder of the drafter to train; it is not changed.
        target: whose replies it learns, as in `InitSettings`.
        out: folder to make.
        prompts: files of JSON lines (`messages`, `prompt` or `text`), also compressed by gzip.
        work: folder for replies and checkpoints; None takes `out` with `.work` behind it.
        num_prompts: most prompts that the target answers to be learned from.
        num_readings: most prompts that the target only reads, noting what it would have said after
            each token: more to learn for the time than replies, but not its own words.
        held_out_prompts: most prompts of held-out sessions.
        held_out_share: share of sessions that are held out, by a hash of their name.
        prompt_tokens: most tokens of a prompt; a longer one loses what follows its first quarter.
        reply_tokens: most tokens of a reply.
        reply_batch: replies that are written at a time.
        temperature: of the replies, 0 for greedy ones.
        top_k: likeliest tokens whose probabilities are kept for each token of a reply.
        max_cache_mib: most that the replies may take on disk.
        steps: of the optimiser; None for 1000, or for as many as `minutes` allow.
        minutes: most time in all, none for as long as it takes. Replies get up to a
            quarter of it, replies and readings together up to a half.
        batch: replies learned from in a step.
        learning_rate: at its highest.
        objective: what is minimised, a name of `Objective`.
        checkpoint_steps: steps between two checkpoints.
        chain_tokens: longest greedy chain in what is reported.
        threads: of torch, None for torch's own choice.
        device: torch's name of where target and drafter compute; ``auto`` is a GPU where torch
            finds one, else the CPU.
        seed: of the order of prompts, of sampled replies and of the order of training.

    Raises:
        ConfigError: a value is out of range.
    """

    drafter: str
    target: str
    out: str
    prompts: tuple[str, ...]
    work: str | None = None
    num_prompts: int = 2048
    num_readings: int = 2048
    held_out_prompts: int = 64
    held_out_share: float = 0.1
    prompt_tokens: int = 512
    reply_tokens: int = 128
    reply_batch: int = 16
    temperature: float = 0.0
    top_k: int = 16
    max_cache_mib: int = 512
    steps: int | None = None
    minutes: float | None = None
    batch: int = 8
    learning_rate: float = 1e-3
    objective: Objective = "forward_kl"
    checkpoint_steps: int = 50
    chain_tokens: int = 8
    threads: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("there are no prompts; give --prompts FILE with JSON lines")
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
        if self.num_readings < 0:
            raise ConfigError(f"--num-readings is {self.num_readings}; give 0 for none, or more")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"--minutes is {self.minutes}; give a number above 0")
        if self.temperature < 0:
            raise ConfigError(f"--temperature is {self.temperature}; give 0 for greedy, or more")
        if not 0 < self.held_out_share < 1:
            raise ConfigError(
                f"--held-out-share is {self.held_out_share}; give a share between 0 and 1"
            )
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"--learning-rate is {self.learning_rate}; give one above 0, up to 1")
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"--objective is {self.objective!r}; give one of {', '.join(OBJECTIVES)}"
            )


COUNTS: Final = (
    "num_prompts",
    "held_out_prompts",
    "prompt_tokens",
    "reply_tokens",
    "reply_batch",
    "top_k",
    "max_cache_mib",
    "steps",
    "batch",
    "checkpoint_steps",
    "chain_tokens",
    "threads",
)
"""Settings that are numbers of something, at least one."""
