"""A small generated trace in the files' format, and a small real tokenizer for it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

WORDS = ("open", "read", "file", "line", "edit", "test", "run", "fails", "passes", "then", "done")


def write_rows(folder: Path, source: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / f"{source}.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def generated_rows(source: str, *, num_episodes: int, seed: int) -> list[dict[str, Any]]:
    """Two models that take turns; each episode repeats much of what was said before."""
    rng = random.Random(seed)  # noqa: S311  test data
    phrases = [" ".join(rng.choices(WORDS, k=6)) for _ in range(8)]
    rows = []
    for number in range(num_episodes):
        messages: list[dict[str, Any]] = [{"role": "system", "content": "you are an agent"}]
        for _ in range(3):
            messages.append({"role": "user", "content": " ".join(rng.choices(phrases, k=3))})
            call = {"function": {"name": "run", "arguments": rng.choice(phrases)}}
            said = " ".join([*rng.choices(phrases, k=2), rng.choice(WORDS)])
            messages.append({"role": "assistant", "content": said, "tool_calls": [call]})
            messages.append({"role": "tool", "content": rng.choice(phrases)})
        rows.append(
            {
                "source": source,
                "model": ("m", "n")[number % 2],
                "episode_id": f"{source}-{number}",
                "task_group": f"task-{number // 4}",
                "messages": messages,
            }
        )
    return rows


def save_tokenizer(folder: Path) -> Path:
    """One token a byte, beside ChatML's two markers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: number for number, byte in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
