"""Prompts out of JSON lines, and which sessions are held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from paceline.errors import ConfigError
from paceline.online.prompts import Prompt, prompt_tokens, read_prompts, split
from small_chats import word_tokenizer


def write(file: Path, *rows: Any) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def chat(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"{role}{i}"} for i, role in enumerate(roles)]


def test_each_reply_of_a_chat_gives_a_prompt(tmp_path: Path) -> None:
    """What was said before it; and the whole, if a user had the last word."""
    messages = chat("system", "user", "assistant", "user", "assistant", "user")
    file = write(tmp_path / "p.jsonl.gz", {"episode_id": "e", "messages": messages})
    assert [len(it.messages) for it in read_prompts([file])] == [2, 4, 6]
    assert {it.session for it in read_prompts([file])} == {"e"}


def test_texts_are_prompts_of_a_user(tmp_path: Path) -> None:
    """`prompt` and `text` alike; without a name each line is a session."""
    file = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"text": "b"})
    prompts = read_prompts([file])
    assert [it.messages[0] for it in prompts] == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    assert len({it.session for it in prompts}) == 2


def test_messages_without_content_are_empty(tmp_path: Path) -> None:
    """As where an assistant only calls tools: templates want text."""
    row = {"messages": [{"role": "user", "content": None}]}
    assert read_prompts([write(tmp_path / "p.jsonl", row)])[0].messages[0]["content"] == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "is no JSON object"),
        ('{"a": 1}', "has neither messages nor prompt nor text"),
        ('{"text": " "}', "has neither messages"),
        ('{"messages": [{"content": "a"}]}', "has a message without a role"),
        ("", "no prompt was found"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    """File and line, and what is wanted."""
    file = tmp_path / "p.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_prompts([file])


def test_an_empty_prompt_is_refused() -> None:
    """Nothing could follow it; its session is named."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="a prompt of session s is empty"):
        prompt_tokens([Prompt("s", ({"role": "user", "content": ""},))], tokenizer, max_tokens=9)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Its path, and what to give."""
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl cannot be read"):
        read_prompts([tmp_path / "nowhere.jsonl"])


def test_a_session_is_held_out_whole_and_always() -> None:
    """By its name alone: more sessions, other files and other seeds move none across."""
    prompts = [Prompt(f"s{i % 200}", ({"role": "user", "content": str(i)},)) for i in range(600)]
    train, held_out = split(prompts, held_out_share=0.2, seed=0)
    sessions = [{it.session for it in part} for part in (train, held_out)]
    assert not sessions[0] & sessions[1]
    assert 20 <= len(sessions[1]) <= 60
    again, held_out_again = split(prompts[:300], held_out_share=0.2, seed=5)
    assert {it.session for it in held_out_again} <= sessions[1]
    assert len(again) + len(held_out_again) == 300


def test_order_depends_on_the_seed_alone() -> None:
    """The same seed gives the same order, another seed another."""
    prompts = [Prompt(f"s{i}", ()) for i in range(100)]
    one, two, other = (split(prompts, held_out_share=0.3, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_too_few_sessions_are_refused() -> None:
    """With nothing held out there would be no report."""
    with pytest.raises(ConfigError, match=r"of 1 sessions a share of 0\.1 leaves"):
        split([Prompt("a", ())], held_out_share=0.1, seed=0)


def test_a_long_prompt_keeps_its_beginning_and_end() -> None:
    """The first quarter and the newest, as the template rendered them."""
    tokenizer = word_tokenizer()
    content = " ".join(f"w{i}" for i in range(40))
    prompt = Prompt("s", ({"role": "user", "content": content},))
    [whole] = prompt_tokens([prompt], tokenizer, max_tokens=100)
    assert len(whole) == 43  # the role, forty words, the end, and the role that answers
    other = Prompt("t", ({"role": "user", "content": "w1"},))
    short = prompt_tokens([prompt, other], tokenizer, max_tokens=12)
    assert short == [whole[:3] + whole[-9:], *prompt_tokens([other], tokenizer, max_tokens=12)]


def test_without_a_template_texts_are_read_as_they_are() -> None:
    """A base model is asked to go on with the text."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    prompt = Prompt("s", ({"role": "user", "content": "w4 w5"},))
    assert prompt_tokens([prompt], tokenizer, max_tokens=9) == [[6, 7]]
