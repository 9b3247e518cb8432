"""A model's passes in parts so small that others never wait for them. Needs torch.

A step of training is a second or more; between the parts of a model, forward and backward, it can
stand still for as long as somebody else wants the machine, and then go on where it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

logger = logging.getLogger("paceline.learner")

LEAVES: Final = (torch.nn.Linear, torch.nn.Embedding)
"""Parts that take most of a pass."""
PART_ROWS: Final = 256
PART_OPERATIONS: Final = 1 << 30
"""Most rows of a projection on a CPU that are computed at a time, and about how many operations of
them: some 8 ms of a core forward, twice as many backward. Attention over long texts is computed by
groups of heads."""
WHOLE: Final = "sdpa"
BY_HEADS: Final = "paceline_by_heads"
"""What transformers calls its attention, and what it calls ours."""

Look = Callable[[], None]


@contextmanager
def micro_steps(model: torch.nn.Module, look: Look) -> Iterator[None]:
    """In the body a model looks after each of its parts, forward and backward.

    On a CPU long projections are computed piece by piece, which changes how their sums are rounded
    and nothing else, and attention over long texts by groups of heads.

    Args:
        model: afterwards as it was.
        look: called between parts; what it raises ends the pass.
    """
    with ExitStack() as stack:
        if model.device.type == "cpu" and model.config._attn_implementation == WHOLE:
            model.set_attn_implementation(BY_HEADS)
            stack.callback(model.set_attn_implementation, WHOLE)
            for config in _configs(model):
                config.paceline_look = look
                stack.callback(delattr, config, "paceline_look")
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.forward = partial(_projected, module, look)
                stack.callback(delattr, module, "forward")
            elif isinstance(module, LEAVES):
                hook = module.register_forward_hook(partial(_after_module, look))
                stack.callback(hook.remove)
        yield


def after_part(look: Look, output: torch.Tensor) -> torch.Tensor:
    """Look now, and once the gradient of `output` is known; returns it."""
    look()
    if output.requires_grad:
        output.register_hook(lambda _gradient: look())
    return output


def _after_module(look: Look, _module: Any, _inputs: Any, output: Any) -> None:
    if isinstance(output, torch.Tensor):
        after_part(look, output)


def _projected(module: torch.nn.Linear, look: Look, inputs: torch.Tensor) -> torch.Tensor:
    """What the module gives, some rows and some of their outputs at a time."""
    if inputs.requires_grad:  # apart from what follows it in a backward pass, as attention
        inputs.register_hook(lambda _gradient: look())
    rows = inputs.reshape(-1, module.in_features)
    most = max(1, PART_OPERATIONS // (2 * PART_ROWS * module.in_features))
    is_small = len(rows) <= PART_ROWS and module.out_features <= most
    if is_small or inputs.device.type != "cpu":
        return after_part(look, torch.nn.functional.linear(inputs, module.weight, module.bias))
    weights = module.weight.split(most)
    biases = [None] * len(weights) if module.bias is None else module.bias.split(most)
    told = [*zip(weights, biases, strict=True)]
    shape = (*inputs.shape[:-1], module.out_features)
    if torch.is_grad_enabled():
        return torch.cat(
            [torch.cat([*_pieces(part, told, look)], -1) for part in rows.split(PART_ROWS)]
        ).view(shape)
    output = inputs.new_empty((len(rows), module.out_features))
    for part, place in zip(rows.split(PART_ROWS), output.split(PART_ROWS), strict=True):
        for piece, where in zip(_pieces(part, told, look), place.split(most, -1), strict=True):
            where.copy_(piece)
    return output.view(shape)


def _pieces(
    rows: torch.Tensor,
    told: list[tuple[torch.Tensor, torch.Tensor | None]],
    look: Look,
) -> Iterator[torch.Tensor]:
    for weight, bias in told:
        yield after_part(look, torch.nn.functional.linear(rows, weight, bias))


def _configs(model: torch.nn.Module) -> list[Any]:
    """Of the model and its parts, each once: those of a text model within another are its own."""
    found = {id(it.config): it.config for it in model.modules() if hasattr(it, "config")}
    return list(found.values())


def _by_heads(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention, for as many heads at a time as are no long part.

    Args:
        module: the layer's attention.
        query: (texts, heads, tokens, head_dim).
        key: (texts, heads of keys, tokens, head_dim); as many heads of queries share each.
        value: as `key`.
        mask: None, or the same for all heads.
        options: passed on.
    """
    look: Look = module.config.paceline_look
    num_texts, num_keys, num_tokens, head_dim = key.shape
    shared = query.shape[1] // num_keys
    operations = 4 * num_texts * shared * query.shape[2] * num_tokens * head_dim
    at_once = max(1, PART_OPERATIONS // operations)
    if at_once >= num_keys:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, **options
        )
        return whole
    groups = zip(
        query.split(at_once * shared, 1), key.split(at_once, 1), value.split(at_once, 1),
        strict=True,
    )  # fmt: skip
    parts = [
        after_part(look, sdpa_attention_forward(module, *group, mask, **options)[0])
        for group in groups
    ]
    return torch.cat(parts, 2), None


AttentionInterface.register(BY_HEADS, _by_heads)
AttentionMaskInterface.register(BY_HEADS, sdpa_mask)


def run_only_when_idle() -> str:
    """Have the kernel run this process only where a core is idle; says how, "" if it cannot be.

    Beside the gate, which looks a few times a second: within a part the kernel takes the core away
    at once.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        pass
    else:
        return "SCHED_IDLE"
    try:
        os.nice(19)
    except OSError:
        logger.warning("training competes with others: neither SCHED_IDLE nor nice is allowed")
        return ""
    return "nice 19"
