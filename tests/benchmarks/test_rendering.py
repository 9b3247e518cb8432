"""How recorded messages become a model's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.benchmarks.rendering import cut_prompt, requests_of
from paceline.benchmarks.replay.episodes import MAX_PROMPT_TOKENS, load_scopes
from paceline.benchmarks.replay.tokens import Renderer, TokenCache, load_encoder
from paceline.benchmarks.traces import read_recorded
from paceline.errors import ConfigError
from recorded import write_tokenizer, write_trace

START, END = 256, 257
CALL = {"function": {"name": "list_files", "arguments": '{"folder": "/src"}'}}


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    """One token a byte."""
    return Renderer(load_encoder(str(write_tokenizer(tmp_path / "tokenizer"))))


def test_a_reply_reads_in_later_prompts_as_it_was_said(renderer: Renderer, tmp_path: Path) -> None:
    """Each measured reply gives one request, and stands in the next prompt token for token."""
    write_trace(
        tmp_path,
        "s",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Shown.", "demo": True},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Said."},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "Three."},
        ],
    )
    (episode,) = read_recorded(tmp_path, "s")
    first, second = requests_of(episode, renderer, context_tokens=10_000)
    assert (first.turn, second.turn) == (0, 1)
    assert list(first.output_ids) == [*renderer.encode(["Said."])[0], END]
    said = first.prompt_ids + first.output_ids
    assert second.prompt_ids[: len(said)] == said
    header = renderer.frame.headers["assistant"].tolist()
    assert header[0] == START
    assert list(second.prompt_ids[-len(header) :]) == header
    (only,) = requests_of(episode, renderer, context_tokens=40, output_tokens=3, max_requests=1)
    assert (len(only.prompt_ids), len(only.output_ids)) == (40, 3)


@pytest.mark.parametrize("num_words", [10, 3000])
def test_requests_are_those_of_the_replay(
    renderer: Renderer, tmp_path: Path, num_words: int
) -> None:
    """With a context of 8192 tokens prompts and replies equal the replay's, cut or not."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "word " * num_words},
        {"role": "assistant", "content": "Said.", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    write_trace(tmp_path, "s", messages)
    (scope,) = load_scopes(tmp_path, "s", TokenCache(tmp_path / "cache", renderer))
    replayed = [
        (scope.episodes[0].prompt(turn).tolist(), scope.episodes[0].output(turn).tolist())
        for turn in scope.episodes[0].turns
    ]
    (episode,) = read_recorded(tmp_path, "s")
    requests = requests_of(episode, renderer, context_tokens=MAX_PROMPT_TOKENS)
    assert [(list(r.prompt_ids), list(r.output_ids)) for r in requests] == replayed


@pytest.mark.parametrize(
    ("num_system", "num_rest", "kept_system", "kept_rest"),
    [(2, 5, 2, 5), (2, 7, 2, 6), (2, 50, 2, 6), (7, 7, 6, 2), (0, 20, 0, 8)],
)
def test_a_cut_prompt_keeps_the_system_message_and_the_newest_tokens(
    num_system: int, num_rest: int, kept_system: int, kept_rest: int
) -> None:
    """Of 8 tokens the system message keeps at most 6, the newest of the rest take what is left."""
    system, rest = list(range(num_system)), list(range(100, 100 + num_rest))
    assert cut_prompt(system, rest, 8) == system[:kept_system] + rest[num_rest - kept_rest :]


def test_an_unknown_role_is_named(renderer: Renderer, tmp_path: Path) -> None:
    """A message that no header exists for cannot be rendered."""
    write_trace(tmp_path, "s", [{"role": "judge", "content": "No."}])
    (episode,) = read_recorded(tmp_path, "s")
    with pytest.raises(ConfigError, match="role 'judge'; known are system, user"):
        list(requests_of(episode, renderer, context_tokens=10))
