"""Greedy replies to recorded agents' prompts with and without drafts, in float32; not run in CI.

Usage: python exactness.py TRACES TARGET OUT.json [DRAFTER [EVERY]]

Without DRAFTER the engine runs without speculation, with ``memory`` memory alone drafts. EVERY n
lets the model draft in every n-th round whatever it costs, instead of where it is worth it. Run
twice and compare the outputs: python exactness.py ONE.json OTHER.json

Runs on whatever vLLM was built for; its tokenizer is the target's.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

SOURCES = ("mini-swe-agent", "tau-bench", "intercode-sql", "medagentbench")
NUM_EACH = 50
CONTEXT_TOKENS = 96
OUTPUT_TOKENS = 16
MAX_IN_FLIGHT = 16
MEMORY = "memory"
PROPOSER = "paceline.adapters.vllm.proposer.DraftProposer"


def main(traces: Path, target: str, drafter: str | None, every: int) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    from paceline.adapters.vllm.launch import require_vllm

    options: dict[str, Any] = {}
    if drafter is not None:
        device = require_vllm().device.upper()
        options["worker_cls"] = f"paceline.adapters.vllm.worker.{device}Worker"
        options["speculative_config"] = {
            "method": "custom_class" if drafter == MEMORY else "draft_model",
            "model": PROPOSER if drafter == MEMORY else drafter,
            "num_speculative_tokens": 16,
        }
        options["async_scheduling"] = False  # as `paceline vllm` starts it
    llm = LLM(
        target,
        dtype="float32",
        enforce_eager=True,
        max_model_len=CONTEXT_TOKENS + OUTPUT_TOKENS + 40,
        max_num_seqs=MAX_IN_FLIGHT,
        disable_log_stats=False,
        **options,
    )
    if every:
        proposer = llm.llm_engine.model_executor.driver_worker.worker._proposer
        proposer.fuser.choice = every_nth(every)
    prompts, params = [], []
    for source in SOURCES:
        for token_ids in prompts_of(traces, source, target):
            prompts.append({"prompt_token_ids": token_ids})
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=OUTPUT_TOKENS,
                    ignore_eos=True,
                    extra_args={"paceline_tenant": source},
                )
            )
    replies = llm.generate(prompts, params, use_tqdm=False)
    result: dict[str, Any] = {"outputs": [list(r.outputs[0].token_ids) for r in replies]}
    if drafter is not None:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        result["stats"] = worker._speculator.stats()
        result["stats"]["failures"] = worker._proposer.failures.count
        if drafter != MEMORY:
            result["stats"] |= worker._proposer.stats()
    return result


def prompts_of(traces: Path, source: str, tokenizer: str) -> list[list[int]]:
    """The first requests of a source that has a tokenizer's rendering."""
    from paceline.benchmarks.rendering import requests_of
    from paceline.benchmarks.replay.tokens import Renderer, load_encoder
    from paceline.benchmarks.traces import read_recorded

    renderer = Renderer(load_encoder(tokenizer))
    requests = (
        request
        for episode in read_recorded(traces, source)
        for request in islice(
            requests_of(
                episode,
                renderer,
                context_tokens=CONTEXT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                max_requests=5,
            ),
            5,
        )
    )
    return [list(request.prompt_ids) for request in islice(requests, NUM_EACH)]


def every_nth(n: int) -> Any:
    from paceline.adapters.model_gain import ModelChoice

    class EveryNth(ModelChoice):
        """The model runs in every n-th round."""

        num_rounds = 0

        def wants_model(self, gains: Any, expected: Any) -> bool:
            self.num_rounds += 1
            return self.num_rounds % n == 0

    return EveryNth()


def compare(one: Path, other: Path) -> None:
    a, b = (json.loads(path.read_text())["outputs"] for path in (one, other))
    assert len(a) == len(b)
    print(f"{sum(x == y for x, y in zip(a, b, strict=True))} of {len(a)} identical")


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    given = sys.argv[1:]
    if len(given) == 2:
        compare(Path(given[0]), Path(given[1]))
    else:
        traces, target, out, drafter, every = (*given, None, None)[:5]
        result = main(Path(str(traces)), str(target), drafter, int(every or 0))
        Path(str(out)).write_text(json.dumps(result))
