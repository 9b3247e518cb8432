"""Recorded messages become the tokens that the protocol says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paceline.benchmarks.replay.episodes import Episode, Scope, Turn, is_reporting, load_scopes
from paceline.benchmarks.replay.run import requests_of
from paceline.benchmarks.replay.tokens import Renderer, TokenCache, load_encoder
from paceline.errors import ConfigError
from small_traces import save_tokenizer, write_rows

START, END = 1, 2


class Letters:
    """One token a character (its code point), and the two markers; counts what it encodes."""

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode_batch(self, input: list[str], *, add_special_tokens: bool) -> list[Any]:
        assert not add_special_tokens
        self.num_encoded += len(input)
        return [SimpleNamespace(ids=[ord(c) for c in text]) for text in input]

    def token_to_id(self, token: str) -> int | None:
        return {"<|im_start|>": START, "<|im_end|>": END}.get(token)

    def to_str(self) -> str:
        return "letters"


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "state", Renderer(Letters()))


def rendered(role: str, body: str) -> list[int]:
    return [START, *map(ord, f"{role}\n"), *map(ord, body), END, ord("\n")]


CALL = {"id": "call-7", "function": {"name": "ls", "arguments": '{"a":1}'}}
CALLED = '<tool_call>\n{"name": "ls", "arguments": {"a":1}}\n</tool_call>'
ROW: dict[str, Any] = {
    "model": "m",
    "episode_id": "e0",
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "assistant", "content": "hello", "canned": True},
        {"role": "user", "content": "<|im_end|>?"},
        {"role": "assistant", "content": "I look", "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "tool", "content": "f", "tool_call_id": "call-7", "name": "ls"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "", "reasoning": "only thought"},
    ],
}


def load(cache: TokenCache, folder: Path, *rows: dict[str, Any], source: str = "s") -> list[Scope]:
    write_rows(folder, source, list(rows))
    return load_scopes(folder, source, cache)


def test_prompt_and_output_are_the_protocols(cache: TokenCache, tmp_path: Path) -> None:
    """Header, body and tail are encoded apart; tool calls are verbatim; reasoning is nowhere."""
    (scope,) = load(cache, tmp_path, ROW)
    first, second = requests_of(scope)
    before = [
        *rendered("system", "S"),
        *rendered("assistant", "hello"),
        *rendered("user", "<|im_end|>?"),
    ]
    header = [START, *map(ord, "assistant\n")]
    assert first.prompt_ids.tolist() == before + header
    assert first.output_ids == [*map(ord, f"I look\n{CALLED}"), END]
    before += rendered("assistant", f"I look\n{CALLED}") + rendered("tool", "f")
    assert second.prompt_ids.tolist() == before + header
    assert second.output_ids == [*map(ord, f"\n{CALLED}\n{CALLED}"), END]


def test_a_long_prompt_keeps_its_system_message_and_its_end(
    cache: TokenCache, tmp_path: Path
) -> None:
    """8192 tokens: all of the system message, then the newest, across borders of messages."""
    messages = [
        {"role": "system", "content": "S" * 100},
        {"role": "user", "content": "u" * 5000},
        {"role": "user", "content": "v" * 5000},
        {"role": "assistant", "content": "x"},
    ]
    (scope,) = load(cache, tmp_path, {"model": "m", "episode_id": "e", "messages": messages})
    (request,) = requests_of(scope)
    system = rendered("system", "S" * 100)
    full = [*rendered("user", "u" * 5000), *rendered("user", "v" * 5000)]
    full += [START, *map(ord, "assistant\n")]
    assert len(request.prompt_ids) == 8192
    assert request.prompt_ids.tolist() == system + full[-(8192 - len(system)) :]


def test_at_most_6144_tokens_of_a_system_message_are_kept() -> None:
    """The cut takes the head of a longer one, and never shows its tail twice."""
    stream = np.arange(20_000, dtype=np.int32)
    episode = Episode("e", "s", stream, 7000, (Turn(19_000, 20_000),), False, False)
    prompt = episode.prompt(episode.turns[0]).tolist()
    assert prompt == [*range(6144), *range(19_000 - 2048, 19_000)]
    short = Episode("e", "s", stream, 7000, (Turn(8192, 9000),), False, False)
    assert short.prompt(short.turns[0]).tolist() == [*range(8192)]
    nearly_all_system = Episode("e", "s", stream, 8000, (Turn(8200, 9000),), False, False)
    assert nearly_all_system.prompt(nearly_all_system.turns[0]).tolist() == [
        *range(6144),
        *range(8000, 8200),
    ]


def episode_row(number: int, *, model: str = "m", task: str, session: str | None = None) -> Any:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"model": model, "episode_id": f"e{number}", "task_group": task, "messages": messages}
    return row | ({"session_id": session} if session else {})


def test_seen_is_an_earlier_session_of_the_same_model_and_task(
    cache: TokenCache, tmp_path: Path
) -> None:
    """Neither an episode of the same session nor one of another model makes a task seen."""
    scopes = load(
        cache,
        tmp_path,
        episode_row(0, task="t"),
        episode_row(1, task="t", model="n"),
        episode_row(2, task="u", session="x"),
        episode_row(3, task="u", session="x"),
        episode_row(4, task="t"),
        episode_row(5, task="u", session="y"),
    )
    assert [(scope.model, [e.seen for e in scope.episodes]) for scope in scopes] == [
        ("m", [False, False, False, True, True]),
        ("n", [False]),
    ]


def test_a_half_depends_on_the_episodes_id_alone() -> None:
    """The split is fixed: these sides never change, and both halves are populated."""
    assert [is_reporting(f"e{number}") for number in range(8)] == SIDES
    sides = [is_reporting(f"episode-{number}") for number in range(2000)]
    assert 0.45 < sum(sides) / len(sides) < 0.55


SIDES = [False, True, False, False, False, True, True, True]


def test_only_mini_swe_agent_is_capped(cache: TokenCache, tmp_path: Path) -> None:
    """Its first forty episodes of each model; other sources whole."""
    rows = [episode_row(n, task="t", model=("m", "n")[n % 2]) for n in range(90)]
    capped = load(cache, tmp_path, *rows, source="mini-swe-agent")
    assert [[e.episode_id for e in s.episodes] for s in capped] == [
        [f"e{n}" for n in range(0, 80, 2)],
        [f"e{n}" for n in range(1, 81, 2)],
    ]
    whole = load(cache, tmp_path, *rows, source="other")
    assert [len(scope.episodes) for scope in whole] == [45, 45]


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    """A second run reads them from disk, however many episodes it wants; another encodes anew."""
    rows = [episode_row(n, task="t") for n in range(4)]
    write_rows(tmp_path, "s", rows)
    encoder = Letters()
    cache = TokenCache(tmp_path / "state", Renderer(encoder))
    first = load_scopes(tmp_path, "s", cache)
    frame = encoder.num_encoded
    again = load_scopes(tmp_path, "s", cache)
    fewer = load_scopes(tmp_path, "s", cache, num_episodes=2)
    assert encoder.num_encoded == frame
    assert first[0].digest == again[0].digest != fewer[0].digest
    assert [e.stream.tolist() for e in fewer[0].episodes] == [
        e.stream.tolist() for e in first[0].episodes[:2]
    ]
    write_rows(tmp_path, "s", [*rows, episode_row(9, task="t", model="n")])
    load_scopes(tmp_path, "s", cache)
    assert encoder.num_encoded > frame


def test_the_markers_must_be_tokens() -> None:
    """A tokenizer without ChatML's markers is refused with the way out."""
    with pytest.raises(ConfigError, match="--turn-start"):
        Renderer(Letters(), turn_start="<|nobody|>")


def test_an_unknown_role_is_named(cache: TokenCache, tmp_path: Path) -> None:
    """A message that the protocol cannot render is no silent gap."""
    row = {"model": "m", "episode_id": "e", "messages": [{"role": "critic", "content": "no"}]}
    with pytest.raises(ConfigError, match="critic"):
        load(cache, tmp_path, row)


def test_half_a_character_does_not_stop_a_replay(cache: TokenCache, tmp_path: Path) -> None:
    """A lone surrogate in a recorded text stands for an unknown character."""
    messages = [{"role": "user", "content": "a\ud83d"}, {"role": "assistant", "content": "b"}]
    (scope,) = load(cache, tmp_path, {"model": "m", "episode_id": "e", "messages": messages})
    assert 0xFFFD in scope.episodes[0].stream


def test_special_text_in_a_body_is_plain_text(tmp_path: Path) -> None:
    """With a real tokenizer, what an agent quotes never becomes a marker."""
    encoder = load_encoder(str(save_tokenizer(tmp_path)))
    renderer = Renderer(encoder)
    (ids,) = renderer.encode(["<|im_end|>"])
    assert len(ids) == len("<|im_end|>")
    assert renderer.frame.end not in ids


@pytest.mark.model
def test_the_packaged_tokenizer_splits_digits_singly() -> None:
    """SmolLM2's own rule, which its packaged file does not carry."""
    encoder = load_encoder(None)
    (encoding,) = encoder.encode_batch(["   12 a<|im_end|>"], add_special_tokens=False)
    assert encoding.tokens[:4] == ["ĠĠĠ", "1", "2", "Ġa"]
    assert "<|im_end|>" not in encoding.tokens
