"""`paceline bench learn`: its prompts, its figures and its plot."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import click
import pytest

from learning import write_models
from paceline.benchmarks.learn.command import learn
from paceline.benchmarks.learn.options import learner_option
from paceline.benchmarks.learn.plot import draw
from paceline.benchmarks.learn.prompts import around, read_prompts
from paceline.benchmarks.learn.records import Asked, Examined, Mark, Speed, Workload
from paceline.benchmarks.learn.run import figures
from paceline.benchmarks.learn.speeds import figures as speed_figures
from paceline.benchmarks.learn.speeds import measured, speed_work
from paceline.benchmarks.learn.stack import Stack, value_of
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.errors import ConfigError
from recorded import write_tokenizer, write_trace

EPISODE = [
    {"role": "user", "content": "List the files."},
    {"role": "assistant", "content": "a.py"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "b.py"},
]


def test_no_task_is_on_both_sides(tmp_path: Path) -> None:
    """Prompts to measure by are of the last tasks, and none of theirs is asked."""
    write_trace(tmp_path, "s", *[EPISODE] * 5)
    renderer = Renderer(load_encoder(str(write_tokenizer(tmp_path / "tokenizer"))))
    found = read_prompts(tmp_path, Workload("s"), renderer, 64, 3)
    assert len(found.held_out) == 3
    assert len(found.asked) == 2 * 3
    assert {it.session for it in found.asked}.isdisjoint(it.session for it in found.held_out)
    with pytest.raises(ConfigError, match="take fewer"):
        read_prompts(tmp_path, Workload("s"), renderer, 64, 10)
    with pytest.raises(ConfigError, match="0 prompts"):
        read_prompts(tmp_path, Workload("s", "other-"), renderer, 64, 3)


def test_prompts_come_again_as_other_sessions() -> None:
    """What was asked before is asked by somebody else."""
    turned = list(islice(around([Asked("a", (1,)), Asked("b", (2,))]), 5))
    assert [it.session for it in turned] == ["a#0", "b#0", "a#1", "b#1", "a#2"]
    assert turned[0].token_ids == turned[2].token_ids


def test_figures_and_plot_hold_every_mark(tmp_path: Path) -> None:
    """Both workloads, learned and frozen, and the speeds of both drafters."""
    marks = [
        Mark(
            workload=workload,
            served=served,
            seconds=1.0,
            version=version,
            learned={"a": Examined(1.0 + version, 0.5), "b": Examined(0.5, 0.2)},
            frozen={"a": Examined(1.0, 0.3), "b": Examined(0.5, 0.2)},
        )
        for workload, served, version in (("a", 0, 1), ("a", 1000, 2), ("b", 2000, 3))
    ]
    found = figures(marks, Speed((30,), (3.0,), 1.5, "x"), Speed((30,), (2.5,), 2.0, "x"))
    assert found["speed.ratio"] == pytest.approx(1.2)
    assert found["speed.identical"] == 1
    assert found["mark-02.version"] == 3
    assert found["mark-01.a.learned.accepted_length"] == 3.0
    assert found["mark-01.a.frozen.agreement"] == 0.3
    file = tmp_path / "plots" / "learn.svg"
    draw(marks, file)
    text = file.read_text()
    assert text.count("<svg") == 1
    with pytest.raises(ConfigError, match="cannot draw"):
        draw(marks, tmp_path / "learn.unknown")


def test_settings_of_the_learner_are_nested() -> None:
    """Numbers, words and truth values, block by block."""
    parameter = next(it for it in learn.params if it.name == "learner")
    context = click.Context(learn)
    values = ("cycle.passages=8", "cycle.objective=greedy", "judging.canary=false", "threads=1")
    assert learner_option(context, parameter, values) == {
        "cycle": {"passages": 8, "objective": "greedy"},
        "judging": {"canary": False},
        "threads": 1,
    }
    with pytest.raises(click.BadParameter, match="NAME=VALUE"):
        learner_option(context, parameter, ("cycle.passages",))


def test_a_number_is_found_among_metrics() -> None:
    """By part of its line, 0 where there is none."""
    text = 'a{phase="waiting"} 1.0\na{phase="training"} 0.0\n'
    assert value_of(text, 'phase="waiting"') == 1.0
    assert value_of(text, 'phase="other"') == 0.0
    assert Workload.parse("s:tau-").name == "s.tau-"
    assert Workload.parse("s").name == "s"


def test_speeds_are_told_beside_one_of_them() -> None:
    """How sure a ratio is, and whether all have said the same."""
    speeds = {
        "memory": Speed((20, 40, 20), (2.0, 4.0, 2.0), 1.0, "x"),
        "drafter-1": Speed((20, 40, 20), (1.0, 2.0, 1.0), 2.0, "x"),
        "drafter-2": Speed((20, 40, 20), (1.0, 4.0, 3.0), 2.0, "x"),
    }
    found = speed_figures(speeds, "memory")
    assert found["memory.tokens_per_second"] == 10.0
    assert found["drafter-1.tokens_per_round"] == 2.0
    sure = [found[f"drafter-1.times_memory{end}"] for end in ("", ".low", ".high")]
    assert sure == pytest.approx([2.0, 2.0, 2.0])
    unsure = [found[f"drafter-2.times_memory{end}"] for end in (".low", "", ".high")]
    assert unsure == sorted(unsure)
    assert unsure == pytest.approx([2 / 3, 1.0, 2.0])
    assert found["identical"] == 1
    speeds["drafter-1"] = Speed((20, 40, 20), (1.0, 2.0, 1.0), 2.0, "y")
    assert speed_figures(speeds, "memory")["identical"] == 0


def test_engines_answer_the_same_prompts_by_turns(tmp_path: Path) -> None:
    """No drafts, memory alone and two drafters, in a process of its own; warming up is left out."""
    write_models(tmp_path)
    drafter = str(tmp_path / "drafter")
    work = speed_work(
        str(tmp_path / "target"),
        "float32",
        [None, "", drafter, drafter],
        [Asked(f"s{i}", (5 + i, 7, 11, 13, 5 + i % 3)) for i in range(8)],
        output=12,
        in_flight=2,
        draft=4,
        branches=1,
        core=min(os.sched_getaffinity(0)),
    )
    speeds = measured(work, ["off", "memory", "a", "b"], 1, tmp_path)
    for its in speeds.values():
        assert its.num_tokens == (24, 24, 24)
        assert len(its.seconds) == 3
        assert its.tokens_per_round >= 1
    assert speeds["off"].tokens_per_round == 1
    found = speed_figures(speeds, "memory")
    assert found["identical"] == 1
    assert found["a.times_memory.low"] <= found["a.times_memory"] <= found["a.times_memory.high"]


def test_requests_are_of_one_tenant_or_each_of_its_own() -> None:
    """What one engine's requests share, another's must not, turn after turn."""
    from paceline.benchmarks.learn.worker import _requests

    prompts = [Asked(f"s{i}", (5 + i, 7)) for i in range(3)]
    tenants = {}
    for apart in (False, True):
        work = speed_work(
            "target",
            "float32",
            [""],
            prompts,
            output=4,
            in_flight=3,
            draft=4,
            branches=1,
            core=0,
            apart=apart,
        )
        turns = [_requests(prompts, work, name) for name in ("True-0", "False-0", "False-1")]
        tenants[apart] = {request.info.tenant for turn in turns for request in turn}
    assert [len(tenants[apart]) for apart in (False, True)] == [1, 9]


def test_a_session_is_asked_in_its_order() -> None:
    """Several at a time, but of each one request after the other: it begins with its first."""
    began, at_once = [], Barrier(2)
    running: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            session = self.headers["x-session-id"]
            overlaps = session in running
            running.add(session)
            began.append((session, body["prompt"][0], overlaps))
            at_once.wait(20)  # of two sessions, or nobody is answered
            running.remove(session)
            data = json.dumps({"usage": {"completion_tokens": 3}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        stack = Stack(
            url=f"http://127.0.0.1:{server.server_port}/v1",
            engine_url="",
            learner_metrics="",
            redis_url="",
            key="",
            learner_pid=0,
            engine_pid=0,
            registry=None,  # type: ignore[arg-type]  # nothing is looked up
        )
        prompts = [Asked(name, (number,)) for name in ("a", "b") for number in range(3)]
        assert stack.ask(prompts, workload="w", output_tokens=3, in_flight=2) == 18
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not any(overlaps for _, _, overlaps in began)
    for name in ("a", "b"):
        assert [number for session, number, _ in began if session == name] == [0, 1, 2]
