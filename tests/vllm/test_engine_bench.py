"""The whole of `paceline bench engine` on a real vLLM, without weights and without a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.engine.records import UnitResult, read_result
from paceline.middleware.cli import cli
from recorded import write_model_config, write_tokenizer, write_trace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CALL = '{"name": "list_files", "arguments": {"folder": "/src", "recursive": true}}'
EPISODE = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "List the files, twice."},
    {"role": "assistant", "content": f"I list them: {CALL}"},
    {"role": "tool", "content": "a.py 12 lines\nb.py 90 lines"},
    {"role": "assistant", "content": f"I list them again: {CALL}"},
]


def unit_of(folder: Path, variant: str) -> UnitResult:
    (file,) = folder.glob(f"{variant}.s.*.json")
    found = read_result(file)
    assert found is not None
    return found


def test_vllm_says_the_recorded_replies_in_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off and with our worker every reply is the recorded one; with it in fewer steps."""
    monkeypatch.setenv("PACELINE_ALWAYS_DRAFT", "1")  # what a round takes depends on the machine
    write_trace(tmp_path, "s", EPISODE, EPISODE)
    report, work = tmp_path / "report.json", tmp_path / "work"
    arguments = ["bench", "engine", "--traces", str(tmp_path), "--source", "s", "--eager"]
    arguments += ["--model", str(write_model_config(tmp_path / "model"))]
    arguments += ["--tokenizer", str(write_tokenizer(tmp_path / "tokenizer"))]
    arguments += ["--load-format", "dummy", "--concurrency", "2", "--max-in-flight", "4"]
    arguments += ["--variant", "off", "--variant", "paceline"]
    # prompts longer than this are read in chunks, whose samples are thrown away
    arguments += ["--engine-option", "max_num_batched_tokens=128"]
    arguments += ["--work", str(work), "--json", str(report)]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    flat = json.loads(report.read_text())["figures"]
    num_decoded = flat["s.c2.off.output_tokens"] - 4
    off, ours = unit_of(work, "off"), unit_of(work, "paceline")
    for unit in (off, ours):
        # a wrong token would have ended the run; this is the number of them
        assert sum(t.num_output for t in unit.timings) - 4 == num_decoded
        assert sum(s.num_decoded for s in unit.steps) == num_decoded
        prompt = sum(t.num_prompt for t in unit.timings)
        assert 0 < sum(s.num_prefill for s in unit.steps) <= prompt
        assert max(s.num_prefill for s in unit.steps) <= 128
        assert sum(s.round_seconds > 0 for s in unit.steps) == len(unit.steps)
    assert sum(s.num_decoding for s in off.steps) == num_decoded
    rounds = sum(s.num_decoding for s in ours.steps)
    assert rounds < num_decoded / 2
    assert sum(s.num_accepted for s in ours.steps) == num_decoded - rounds
    assert flat["s.c2.paceline.tokens_per_step"] > 2
    assert flat["s.c2.paceline.requests_per_step"] > 1
    assert flat["s.c2.paceline.drafting_us_per_step"] > 0
    assert flat["s.c2.off.drafted_per_step"] == 0


def test_each_platforms_workers_are_forced() -> None:
    """Forcing stands before Paceline's worker and before vLLM's own, on a CPU and on a GPU."""
    code = (
        "from paceline.adapters.vllm.worker import SpeculatingWorker\n"
        "from paceline.benchmarks.engine import worker\n"
        "for name, module in (('CPUWorker', 'cpu_worker'), ('GPUWorker', 'gpu_worker')):\n"
        "    for kind in (getattr(worker, name), getattr(worker, f'Peer{name}')):\n"
        "        order = list(kind.__mro__)\n"
        "        assert order[1] is worker.TraceForcing, order\n"
        "        assert f'vllm.v1.worker.{module}' in [base.__module__ for base in order], order\n"
        "        ours = not kind.__name__.startswith('Peer')\n"
        "        assert (SpeculatingWorker in order) is ours, order\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
