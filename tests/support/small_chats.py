"""A target of random weights in a folder, with a tokenizer of whole words and a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from small_models import random_model

WORDS: Final = ("<unk>", "<end>", *(f"w{i}" for i in range(95)))
TEMPLATE: Final = (
    "{% for m in messages %}{{ m.role[0] | replace('u', 'w1') | replace('a', 'w2') "
    "| replace('s', 'w3') }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}w2 {% endif %}"
)


def write_target(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A small model and its tokenizer as a Hugging Face folder; token 1 ends a reply."""
    model = random_model(kind, **{"eos_token_id": 1, **changes})
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def word_tokenizer() -> Any:
    """A token for each of `WORDS`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    return fast


def write_prompts(file: Path, num_sessions: int) -> Path:
    """Chats of two turns, each a session of its own; every sixth is the same chat again."""
    lines = []
    for session in range(num_sessions):
        i = session % 6
        messages = [
            {"role": "user", "content": f"w{i % 90} w{(7 * i) % 90} w{(3 * i) % 90}"},
            {"role": "assistant", "content": f"w{(5 * i) % 90}"},
            {"role": "user", "content": f"w{(11 * i) % 90}"},
        ]
        lines.append(json.dumps({"session_id": f"s{session}", "messages": messages}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
