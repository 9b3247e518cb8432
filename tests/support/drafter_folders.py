"""Drafters of a small target as folders, good and bad ones, and a registry of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_folders import save_model
from paceline.caches import ModelFingerprint
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, namespace_of

MODEL = ModelFingerprint(model="target", tokenizer="bytes")


def open_registry(url: str, folder: Path, fingerprint: ModelFingerprint = MODEL) -> DrafterRegistry:
    """A registry for the calling thread."""
    store = JournalStore(RedisAddress(url).connect(), JournalKeys(namespace_of(fingerprint)))
    return DrafterRegistry(store, folder)


def save_drafter(folder: Path, **changes: Any) -> Path:
    """A drafter of the target that `save_model` makes without changes."""
    folder.mkdir(parents=True)
    return save_model(folder, **changes)


def truncate(folder: Path) -> None:
    """Lose the end of the weights."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def poison(folder: Path) -> None:
    """One weight is no number."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def drop_weights(folder: Path) -> None:
    """One layer's weights are missing."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def widen_vocabulary(folder: Path) -> None:
    """The configuration speaks of another vocabulary."""
    file = folder / "config.json"
    config = json.loads(file.read_bytes())
    config["vocab_size"] += 64
    file.write_text(json.dumps(config), encoding="utf-8")
