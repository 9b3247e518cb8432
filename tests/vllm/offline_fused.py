"""Runs a real vLLM engine with a model drafter beside the memory; prints JSON.

Usage: python offline_fused.py TARGET off|fused|twin [DRAFTER]

``twin`` runs the model in every round and ends there: for a drafter that is the target.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_MODEL_LEN = 320
NUM_REQUESTS = 20
NUM_AGAIN = 8
MAX_IN_FLIGHT = 4
DRAFT_TOKENS = 8
MODEL_TOKENS = 3
WORDS = [
    "red",
    "blue",
    "green",
    "white",
    "black",
    "brown",
    "gray",
    "pink",
    "gold",
    "silver",
    "amber",
    "violet",
]
TOPICS = (
    "The capital of France is Paris. The capital of",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n",
    '{{"name": "list_files", "arguments": {{"folder": "/src", "n": {n}}}}}\n{{"name": "list_',
    "Step {n}: open the file. Step {n}: read the file. Step {n}: open the",
    "Once upon a time there was a {word} horse who",
    "SELECT name, age FROM users WHERE id = {n};\nSELECT name, age FROM",
)


def prompts() -> list[str]:
    """Some that repeat themselves, some that do not; every seventh longer than a prefill chunk."""
    found = []
    for number in range(NUM_REQUESTS):
        text = TOPICS[number % len(TOPICS)].format(n=number, word=WORDS[number % len(WORDS)])
        found.append(("One, two, three, four, five. " * 14 + text) if number % 7 == 0 else text)
    return found


def main(target: str, mode: str, drafter: str | None) -> dict[str, Any]:
    from vllm import LLM

    options: dict[str, Any] = {}
    if mode != "off":
        options["worker_cls"] = "paceline.adapters.vllm.worker.CPUWorker"
        options["speculative_config"] = {
            "method": "draft_model",
            "model": drafter,
            "num_speculative_tokens": DRAFT_TOKENS,
        }
    llm = LLM(
        target,
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=96,  # a prompt of more is prefilled in chunks
        max_num_seqs=MAX_IN_FLIGHT,
        num_gpu_blocks_override=6,  # too few for four requests at full length: some are preempted
        disable_log_stats=False,
        **options,
    )
    if mode == "twin":
        proposer = llm.llm_engine.model_executor.driver_worker.worker._proposer
        proposer.fuser.gate = every_nth(1)
        draft_always(proposer)
        return {"outputs": run_all(llm, NUM_AGAIN), "stats": proposer.stats()}
    result: dict[str, Any] = {"outputs": run_all(llm)}
    if mode == "fused":
        result |= try_fusion(llm)
    return result | {"preemptions": metric(llm, "vllm:num_preemptions")}


def try_fusion(llm: Any) -> dict[str, Any]:
    worker = llm.llm_engine.model_executor.driver_worker.worker
    proposer = worker._proposer
    result: dict[str, Any] = {"first": proposer.stats(), "metrics": metrics_of(worker)}
    result["decided"] = decided(proposer.decisions)
    result["again"] = run_all(llm, NUM_AGAIN)
    draft_always(proposer)  # what a round takes depends on the machine
    result |= compare_skipping(llm, proposer)
    result["narrowed"] = try_narrowing(llm, proposer)
    result["sampled"] = run_sampled(llm)
    result["failures"] = proposer.failures.count
    result |= break_things(llm, worker, proposer)
    worker._speculator.index.check_integrity()
    return result


def draft_always(proposer: Any) -> None:
    """From now on, as the setting does it: nothing is cut, and no arms are chosen."""
    proposer.budget.always_draft = True
    proposer.budget.is_free = proposer._rounds.is_odd = False
    proposer._arms = None


def decided(log: Any) -> dict[str, int]:
    """What the records of all requests are together."""
    from collections import Counter

    total: Counter[str] = Counter()
    for request_id in [*log._finished, *log._open_of]:
        record = log.find(request_id)
        for name, tokens in record.sources.items():
            who = "model" if name == "model" else "memory"
            total[f"drafted_{who}"] += tokens.drafted
            total[f"accepted_{who}"] += tokens.accepted
        for who, num in record.drafts.items():
            total[f"rows_{who}"] += num
        total["requests"] += 1
        total["model_rounds"] += record.model_rounds
        total["tokens_cut"] += record.cut_tokens
    return dict(total)


def every_nth(n: int) -> Any:
    from paceline.adapters.chain_fusing import MOST_LATE
    from paceline.adapters.model_gate import ModelGate

    class EveryNth(ModelGate):
        """The model runs in every n-th round."""

        num_rounds = 0

        def asked(self, candidates: Any, **_: Any) -> list[int]:
            self.num_rounds += 1
            return [] if self.num_rounds % n else list(range(len(candidates)))

    return EveryNth(most_late=MOST_LATE, takes_all=True)


NARROWED = {
    "memory": {"paceline_draft_sources": "memory"},
    "model": {"draft_sources": "model"},
    "few": {"paceline_draft_tokens": 2, "draft_tokens": 7},
    "off": {"paceline_speculation": "off"},
}


def try_narrowing(llm: Any, proposer: Any) -> dict[str, Any]:
    """Requests whose policy or client lets some draft only, or only so much."""
    result: dict[str, Any] = {}
    gate, proposer.fuser.gate = proposer.fuser.gate, every_nth(1)
    fuse = proposer.fuser.fuse
    longest = 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal longest
        fused = fuse(*args, **kwargs)
        longest = max(longest, *map(len, fused), 0)
        return fused

    proposer.fuser.fuse = watched
    for name, xargs in NARROWED.items():
        before, longest = proposer.stats(), 0
        outputs = run_all(llm, NUM_AGAIN, tenant="narrow", **xargs)
        after = proposer.stats()
        counts = {key: after[key] - before[key] for key in after}
        result[name] = counts | {"outputs": outputs, "longest": longest}
    proposer.fuser.fuse, proposer.fuser.gate = fuse, gate
    return result


def compare_skipping(llm: Any, proposer: Any) -> dict[str, Any]:
    """The model's chains where it runs in every round, and where it often rests.

    The third run shows what the second would be if the model did not read what it has missed.
    """
    from paceline.adapters.vllm import model_drafter

    result: dict[str, Any] = {}
    gate, widen = proposer.fuser.gate, model_drafter._widen
    heard: dict[str, dict[tuple[str, int], list[Any]]] = {}
    for name, every, reads_missed in (
        ("always", 1, True),
        ("seldom", 5, True),
        ("blind", 5, False),
    ):
        if not reads_missed:
            model_drafter._widen = lambda *_: None
        before = proposer.stats()
        proposer.fuser.gate = every_nth(every)
        with listening(proposer) as heard[name]:
            result[f"outputs_{name}"] = run_all(llm, NUM_AGAIN, tenant=name)
        after = proposer.stats()
        result[f"counts_{name}"] = {key: after[key] - before[key] for key in after}
    model_drafter._widen = widen
    proposer.fuser.gate = gate
    for name in ("seldom", "blind"):
        result[name] = difference(heard["always"], heard[name])
    return result


@contextmanager
def listening(proposer: Any) -> Iterator[dict[tuple[str, int], list[Any]]]:
    """The model's chains and their probabilities by session and length of its context."""
    heard: dict[tuple[str, int], list[Any]] = {}
    draft = proposer.model.draft

    def hear(step: Any, arguments: Any, *, num_steps: int, **given: Any) -> Any:
        chains = draft(step, arguments, num_steps=num_steps, **given)
        for row, request_id in enumerate(step.request_ids):
            if step.accepted[row] and chains.is_sound[row] and num_steps == MODEL_TOKENS:
                params = proposer._runner.requests[request_id].sampling_params
                place = step.num_before[row] + len(step.accepted[row])
                at = params.extra_args["paceline_session"], place
                heard[at] = [chains.token_ids[row].tolist(), chains.top_prob[row, :, 0].tolist()]
        return chains

    proposer.model.draft = hear
    try:
        yield heard
    finally:
        proposer.model.draft = draft


def difference(always: dict[Any, list[Any]], seldom: dict[Any, list[Any]]) -> dict[str, Any]:
    common = sorted(always.keys() & seldom.keys())
    return {
        "num_compared": len(common),
        "num_different": sum(always[at][0] != seldom[at][0] for at in common),
        "largest_difference": max(
            abs(a - b) for at in common for a, b in zip(always[at][1], seldom[at][1], strict=True)
        ),
    }


def break_things(llm: Any, worker: Any, proposer: Any) -> dict[str, Any]:
    """Memory that raises, then a model that raises."""
    before, accepted = proposer.failures.count, metric(llm, ACCEPTED)
    propose = worker._speculator.propose_batch
    worker._speculator.propose_batch = broken
    result: dict[str, Any] = {"without_memory": run_all(llm, NUM_AGAIN)}
    result["accepted_without_memory"] = metric(llm, ACCEPTED) - accepted
    worker._speculator.propose_batch = propose
    result["failures_of_memory"] = proposer.failures.count - before

    before, accepted = proposer.failures.count, metric(llm, ACCEPTED)
    proposer.model._propose = broken
    proposer.fuser.gate = every_nth(1)
    result["without_model"] = run_all(llm, NUM_AGAIN)
    result["accepted_without_model"] = metric(llm, ACCEPTED) - accepted
    result["failures_of_model"] = proposer.failures.count - before
    return result


ACCEPTED = "vllm:spec_decode_num_accepted_tokens"


def run_all(
    llm: Any, count: int = NUM_REQUESTS, tenant: str = "t", **xargs: Any
) -> list[list[int]]:
    """Greedy replies to the first `count` prompts, several at once."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=MAX_MODEL_LEN if number % 4 == 0 and number < NUM_AGAIN else 24,
            ignore_eos=number % 2 == 0,
            extra_args={"paceline_tenant": tenant, "paceline_session": f"s{number}"} | xargs,
        )
        for number in range(count)
    ]
    replies = llm.generate(prompts()[:count], params, use_tqdm=False)
    return [list(reply.outputs[0].token_ids) for reply in replies]


def run_sampled(llm: Any) -> list[int]:
    """Lengths of sampled replies, some seeded, beside greedy ones."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.8 if number % 3 else 0.0,
            seed=7 if number % 2 else None,
            max_tokens=16,
            ignore_eos=True,
            extra_args={"paceline_tenant": "t"},
        )
        for number in range(NUM_AGAIN)
    ]
    replies = llm.generate(prompts()[:NUM_AGAIN], params, use_tqdm=False)
    return [len(reply.outputs[0].token_ids) for reply in replies]


def broken(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("broken on purpose")


def metrics_of(worker: Any) -> list[str]:
    """What Prometheus is told about fusion."""
    from paceline.adapters.metrics import MemoryCollector

    collector = MemoryCollector(worker._speculator, figures=worker._figures)
    return [
        sample.labels["event"]
        for family in collector.collect()
        for sample in family.samples
        if sample.name == "paceline_draft_events_total"
    ]


def metric(llm: Any, name: str) -> float:
    return sum(m.value for m in llm.get_metrics() if m.name == name)


if __name__ == "__main__":
    # The engine in this process, so that the worker can be looked into.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PACELINE_DRAFTER_TOKENS"] = str(MODEL_TOKENS)
    arguments = sys.argv[1:]
    print("RESULT " + json.dumps(main(arguments[0], arguments[1], (*arguments, None)[2])))
