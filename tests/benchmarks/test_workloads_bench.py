"""`paceline bench workloads` on small generated traces, and its measures by hand."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.workloads.namings import by_birch, by_clusters, by_fingerprint, by_kmeans
from paceline.benchmarks.workloads.run import alone, names_per_kind, purity
from paceline.benchmarks.workloads.sessions import (
    LabelledSession,
    as_recorded,
    is_for_tuning,
    read_sessions,
    with_details,
    without_prompts,
)
from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from paceline.policies.text_features import TextFeatures
from small_traces import write_rows


def manual(seed: int) -> str:
    """A system prompt as long as agents have them; different seeds share no sentence."""
    rng = random.Random(seed)  # noqa: S311  test data
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    words = ["".join(rng.choices(syllables, k=3)) for _ in range(400)]
    return " ".join(words)


AGENTS = {"pilot": manual(1), "coder": manual(2)}
SUBJECTS = ("singers", "airports", "concerts", "stadiums", "orchestras", "battles")


def rows(source: str, *, count: int) -> list[dict[str, Any]]:
    """Two agents with system prompts and one without, in turns."""
    made = []
    for number in range(count):
        for agent in (*AGENTS, "asker"):
            subject = SUBJECTS[number % len(SUBJECTS)]
            opening = f'Query: "how many {subject} of {number}?". Do not generate any output.'
            messages = [{"role": "user", "content": opening}]
            if agent in AGENTS:
                messages = [
                    {"role": "system", "content": AGENTS[agent]},
                    {"role": "user", "content": f"{agent}: please help me with {subject}"},
                ]
            made.append(
                {
                    "source": source,
                    "agent": agent,
                    "model": "m",
                    "episode_id": f"{source}-{agent}-{number}",
                    "task_group": f"{agent}:{number}",
                    "tools_ref": "shared" if agent == "pilot" else None,
                    "messages": messages,
                }
            )
    return made


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    write_rows(tmp_path, "small", rows("small", count=12))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "shared.json").write_text('[{"name": "book_flight"}]')
    return tmp_path


def test_sessions_are_labelled_and_worded(traces: Path) -> None:
    """Kinds are source, agent and family; each wording is what its name says."""
    sessions = read_sessions(traces, max_per_kind=10)
    assert len(sessions) == 30
    first = sessions[0]
    assert (first.kind, first.family) == ("small/pilot/pilot", "pilot")
    assert first.tools == '[{"name": "book_flight"}]'
    assert first.parts() == (AGENTS["pilot"], first.tools, "")
    assert sessions[2].parts()[2].startswith("Query")
    assert len(as_recorded(sessions)) == 30
    dated = with_details(sessions)
    assert len({s.system for s in dated if s.system}) == 20
    assert all(d.system.endswith(s.system) for d, s in zip(dated, sessions, strict=True))
    bare = without_prompts(sessions)
    assert {s.system + s.tools for s in bare} == {""}
    assert 0 < sum(map(is_for_tuning, sessions)) < 30


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    """The message says what is expected."""
    with pytest.raises(ConfigError, match=r"has no \*.jsonl.gz"):
        read_sessions(tmp_path, max_per_kind=10)


def test_measures_by_hand() -> None:
    """Purity, names a kind and sessions alone with their name, on six sessions."""
    kinds = ["a", "a", "a", "b", "b", "c"]
    names = ["x", "x", "y", "x", "z", ""]
    assert purity(kinds, names) == pytest.approx(5 / 6)
    assert names_per_kind(kinds, names) == pytest.approx((2 + 2 + 1) / 3)
    assert alone(names) == pytest.approx(3 / 6)


def test_each_way_names_every_session(traces: Path) -> None:
    """By fingerprint dates part what clusters keep together; scikit-learn's run on the same."""
    sessions = with_details(read_sessions(traces, max_per_kind=12))
    features = TextFeatures()
    vectors = np.stack([features.vectors(s.parts()) for s in sessions])
    kinds = [s.kind for s in sessions]
    by = {
        "fingerprint": by_fingerprint(sessions, vectors),
        "paceline": by_clusters(sessions, vectors),
        "birch": by_birch(sessions, vectors, threshold=0.5),
        "kmeans": by_kmeans(sessions, vectors, num_clusters=3),
    }
    for named in by.values():
        assert len(named.at_first) == len(named.at_last) == len(sessions)
        assert 0 <= named.kept <= 1
    assert names_per_kind(kinds, by["fingerprint"].at_last) > 8  # two of three kinds: 12 each
    assert set(named_of(sessions, by["fingerprint"].at_last, "asker")) == {""}
    for agent in AGENTS:
        assert len(set(named_of(sessions, by["paceline"].at_last, agent))) == 1
    assert purity(kinds, by["paceline"].at_last) == 1
    assert by["paceline"].kept == 1


def named_of(sessions: list[LabelledSession], names: list[str], family: str) -> list[str]:
    return [name for s, name in zip(sessions, names, strict=True) if s.family == family]


def test_the_command_reports_everything(traces: Path, tmp_path: Path) -> None:
    """Every wording, every way, and the proxy's own naming with an embedded Valkey."""
    file = tmp_path / "out" / "workloads.json"
    arguments = ["bench", "workloads", "--traces", str(traces), "--orders", "2"]
    done = CliRunner().invoke(
        cli, [*arguments, "--requests", "9", "--json", str(file)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "| dated | paceline |" in done.output
    figures = json.loads(file.read_text())["figures"]
    for wording in ("kept", "dated", "removed"):
        for way in ("fingerprint", "paceline", "birch", "kmeans"):
            for figure in ("names", "purity", "ari", "agreement_of_orders", "file_order.ari"):
                assert f"{wording}.{way}.{figure}" in figures
        assert figures[f"{wording}.proxy.known_us"] > 0
        assert figures[f"{wording}.proxy.first_us_p99"] > 0
    assert figures["dated.paceline.names"] < figures["dated.fingerprint.names"]
