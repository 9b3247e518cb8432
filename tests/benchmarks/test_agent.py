"""What `paceline bench agent` computes from replies, and the whole of it on a small real run."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paceline.benchmarks.agent import EpisodeResult, Reply, figures
from paceline.benchmarks.loops import has_loop
from paceline.benchmarks.metrics import SpeculationCounts
from paceline.benchmarks.report import Report
from paceline.benchmarks.traces import Message, cut, read_episodes
from paceline.errors import ConfigError
from paceline.middleware.cli import cli


class Words:
    """A tokenizer of one token a word."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        start = len(self.words)
        self.words.extend(text.split())
        return list(range(start, len(self.words)))

    def decode(self, token_ids: list[int]) -> str:
        return " ".join(self.words[i] for i in token_ids)


def write_trace(folder: Path, source: str, *episodes: list[dict[str, Any]]) -> None:
    rows = [
        {"model": "m", "episode_id": f"{source}-{number}", "messages": messages}
        for number, messages in enumerate(episodes)
    ]
    with gzip.open(folder / f"{source}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


CALL = {"function": {"name": "list_files", "arguments": '{"folder": "/src"}'}}
EPISODE: list[dict[str, Any]] = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "Shown as an example."},
    {"role": "assistant", "content": "An example.", "demo": True},
    {"role": "user", "content": "List the files and say which is the longest."},
    {"role": "assistant", "content": "I list them.", "tool_calls": [CALL]},
    {"role": "tool", "content": "a.py 12 lines\nb.py 90 lines"},
    {"role": "assistant", "content": "b.py is the longest."},
]


def test_every_reply_of_a_model_gives_one_context(tmp_path: Path) -> None:
    """Contexts are what stood before each recorded reply; demonstrations are only context."""
    write_trace(tmp_path, "tau-bench", EPISODE)
    (episode,) = read_episodes(tmp_path, "tau-bench")
    assert [len(context) for context in episode.contexts] == [4, 6]
    called = episode.contexts[1][4].content
    assert called.startswith("I list them.\n<tool_call>\n")
    assert '"arguments": {"folder": "/src"}' in called


def test_an_unknown_source_is_named_with_the_known_ones(tmp_path: Path) -> None:
    """A wrong folder or name says what is there."""
    write_trace(tmp_path, "tau-bench", EPISODE)
    with pytest.raises(ConfigError, match=r"tau2.*does not exist.*tau-bench"):
        next(read_episodes(tmp_path, "tau2"))


@pytest.mark.parametrize("max_tokens", [4, 9, 12, 100])
def test_a_cut_keeps_the_newest_words(max_tokens: int) -> None:
    """The system message's head and the newest words stay, never more than allowed."""
    messages = (
        Message("system", "s1 s2 s3 s4"),
        Message("user", "u1 u2 u3 u4"),
        Message("assistant", "a1 a2 a3"),
    )
    kept = cut(messages, Words(), max_tokens=max_tokens)
    words = [word for message in kept for word in message.content.split()]
    assert len(words) <= max_tokens
    assert words[0] == "s1"
    assert words[-1] == "a3"
    if max_tokens == 100:
        assert kept == list(messages)
    if max_tokens == 9:
        assert [m.content for m in kept] == ["s1 s2 s3 s4", "u3 u4", "a1 a2 a3"]


@pytest.mark.parametrize(
    ("token_ids", "loops"),
    [
        (list(range(8)) * 4, True),
        (list(range(8)) * 3, False),
        ([1] * 11, True),
        ([1] * 10, False),
        (list(range(100)), False),
    ],
)
def test_a_loop_is_an_eight_gram_four_times(token_ids: list[int], *, loops: bool) -> None:
    """Overlapping repeats count."""
    assert has_loop(token_ids) is loops


def result(token_ids: list[int], seconds: float, **counts: float) -> EpisodeResult:
    reply = Reply(tuple(token_ids), seconds / 2, seconds)
    return EpisodeResult("tau-bench", "e", [reply], SpeculationCounts(requests=1, **counts))


def test_figures_compare_episode_by_episode() -> None:
    """Ratios are medians of the episodes' ratios; a differing token is seen."""
    tokens = list(range(11))
    flat = figures(
        {
            "off": [result(tokens, 2.0, generated=11), result(tokens, 2.0, generated=11)],
            "paceline": [
                result(tokens, 1.0, generated=11, drafted=8, accepted=5),
                result([*tokens[:-1], 99], 0.5, generated=11, drafted=2, accepted=0),
            ],
        }
    )
    assert flat["tau-bench.ratio_to_off"] == pytest.approx(3.0)
    assert flat["tau-bench.decode_ratio_to_off"] == pytest.approx(3.0)
    assert flat["tau-bench.identical_to_off"] == 1
    assert flat["tau-bench.paceline.accepted_per_drafted"] == pytest.approx(0.5)
    assert flat["tau-bench.paceline.tokens_per_step"] == pytest.approx(20 / 15)
    assert flat["tau-bench.off.tokens_per_step"] == 1
    assert math.isnan(flat["tau-bench.off.accepted_per_drafted"])


def test_a_report_is_flat_numbers_and_where_they_come_from() -> None:
    """The JSON has the five fields every benchmark writes; what was not measured is left out."""
    report = json.loads(Report("x", {"rounds": 1}, {"a": 1.5, "b": math.nan}).as_json())
    assert set(report) == {"bench", "version", "machine", "settings", "figures"}
    assert report["figures"] == {"a": 1.5}


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_whole_benchmark_on_a_small_real_run(target_folder: Path, tmp_path: Path) -> None:
    """Two short episodes on a real vLLM with and without speculation: every token is the same."""
    write_trace(tmp_path, "tau-bench", EPISODE, EPISODE)
    arguments = ["bench", "agent", "--traces", str(tmp_path), "--model", str(target_folder)]
    arguments += ["--source", "tau-bench", "--variant", "off", "--variant", "paceline"]
    arguments += ["--output-tokens", "24", "--context-tokens", "256", "--eager"]
    done = CliRunner().invoke(
        cli, [*arguments, "--json", str(tmp_path / "agent.json")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "agent.json").read_text())
    measured = report["figures"]
    assert measured["tau-bench.off.requests"] == 4
    assert measured["tau-bench.identical_to_off"] == 4
    assert measured["tau-bench.paceline.accepted_tokens"] > 10
    assert measured["tau-bench.paceline.tokens_per_step"] > 1.2
    assert "tau-bench.off.accepted_per_drafted" not in measured
