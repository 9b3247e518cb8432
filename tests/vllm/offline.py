"""Runs a real vLLM engine through the situations that lose a drafter its place; prints JSON.

Usage: python offline.py MODEL_FOLDER off|on
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

PROMPT = "The quick brown fox {n} jumps over the lazy dog {n} times. The quick brown fox {n} jumps"
LONG_PROMPT = "One, two, three, four, five. " * 20
MAX_MODEL_LEN = 256
NUM_REQUESTS = 6


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
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=64,  # a prompt of more is prefilled in chunks
        max_num_seqs=NUM_REQUESTS,
        # Four blocks of 128 tokens beside the null block: three requests at full length want six,
        # so some are preempted.
        num_gpu_blocks_override=5,
        disable_log_stats=False,
        **options,
    )
    result: dict[str, Any] = {"outputs": run_all(llm)}
    if speculate:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        result |= {"first": counts(llm, worker)}
        result["again"] = run_all(llm)
        result |= {"rounds_known": worker._proposer.budget.target.is_known}
        result |= try_dear_tokens(llm, worker._proposer)
        result["seeded"] = run_sampled(llm, temperature=0.8, seed=3)
        result["top_k"] = run_sampled(llm, temperature=0.5, top_k=1)
        worker._speculator.index.check_integrity()
        begin = worker._speculator.begin
        worker._speculator.begin = lambda info, ids, **more: (
            begin(info, ids, **more) if info.session != "s2" else broken()
        )
        before = metric(llm, "vllm:spec_decode_num_accepted_tokens")
        result["one_broken"] = run_all(llm)
        result["accepted_beside_it"] = metric(llm, "vllm:spec_decode_num_accepted_tokens") - before
        result["failures_of_one"] = worker._proposer.failures.count
        worker._speculator.propose_batch = broken
        result["broken"] = run_all(llm)
        result["failures"] = worker._proposer.failures.count
    return result | {"preemptions": metric(llm, "vllm:num_preemptions")}


def try_dear_tokens(llm: Any, proposer: Any) -> dict[str, Any]:
    """An engine that believes a round to take as long as its tokens."""
    import numpy as np

    from paceline.policies.round_cost import Ladder, RoundCost

    class Dear(RoundCost):
        """Learns nothing more."""

        is_known = True
        token_seconds = 1.0

        def ladder(self, num_requests: int, num_context: float = 0.0) -> Ladder:
            """A second for each token."""
            return Ladder(np.array([float(num_requests)]), 1.0)

        def learn(
            self,
            num_requests: int,
            num_tokens: int,
            seconds: float,
            *,
            num_context: float = 0.0,
            num_prompt: int = 0,
        ) -> None:
            pass

    before, budget = metric(llm, "vllm:spec_decode_num_draft_tokens"), proposer.budget
    target, budget.target, budget.always_draft = budget.target, Dear(), False
    result: dict[str, Any] = {
        "dear": run_all(llm),
        "tokens_cut": proposer.figures().events["tokens_cut"],
    }
    result["drafted_dear"] = metric(llm, "vllm:spec_decode_num_draft_tokens") - before
    budget.target, budget.always_draft = target, True
    return result


def run_all(llm: Any) -> list[list[int]]:
    """Six requests at once: short ones, and some that run into the model's length."""
    from vllm import SamplingParams

    prompts, params = [], []
    for number in range(NUM_REQUESTS):
        to_the_end = number % 2 == 0
        prompts.append(LONG_PROMPT if number == 1 else PROMPT.format(n=number))
        params.append(
            SamplingParams(
                temperature=0,
                max_tokens=MAX_MODEL_LEN if to_the_end else 24,
                ignore_eos=to_the_end,
                extra_args={"paceline_tenant": "t", "paceline_session": f"s{number}"},
            )
        )
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]


def run_sampled(llm: Any, **sampling: Any) -> list[int]:
    """Sampling after a chunked prefill, in ways that would end an unprepared CPU engine."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=8, **sampling)
    return [len(o.outputs[0].token_ids) for o in llm.generate([LONG_PROMPT] * 2, params)]


def broken(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("broken on purpose")


def counts(llm: Any, worker: Any) -> dict[str, Any]:
    return {
        "accepted": metric(llm, "vllm:spec_decode_num_accepted_tokens"),
        "failures": worker._proposer.failures.count,
        "stats": worker._speculator.stats(),
        "drafted": metric(llm, "vllm:spec_decode_num_draft_tokens"),
        "decisions": decided(worker._proposer.decisions),
    }


def decided(log: Any) -> list[dict[str, Any]]:
    """The records of all requests, those included whose end the worker has not heard of."""
    import msgspec

    ids = [*log._finished, *log._open_of]
    return [msgspec.to_builtins(log.find(request_id)) for request_id in ids]


def metric(llm: Any, name: str) -> float:
    return sum(m.value for m in llm.get_metrics() if m.name == name)


if __name__ == "__main__":
    # The engine in this process, so that the worker can be looked into.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PACELINE_ALWAYS_DRAFT"] = "1"  # what a round takes depends on the machine
    print("RESULT " + json.dumps(main(sys.argv[1], speculate=sys.argv[2] == "on")))
