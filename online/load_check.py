"""Whether a drafter's folder can be loaded and drafts at all, before any engine tries. Needs torch.

How well it drafts is for the gate (`promotion`) to say.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from paceline.caches.drafter_registry import folder_checksum
from paceline.drafter_folder import kept_token_ids, read_record
from paceline.errors import ConfigError
from paceline.models import load_weights
from paceline.online.looks import never
from paceline.online.micro_steps import micro_steps
from paceline.online.written_weights import row_parts

CHAIN_TOKENS: Final = 4
PROMPT_TOKENS: Final = 64
MADE_UP_PROMPTS: Final = 4
MADE_UP_TOKENS: Final = 16
ONE_TOKEN: Final = 0.9
"""Mean probability from which on one and the same token everywhere is no drafting."""
UNIFORM: Final = 1e-4
"""Logits that differ less say nothing."""


def check_drafter(
    folder: Path,
    *,
    vocab_size: int,
    prompts: Sequence[Sequence[int]],
    checksum: str | None = None,
    rest: Callable[[], None] = never,
) -> None:
    """Refuse a folder that is not whole, not finite, of another target, or drafts nothing.

    Args:
        folder: of the drafter.
        vocab_size: of its target.
        prompts: token ids of real requests, at least one with two different tokens; the first
            `PROMPT_TOKENS` of each are read.
        checksum: `folder_checksum` of it as it was recorded, None if it was not.
        rest: called between parts of the work; does not raise.

    Raises:
        ConfigError: it is refused; the message has the reason.
    """
    if not any(len({*prompt}) > 1 for prompt in prompts):
        raise ConfigError("there is no prompt of two different tokens to try a drafter on")
    if checksum is not None and (found := folder_checksum(folder, rest=rest)) != checksum:
        raise ConfigError(
            f"{folder} has checksum {found}, {checksum} was recorded: its files have changed or "
            "are not all there; publish the drafter again"
        )
    config = _config(folder)
    _check_vocabulary(folder, int(config.vocab_size), vocab_size)
    _check_tensors(folder, config, rest)
    _check_drafts(folder, vocab_size, prompts, rest)


def check_alone(folder: Path, *, checksum: str | None = None) -> None:
    """`check_drafter` where neither the target nor a request of it is at hand.

    Its vocabulary has to be the one that its `paceline.json` names; it drafts behind made-up texts.

    Args:
        folder: of the drafter.
        checksum: as for `check_drafter`.

    Raises:
        ConfigError: it is refused; the message has the reason.
    """
    vocab_size = int(_config(folder).vocab_size)
    check_drafter(
        folder, vocab_size=vocab_size, prompts=made_up_prompts(vocab_size), checksum=checksum
    )


def made_up_prompts(vocab_size: int) -> list[list[int]]:
    """Token ids from all over a vocabulary of at least two, the same every time."""
    rng = np.random.default_rng(0)
    found: list[list[int]] = rng.integers(0, vocab_size, (MADE_UP_PROMPTS, MADE_UP_TOKENS)).tolist()
    return found


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises bare ones for what it cannot read
        raise ConfigError(f"{folder} has no configuration that can be read: {error}") from error


def _check_vocabulary(folder: Path, mine: int, vocab_size: int) -> None:
    record = read_record(folder)
    recorded = mine if record is None else record.vocab_size
    if not mine == recorded == vocab_size:
        raise ConfigError(
            f"{folder} is of {mine} tokens (paceline.json: {recorded}), its target of "
            f"{vocab_size}; it was made from another target"
        )


def _check_tensors(folder: Path, config: Any, rest: Callable[[], None]) -> None:
    """Every parameter is there, in its shape and finite, and nothing else."""
    shapes, groups = _expected(config)
    names: Counter[str] = Counter()
    for name, tensor in _tensors(folder):
        names[name] += 1
        if name not in shapes:
            raise ConfigError(f"{folder} has a tensor {name} that its model does not have")
        if tuple(tensor.shape) != shapes[name]:
            raise ConfigError(
                f"{folder} has {name} of shape {tuple(tensor.shape)}, its model of {shapes[name]}"
            )
        if not (tensor.is_floating_point() and _is_finite(tensor, rest)):
            raise ConfigError(f"{folder} has numbers in {name} that are infinite or none")
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ConfigError(f"{folder} has {', '.join(twice)} in several files")
    if missing := [" or ".join(group) for group in groups if not names.keys() & {*group}]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}")


def _is_finite(tensor: torch.Tensor, rest: Callable[[], None]) -> bool:
    for part in row_parts(tensor):
        rest()
        if not part.isfinite().all():
            return False
    return True


def _expected(config: Any) -> tuple[dict[str, tuple[int, ...]], list[list[str]]]:
    """(shape of every tensor, names of each one: several where it is tied)."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    state = model.state_dict(keep_vars=True)
    named: dict[int, list[str]] = defaultdict(list)
    for name, tensor in state.items():
        named[id(tensor)].append(name)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, [*named.values()]


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of every safetensors file, one at a time."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with ExitStack() as stack:
                opened = stack.enter_context(safe_open(file, framework="pt"))
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file} is damaged: {error}") from error


@torch.inference_mode()
def _check_drafts(
    folder: Path, vocab_size: int, prompts: Sequence[Sequence[int]], rest: Callable[[], None]
) -> None:
    """A few tokens drafted behind each prompt come from distributions that are some."""
    kept = torch.tensor(kept_token_ids(folder, vocab_size) or range(vocab_size))
    try:
        model = load_weights(folder)
        rest()
        with micro_steps(model, rest):
            logits = torch.cat([_drafted(model, prompt, kept) for prompt in prompts if prompt])
    except Exception as error:  # whatever is wrong with it, it cannot be run
        raise ConfigError(f"{folder} cannot be run: {type(error).__name__}: {error}") from error
    if not logits.isfinite().all():
        raise ConfigError(f"{folder} drafts with logits that are infinite or none")
    if (logits.amax(-1) - logits.amin(-1)).max() < UNIFORM:
        raise ConfigError(f"{folder} finds every token as likely as any other")
    if (logits - logits[:1]).abs().max() < UNIFORM:
        raise ConfigError(f"{folder} drafts the same whatever it has read")
    best = logits.softmax(-1).max(-1)
    if len(best.indices.unique()) == 1 and best.values.mean() > ONE_TOKEN:
        raise ConfigError(
            f"{folder} drafts token {int(kept[best.indices[0]])} everywhere, whatever it has read"
        )


def _drafted(model: Any, prompt: Sequence[int], kept: torch.Tensor) -> torch.Tensor:
    """Logits at each token of a prompt and of a greedy chain behind it, (tokens, kept tokens)."""
    token_ids = list(prompt[:PROMPT_TOKENS])
    for _ in range(CHAIN_TOKENS):
        logits = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0][:, kept]
        token_ids.append(int(kept[logits[-1].argmax()]))
    return logits.float()
