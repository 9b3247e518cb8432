"""`python -m paceline.benchmarks.cells.engine SETTINGS`: one engine that goes through the cells.

Waits for a line on standard input before each cell, so that engines beside each other are in the
same cell, and writes the cell's result as a line to standard output.
"""

from __future__ import annotations

import os
import random
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from paceline.benchmarks.cells.records import (
    BANDIT,
    FIXED,
    OFF,
    Cell,
    CellResult,
    CellsSettings,
    Mark,
)

SLACK_TOKENS = 40
GOLDEN = 0.618034
"""Multiples of it lie evenly between whole numbers, however many there are."""
PROPOSER = "paceline.adapters.vllm.proposer.DraftProposer"


def run(settings: CellsSettings) -> None:
    """Answer the prompts of each cell when told to."""
    from vllm import LLM

    from paceline.benchmarks.replay.tokens import Renderer, load_encoder

    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints must not be taken for results
    renderer = Renderer(load_encoder(settings.target))
    asked = [read_cell(settings, cell, renderer) for cell in settings.cells]
    llm = LLM(
        settings.target,
        dtype="float32",
        enforce_eager=True,
        max_model_len=settings.context_tokens + 2 * settings.output_tokens + SLACK_TOKENS,
        max_num_seqs=max(cell.in_flight for cell in settings.cells),
        disable_log_stats=False,
        **speculation(settings),
    )
    print("ready", file=output, flush=True)
    for cell, prompts in zip(settings.cells, asked, strict=True):
        sys.stdin.readline()
        result = answer(llm, cell, prompts, settings.output_tokens)
        print(msgspec.json.encode(result).decode(), file=output, flush=True)


def speculation(settings: CellsSettings) -> dict[str, Any]:
    """Arguments of the engine for a way of speculating."""
    from paceline.adapters.vllm.launch import require_vllm

    if settings.way == OFF:
        return {}
    is_by_model = settings.method in ("drafter", "fused")
    given: dict[str, Any] = {"async_scheduling": False}  # as `paceline vllm` starts it
    if settings.way != "drafter":
        device = require_vllm().device.upper()
        given["worker_cls"] = f"paceline.adapters.vllm.worker.{device}Worker"
    num_tokens = settings.drafter_tokens if settings.way == "drafter" else settings.num_draft_tokens
    given["speculative_config"] = {
        "method": "draft_model" if is_by_model else "custom_class",
        "model": settings.drafter if is_by_model else PROPOSER,
        "num_speculative_tokens": num_tokens,
    }
    return given


def read_cell(settings: CellsSettings, cell: Cell, renderer: Any) -> list[list[int]]:
    """The prompts of a cell, in tokens: none that an earlier cell has asked.

    Raises:
        ConfigError: a source has fewer.
    """
    from paceline.benchmarks.exact.prompts import read_prompts

    asked: list[list[int]] = []
    for source, number in cell.parts.items():
        first, total = settings.place(cell, source)
        prompts = read_prompts(
            Path(settings.traces),
            source,
            renderer,
            num_prompts=total,
            num_turns=5,
            context_tokens=settings.context_tokens,
        )
        part = [list(prompt.token_ids) for prompt in prompts[first : first + number]]
        if cell.order is not None:
            random.Random(f"{cell.order} {source}").shuffle(part)  # noqa: S311
        asked += part
    return asked


def answer(llm: Any, cell: Cell, prompts: list[list[int]], output_tokens: int) -> CellResult:
    """Answer prompts, `in_flight` at a time.

    Counted is what is said from the end of the warm-up until the last prompt has been taken up, so
    that there are always as many in flight.
    """
    engine = llm.llm_engine
    said: dict[str, list[int]] = {}
    num_asked = num_done = 0
    marks: list[Mark] = []
    turn: int | None = None
    while num_done < len(prompts):
        while num_asked < len(prompts) and num_asked - num_done < cell.in_flight:
            _ask(engine, cell, num_asked, prompts[num_asked], output_tokens)
            num_asked += 1
        if not marks and num_done >= cell.num_warm:
            marks.append(state(llm, said))
        if turn is None and num_asked > len(prompts) - cell.num_then:
            turn = len(marks) - 1
        is_counted = bool(marks) and num_asked < len(prompts)
        num_ended = 0
        for output in engine.step():
            said[output.request_id] = list(output.outputs[0].token_ids)
            num_ended += output.finished
        num_done += num_ended
        if is_counted and num_ended:
            marks += [state(llm, said)] * num_ended
    replies = [said[f"{cell.name}/{i}"] for i in range(len(prompts))]
    began, ended = marks[0], marks[-1]
    return CellResult(
        num_tokens=ended.num_tokens - began.num_tokens,
        seconds=ended.seconds - began.seconds,
        cpu_seconds=ended.cpu_seconds - began.cpu_seconds,
        draft_tokens=ended.draft_tokens - began.draft_tokens,
        accepted_tokens=ended.accepted_tokens - began.accepted_tokens,
        digest=blake2b(msgspec.json.encode(replies), digest_size=8).hexdigest(),
        marks=() if turn is None else tuple(marks),
        turn=turn or 0,
    )


def _ask(engine: Any, cell: Cell, place: int, prompt: list[int], output_tokens: int) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0,
        max_tokens=longest_reply(place, output_tokens),
        output_kind=RequestOutputKind.CUMULATIVE,
        extra_args={"paceline_tenant": cell.source},
    )
    engine.add_request(f"{cell.name}/{place}", {"prompt_token_ids": prompt}, params)


def longest_reply(place: int, output_tokens: int) -> int:
    """Most tokens of the reply to the prompt at a place: from half as many to half as many more.

    Were they all alike, those without drafts would end together, again and again, and the prompts
    behind them be read together, which costs less than one after the other, as it is elsewhere.
    """
    return round(output_tokens * (0.5 + place * GOLDEN % 1.0))


def state(llm: Any, said: dict[str, list[int]]) -> Mark:
    """Where the engine stands."""
    counts = dict.fromkeys(("draft_tokens", "accepted_tokens"), 0)
    for metric in llm.get_metrics():
        for name in counts:
            if metric.name == f"vllm:spec_decode_num_{name}":
                counts[name] += metric.value
    num_tokens = sum(map(len, said.values()))
    return Mark(num_tokens, time.perf_counter(), time.process_time(), **counts)


def environment(settings: CellsSettings) -> dict[str, str]:
    """What the engine's process has in its environment."""
    from paceline.adapters.vllm.launch import require_vllm, serve_environment
    from paceline.adapters.vllm.settings import WorkerSettings

    worker = WorkerSettings(
        drafter_tokens=settings.drafter_tokens,
        always_draft=settings.way.startswith(FIXED),
        bandit=settings.way.endswith(BANDIT),
    )
    return serve_environment(
        {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_LOGGING_LEVEL": "WARNING",
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_PLUGINS": "",
            "HF_HUB_OFFLINE": "1",
        },
        worker,
        device=require_vllm().device,
    )


if __name__ == "__main__":
    told = msgspec.json.decode(sys.argv[1], type=CellsSettings)
    os.sched_setaffinity(0, {told.core})
    run(told)
