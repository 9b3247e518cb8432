"""Runs a real vLLM engine that samples beside drafts; prints what was said as JSON.

Usage: python offline_sampling.py TARGET CASES.json [DRAFTER]

CASES.json maps a name to a case: `sampling`, and `wrong`: "unmended", "no residual" or null.
With DRAFTER the model drafts in every second round, memory in all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offline_fused import every_nth, metric

NUM_REPLIES = 256
REPLY_TOKENS = 200
DRAFT_TOKENS = 6
MODEL_TOKENS = 3


def prompts(vocabulary: int) -> list[list[int]]:
    """Two tokens each; every pair of a small vocabulary."""
    return [[i % vocabulary, i // vocabulary % vocabulary] for i in range(NUM_REPLIES)]


def main(target: str, cases: dict[str, Any], drafter: str | None) -> dict[str, Any]:
    from vllm import LLM
    from vllm.v1.sample import rejection_sampler

    unmended = rejection_sampler.expand_batch_to_tokens
    method = (
        {"method": "draft_model", "model": drafter}
        if drafter
        else {
            "method": "custom_class",
            "model": "paceline.adapters.vllm.proposer.DraftProposer",
        }
    )
    llm = LLM(
        target,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=REPLY_TOKENS + 40,
        max_num_seqs=NUM_REPLIES,
        max_num_batched_tokens=NUM_REPLIES * (DRAFT_TOKENS + 2),
        disable_log_stats=False,
        seed=0,
        worker_cls="paceline.adapters.vllm.worker.CPUWorker",
        speculative_config={**method, "num_speculative_tokens": DRAFT_TOKENS},
    )
    worker = llm.llm_engine.model_executor.driver_worker.worker
    if drafter:
        # whose turn it is must not depend on the clock
        worker._proposer.fuser.gate = every_nth(2)
    result: dict[str, Any] = {}
    for name, case in cases.items():
        with planted(rejection_sampler, case["wrong"], unmended):
            result[name] = run(llm, worker, case["sampling"])
    return result


def run(llm: Any, worker: Any, sampling: dict[str, Any]) -> dict[str, Any]:
    """The replies to all prompts at once, every second with a seed, and how they were drafted."""
    from vllm import SamplingParams

    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    params = [
        SamplingParams(
            **sampling,
            seed=i if i % 2 else None,
            max_tokens=REPLY_TOKENS,
            ignore_eos=True,
            detokenize=False,
            extra_args={"paceline_tenant": "t"},
        )
        for i in range(NUM_REPLIES)
    ]
    before = counts(llm, worker)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts(vocabulary)]
    answers = llm.generate(asked, params, use_tqdm=False)
    after = counts(llm, worker)
    return {
        "prompts": prompts(vocabulary),
        "said": [list(answer.outputs[0].token_ids) for answer in answers],
        **{name: after[name] - before[name] for name in after},
    }


def counts(llm: Any, worker: Any) -> dict[str, float]:
    proposer = worker._proposer
    fusion = proposer.stats() if hasattr(proposer, "fuser") else {}
    return {
        **fusion,
        "drafted": metric(llm, "vllm:spec_decode_num_draft_tokens"),
        "accepted": metric(llm, "vllm:spec_decode_num_accepted_tokens"),
        "failures": proposer.failures.count,
    }


@contextmanager
def planted(rejection_sampler: Any, wrong: str | None, unmended: Any) -> Iterator[None]:
    """A fault in the module, for a while: no mending by us, or no distribution of what is left."""
    if wrong is None:
        yield
        return
    name = "expand_batch_to_tokens" if wrong == "unmended" else "sample_recovered_tokens"
    right = getattr(rejection_sampler, name)
    fault = unmended if wrong == "unmended" else without_residual(right)
    setattr(rejection_sampler, name, fault)
    try:
        yield
    finally:
        setattr(rejection_sampler, name, right)


def without_residual(right: Callable[..., Any]) -> Callable[..., Any]:
    """After a rejection draws from the target's whole distribution, the drafted token included."""

    def sample_recovered_tokens(*arguments: Any) -> Any:
        target_probs = arguments[5]
        right(*arguments)  # for the random numbers that it takes
        return target_probs.multinomial(1).squeeze(1).to(arguments[3].dtype)

    return sample_recovered_tokens


if __name__ == "__main__":
    # The engine in this process, so that the worker can be looked into.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PACELINE_DRAFTER_TOKENS"] = str(MODEL_TOKENS)
    os.environ["PACELINE_ALWAYS_DRAFT"] = "1"  # what is drafted must not depend on the clock
    target_folder, cases_file, *drafter_folder = sys.argv[1:]
    chosen = json.loads(Path(cases_file).read_text())
    print("RESULT " + json.dumps(main(target_folder, chosen, *drafter_folder or [None])))
