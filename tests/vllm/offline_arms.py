"""Runs a real vLLM engine whose arms are chosen, on memory that is right and on junk; prints JSON.

Usage: python offline_arms.py MODEL_FOLDER off|on
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PROMPT = "The quick brown fox {n} jumps over the lazy dog {n} times. The quick brown fox {n} jumps"
NUM_REQUESTS = 3


def main(model: str, *, speculate: bool) -> dict[str, Any]:
    from vllm import LLM

    options: dict[str, Any] = {}
    if speculate:
        options["worker_cls"] = "paceline.adapters.vllm.worker.CPUWorker"
        options["speculative_config"] = {
            "method": "custom_class",
            "model": "paceline.adapters.vllm.proposer.DraftProposer",
            "num_speculative_tokens": 8,
        }
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=NUM_REQUESTS,
        disable_log_stats=False,
        **options,
    )
    result: dict[str, Any] = {"outputs": run_all(llm, "right")}
    if not speculate:
        return result
    worker = llm.llm_engine.model_executor.driver_worker.worker
    result["again"] = run_all(llm, "right")
    result["figures"] = figures(worker)
    speculator = worker._speculator
    speculator.propose_batch = junk
    for turn in range(3):
        result["junk"] = run_all(llm, "deluded")
        result[f"figures_{turn}"] = figures(worker)
    opened = list(worker._proposer._arms._open)
    return result | {"open_alike": opened == speculator.request_ids()}


def run_all(llm: Any, tenant: str) -> list[list[int]]:
    """Requests at once, each to its full length."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=200,
            ignore_eos=True,
            extra_args={"paceline_tenant": tenant, "paceline_session": f"s{number}"},
        )
        for number in range(NUM_REQUESTS)
    ]
    prompts = [PROMPT.format(n=number) for number in range(NUM_REQUESTS)]
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]


def junk(request_ids: Sequence[str], *, max_tokens: Mapping[str, int], **_: Any) -> Any:
    """What no target says, at 0.99."""
    from paceline.caches import TokenTree, TreeBatch

    return TreeBatch.of([
        TokenTree.chain([5 + k for k in range(max_tokens[i])], prob=[0.99] * max_tokens[i])
        for i in request_ids
    ])  # fmt: skip


def figures(worker: Any) -> dict[str, Any]:
    found = worker._proposer.figures()
    return {"events": dict(found.events), "arms": dict(found.arms)}


if __name__ == "__main__":
    # The engine in this process, so that the worker can be looked into.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PACELINE_BANDIT"] = "1"
    print("RESULT " + json.dumps(main(sys.argv[1], speculate=sys.argv[2] == "on")))
