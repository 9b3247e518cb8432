"""A small recorded trace, and a model folder without weights that can be made to say it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>"]


def write_trace(folder: Path, source: str, *episodes: list[dict[str, Any]]) -> None:
    """`source`'s trace file, one episode for each list of messages."""
    rows = [
        {"model": "m", "episode_id": f"{source}-{number}", "messages": messages}
        for number, messages in enumerate(episodes)
    ]
    with gzip.open(folder / f"{source}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of one token a byte, 256 tokens and the two that delimit messages."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def write_model_config(folder: Path) -> Path:
    """A tiny Llama's config: no weights, no tokenizer."""
    folder.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "vocab_size": 320,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
