"""Cutting a drafter from its target: embeddings, some of the layers, final norm, head.

Needs torch and transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from paceline.caches.text_source import TextSource
from paceline.drafter_folder import DrafterRecord, new_folder, require_new, write_record
from paceline.errors import ConfigError
from paceline.models import load_model, make_plain, target_path
from paceline.online.settings import InitSettings
from paceline.online.token_counts import most_frequent

BODY: Final = frozenset({"embed_tokens", "layers", "norm"})
ROTARY: Final = "rotary_emb"
"""What a model may have beside `BODY`: computed from its configuration, without weights."""
INDICES: Final = ("mlp_only_layers",)
"""Configuration that names layers by number, which a cut would change."""


def init_drafter(settings: InitSettings) -> DrafterRecord:
    """Cut a drafter and write its folder, whole or not at all.

    Returns what its `paceline.json` says.

    Raises:
        ConfigError: the target is missing or not built like a Llama, a layer does not exist, no
            text was found, or the folder exists.
    """
    folder = Path(settings.out).expanduser()
    require_new(folder)
    path = target_path(settings.target)
    target, tokenizer = load_model(path, keep_dtype=True)
    layers = chosen_layers(settings, len(decoder_layers(target)))
    record = DrafterRecord(
        target=settings.target if path is None else path.resolve().name,
        layers=tuple(layers),
        vocab_size=int(target.config.vocab_size),
        kept_token_ids=kept_tokens(settings, target, tokenizer),
    )
    drafter = cut(target, layers)
    with new_folder(folder) as beside:
        save_drafter(drafter, tokenizer, record, beside)
    return record


def chosen_layers(settings: InitSettings, num_layers: int) -> list[int]:
    """Layers to take of `num_layers`, ascending.

    Raises:
        ConfigError: one does not exist, is named twice or out of order, or more are wanted than
            there are.
    """
    if settings.layers is None:
        if settings.num_layers > num_layers:
            raise ConfigError(
                f"--num-layers is {settings.num_layers}; the target has only {num_layers}"
            )
        if settings.num_layers == 1:
            return [0]
        last = settings.num_layers - 1
        return [round(i * (num_layers - 1) / last) for i in range(settings.num_layers)]
    layers = list(settings.layers)
    if not layers or layers != sorted({*layers}) or layers[0] < 0 or layers[-1] >= num_layers:
        raise ConfigError(
            f"--layers is {','.join(map(str, layers))}; name layers from 0 to {num_layers - 1}, "
            "each once, ascending"
        )
    return layers


def decoder_layers(model: Any) -> Any:
    """The decoder layers of a causal LM that is built like a Llama.

    Raises:
        ConfigError: it is built otherwise.
    """
    name = type(model).__name__
    parts = dict(model.named_children())
    body = parts.get("model")
    inner = {} if body is None else dict(body.named_children())
    strange = sorted({*parts} - {"model", "lm_head"}) + sorted(
        part for part in {*inner} - BODY if not part.startswith(ROTARY)
    )
    missing = sorted(({"model", "lm_head"} - {*parts}) | (BODY - {*inner}))
    if missing or strange:
        raise ConfigError(
            f"{name} cannot be cut: it has no {', '.join(missing) or '(nothing)'} and, beside "
            f"those, {', '.join(strange) or '(nothing)'}; give a causal LM built like Llama, "
            "Mistral or Qwen, or use any small model with the target's tokenizer as the drafter"
        )
    return inner["layers"]


def cut(target: Any, layers: Sequence[int]) -> Any:
    """A model of the target's class with only some of its layers, and copies of their weights.

    Args:
        target: see `decoder_layers`; not changed.
        layers: ascending.

    Raises:
        ConfigError: the target keeps something of its layers elsewhere, which a cut would break.
    """
    config = cut_config(target.config, len(decoder_layers(target)), layers)
    new_index = {old: new for new, old in enumerate(layers)}
    weights: dict[str, torch.Tensor] = {}
    for name, value in target.state_dict().items():
        prefix, of_layer, rest = name.partition("model.layers.")
        if prefix or not of_layer:
            weights[name] = value
            continue
        index, _, rest = rest.partition(".")
        if int(index) in new_index:
            weights[f"model.layers.{new_index[int(index)]}.{rest}"] = value
    drafter = type(target)(config).to(target.dtype)
    try:
        drafter.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(target).__name__} cannot be cut: its layers are not alike ({error}); choose "
            "other --layers"
        ) from error
    drafter.tie_weights()
    drafter.generation_config = copy.deepcopy(target.generation_config)
    return drafter.eval()


def cut_config(config: Any, num_layers: int, layers: Sequence[int]) -> Any:
    """The configuration of a model that has only `layers` of `num_layers`.

    Every list with an entry a layer (`layer_types` and its like) is cut as well.
    """
    for name in INDICES:
        if getattr(config, name, None):
            raise ConfigError(
                f"{type(config).__name__} names layers in {name}, which a cut would change; give a "
                "target without"
            )
    changed = copy.deepcopy(config)
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == num_layers:
            setattr(changed, name, [value[i] for i in layers])
    changed.num_hidden_layers = len(layers)
    return changed


def kept_tokens(settings: InitSettings, target: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that the drafter's head keeps, most frequent first; empty for a whole head.

    What ends a reply and what the tokenizer calls special is kept in any case.
    """
    if settings.head_tokens is None:
        return ()
    eos = target.generation_config.eos_token_id
    always = {*tokenizer.all_special_ids, *(eos if isinstance(eos, list) else [eos])} - {None}
    paths = [Path(path).expanduser() for path in settings.token_counts]
    return most_frequent(
        TextSource(paths=paths),
        tokenizer,
        max_tokens=settings.head_tokens,
        always=sorted(always),
        vocab_size=int(target.config.vocab_size),
    )


def save_drafter(model: Any, tokenizer: Any, record: DrafterRecord, folder: Path) -> None:
    """Write a drafter as a Hugging Face folder, with its `paceline.json`."""
    make_plain(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_record(folder, record)
