"""How recorded messages become a model's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.benchmarks.rendering import Renderer, cut_prompt, requests_of
from paceline.benchmarks.traces import read_recorded
from paceline.errors import ConfigError
from recorded import SPECIAL_TOKENS, write_tokenizer, write_trace

START, END = 256, 257


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    """One token a byte."""
    return Renderer.load(write_tokenizer(tmp_path / "tokenizer"))


def test_a_message_is_encoded_in_parts(renderer: Renderer) -> None:
    """Role, body and tail stand between the two special tokens."""
    header = renderer.header("user")
    assert (header[0], len(header)) == (START, 6)
    output = renderer.output("Hi.")
    assert (output[-1], len(output)) == (END, 4)


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_tokens_in_a_body_are_text(renderer: Renderer, special: str) -> None:
    """A body that quotes a special token cannot end its message."""
    output = renderer.output(f"a{special}b")
    assert output.count(START) == 0
    assert output.count(END) == 1
    assert len(output) == len(special) + 3


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
    assert list(first.output_ids) == renderer.output("Said.")
    said = first.prompt_ids + first.output_ids
    assert second.prompt_ids[: len(said)] == said
    assert list(second.prompt_ids[-len(renderer.header("assistant")) :]) == renderer.header(
        "assistant"
    )
    (only,) = requests_of(episode, renderer, context_tokens=40, output_tokens=3, max_requests=1)
    assert (len(only.prompt_ids), len(only.output_ids)) == (40, 3)


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


def test_a_tokenizer_without_the_delimiters_is_refused(tmp_path: Path) -> None:
    """No tokenizer, or one of another chat format, is named with what is missing."""
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        Renderer.load(tmp_path)
    folder = write_tokenizer(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|other|>"))
    with pytest.raises(ConfigError, match=r"<\|im_end\|>"):
        Renderer.load(folder)
