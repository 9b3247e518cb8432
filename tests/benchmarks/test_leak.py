"""`paceline bench leak` hears real streams, tells prompts apart, and finds nothing in noise."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.leak.classify import CLASSIFIERS, FEATURES, accuracy, features_of
from paceline.benchmarks.leak.command import LeakSettings, run_leak
from paceline.benchmarks.leak.eavesdropper import Trace
from paceline.benchmarks.leak.prompts import make_prompts, read_prompts
from paceline.benchmarks.leak.recordings import (
    Recording,
    Recordings,
    RecordSettings,
    read_recordings,
    record,
    write_recordings,
)
from paceline.benchmarks.leak.ways import Shaping
from paceline.errors import ConfigError
from paceline.middleware.cli import cli

HOW = RecordSettings(repeats=2, output_tokens=8, temperature=0.3)


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def recording(prompt: int, repeat: int, *, speculated: bool) -> Recording:
    """A stream whose events are longer, and further apart, the higher the prompt's number."""
    words = [event("word" * (number % (prompt + 2))) for number in range(5)]
    pieces = [(0.01 + 0.01 * number * (prompt + 1), word) for number, word in enumerate(words)]
    pieces.append((pieces[-1][0], b"data: [DONE]\n\n"))
    return Recording(prompt=prompt, repeat=repeat, speculated=speculated, pieces=tuple(pieces))


def small_recordings() -> Recordings:
    streams = [
        recording(prompt, repeat, speculated=speculated)
        for repeat in range(2)
        for prompt in range(3)
        for speculated in (True, False)
    ]
    return Recordings(how=HOW, streams=streams)


def trace(prompt: int, repeat: int, *sizes: int, gap: float = 0.1) -> Trace:
    times = tuple(gap * (number + 1) for number in range(len(sizes)))
    return Trace(prompt, repeat, times, sizes, b"")


def test_what_is_heard_is_what_the_engine_said_and_when() -> None:
    """Events are found in chunks that cut them, each with the time of the read that ended it."""
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    parts = [
        head + b"9\r\ndata: 1\n\n\r\n",
        b"c\r\n:   \n\ndata: \r\n",
        b"6\r\nx\n\n:\n\n\r\n" + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    ]
    heard = Trace(0, 0, (0.5, 1.0, 2.5), tuple(map(len, parts)), b"".join(parts))
    assert heard.said == b"data: 1\n\ndata: x\n\ndata: [DONE]\n\n"
    assert heard.body.count(b"data") == 3
    assert [heard.seconds_of(number) for number in (0, 1, -1)] == [0.5, 1.0, 2.5]
    assert heard.seconds == 2.5


def test_features_are_padded_and_bounded() -> None:
    """One row a trace, whatever its length; gaps begin with the request."""
    traces = [trace(0, 0, *range(1, 500)), trace(1, 0, 7)]
    assert features_of(traces, "sizes")[1, :2].tolist() == [7.0, 0.0]
    assert features_of(traces, "times")[1, :2].tolist() == [0.1, 0.0]
    assert features_of(traces, "length").tolist()[1] == [1.0, 7.0, 0.1]
    widths = [features_of(traces, kind).shape[1] for kind in FEATURES]
    assert widths[-1] == sum(widths[:-1])


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_streams_that_differ_are_told_apart_and_equal_ones_are_not(classifier: str) -> None:
    """Every prompt is named where sizes tell it; where nothing does, one in so many is."""
    telling = [trace(p, r, 100 * p, 300 + r, 50 * p) for p in range(4) for r in range(4)]
    silent = [trace(p, r, 1024, 1024, 1024) for p in range(4) for r in range(4)]
    assert accuracy(telling, "sizes", classifier, folds=2) == 1.0
    assert accuracy(silent, "all", classifier, folds=2) == 0.25


def test_a_small_run_measures_every_way(tmp_path: Path) -> None:
    """A real proxy passes on what was recorded, unchanged in every way; nothing is timed here."""
    settings = LeakSettings(
        shaping=Shaping(interval_ms=20, bytes_per_tick=1024, round_ticks=5),
        folds=2,
        concurrency=4,
        crowd=3,
    )
    figures = run_leak(small_recordings(), settings, tmp_path)
    assert figures["differing"] == 0
    assert figures["streams"] == 6
    assert figures["chance"] == pytest.approx(1 / 3)
    for way in ("undrafted", "open", "aggregate", "padded"):
        for kind in FEATURES:
            assert 0 <= figures[f"{way}_{kind}_forest"] <= 1
    assert figures["padded_bytes_times"] > 2 > figures["aggregate_bytes_times"]
    assert figures["padded_added_end_ms"] > figures["padded_added_last_event_ms"]
    assert figures["crowd_padded_cpu_us_per_tick"] >= 0


def test_recordings_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Bytes and times survive; other files are refused by name."""
    recordings, path = small_recordings(), tmp_path / "there" / "recordings.bin"
    write_recordings(recordings, path)
    assert read_recordings(path) == recordings
    assert recordings.num_prompts == 3
    assert recordings.streams[recordings.longest].prompt == 2
    path.write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"recordings\.bin holds no recordings"):
        read_recordings(path)
    write_recordings(Recordings(how=HOW, streams=[]), path)
    with pytest.raises(ConfigError, match="no streams"):
        read_recordings(path)


def test_prompts_are_dealt_from_every_file(tmp_path: Path) -> None:
    """As many of each file, the same ones for a seed, no prompt twice; too few are refused."""
    for name in ("a", "b"):
        lines = [json.dumps({"turns": [f"{name} {number % 4}", "more"]}) for number in range(8)]
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    prompts = read_prompts(tmp_path, 4, seed=1)
    assert len(set(prompts)) == 4
    assert prompts == read_prompts(tmp_path, 4, seed=1)
    assert len(read_prompts(tmp_path, 8, seed=1)) == 8
    with pytest.raises(ConfigError, match="8 different prompts, 9 are wanted"):
        read_prompts(tmp_path, 9, seed=1)
    with pytest.raises(ConfigError, match="holds no"):
        read_prompts(tmp_path / "none", 1, seed=1)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"turns": []}')
    with pytest.raises(ConfigError, match=r"c\.jsonl\.gz, line 1"):
        read_prompts(tmp_path, 1, seed=1)


def test_made_up_prompts_differ_and_come_again() -> None:
    """Nobody needs a folder of traces to try it."""
    assert len(set(make_prompts(40, seed=1))) == 40
    assert make_prompts(3, seed=1) == make_prompts(3, seed=1) != make_prompts(3, seed=2)


@pytest.mark.parametrize(
    ("option", "value"), [("--num-prompts", "1"), ("--repeats", "1"), ("--concurrency", "0")]
)
def test_settings_that_measure_nothing_are_refused(option: str, value: str) -> None:
    """Before anything is started."""
    done = CliRunner().invoke(cli, ["bench", "leak", option, value])
    assert done.exit_code == 1
    assert f"{option} is {value}" in done.output


@pytest.mark.model
def test_the_engines_streams_are_recorded_with_drafts_and_without(tmp_path: Path) -> None:
    """Both streams of a repeat say the same; with drafts, remembered words come several at once."""
    prompts = ["Repeat: one two three four five six seven eight nine ten.", "Count to five."]
    how = RecordSettings(repeats=2, output_tokens=24, temperature=0.05, always_draft=True)
    done: list[int] = []
    streams = record(prompts, how, tmp_path / "engine.log", on_done=done.append).streams
    assert sum(done) == 2 + 8
    assert [(s.prompt, s.repeat) for s in streams[::2]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for drafted, undrafted in zip(streams[::2], streams[1::2], strict=True):
        assert (drafted.speculated, undrafted.speculated) == (True, False)
        assert said(drafted) == said(undrafted)
        times = [seconds for seconds, _ in drafted.pieces]
        assert times == sorted(times)
    count = {
        flag: sum(len(s.pieces) for s in streams if s.speculated is flag) for flag in (True, False)
    }
    assert count[True] < count[False]


def said(stream: Recording) -> str:
    events = [part.removeprefix(b"data: ") for part in stream.body.split(b"\n\n") if part]
    assert events.pop() == b"[DONE]"
    return "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events)
