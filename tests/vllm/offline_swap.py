"""Runs a real vLLM engine whose drafter changes while it runs; prints JSON.

Usage: python offline_swap.py TARGET off|swap [DRAFTER COPY REDIS_URL REGISTRY]

DRAFTER knows little of the target; COPY has DRAFTER's shapes and agrees with the target.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offline_fused import difference, every_nth, listening, prompts

MAX_MODEL_LEN = 320
NUM_REQUESTS = 12
MODEL_TOKENS = 3
GROUP = "shared"
SWAP_STEP = 12
MOST_TURNS = 4


def main(target: str, mode: str, *rest: str) -> dict[str, Any]:
    from vllm import LLM

    options: dict[str, Any] = {}
    if mode == "swap":
        drafter, copy, redis_url, registry = rest
        os.environ["PACELINE_REDIS_URL"] = redis_url
        os.environ["PACELINE_DRAFTER_REGISTRY"] = registry
        options["worker_cls"] = "paceline.adapters.vllm.worker.CPUWorker"
        options["speculative_config"] = {
            "method": "draft_model",
            "model": drafter,
            "num_speculative_tokens": 4,
        }
    llm = LLM(
        target,
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=96,
        max_num_seqs=4,
        disable_log_stats=False,
        **options,
    )
    result: dict[str, Any] = {"outputs": run_all(llm)}
    if mode == "swap":
        worker = llm.llm_engine.model_executor.driver_worker.worker
        result |= try_swaps(llm, worker, Path(drafter), Path(copy))
    return result


def try_swaps(llm: Any, worker: Any, drafter: Path, copy: Path) -> dict[str, Any]:
    proposer, watch = worker._proposer, worker._watch
    watch.close()  # from here on it looks when it is told to
    proposer.fuser.gate = every_nth(1)
    proposer.budget.always_draft = True
    result: dict[str, Any] = {"skips": proposer.model.abilities.skips}
    result["poor"] = [run_all(llm) for _ in range(2)]  # the second time memory knows much
    result["agreement_poor"] = proposer.tally.total(0).agreement
    result |= follow(llm, worker, copy)
    result["regression"] = regress(llm, worker, drafter)
    poor, good = (watch._host.load(folder) for folder in (drafter, copy))
    result |= swap_in_mid_request(llm, proposer, poor, good)
    result |= put_bad_weights(llm, proposer, good)
    return result | {"failures": proposer.failures.count}


def follow(llm: Any, worker: Any, copy: Path) -> dict[str, Any]:
    """A version is published, tried and promoted by the watch itself, in the midst of requests."""
    proposer, watch = worker._proposer, worker._watch
    registry = watch._opened()
    version = registry.publish(GROUP, copy, parent=0, num_tokens=1, gate=None).version
    with looking(proposer, watch):
        across = [run_all(llm) for _ in range(3)]
    seen = proposer.tally.total(version)
    return {
        "across": across,
        "version": metric_of(worker, "paceline_drafter_version"),
        "state": registry.version(GROUP, version).state,
        "agreement_good": seen.agreement,
        "rounds_good": seen.num_rounds,
        "counts": [watch.counts.swaps, watch.counts.promotions, watch.counts.rollbacks],
        "swap_seconds": metric_of(worker, "paceline_drafter_swap_seconds"),
    }


def regress(llm: Any, worker: Any, poor: Path) -> dict[str, Any]:
    """Poor weights of which a gate says that they are better, beside what `follow` has promoted."""
    from paceline.caches.drafter_versions import GateResult

    proposer, watch = worker._proposer, worker._watch
    registry, good = watch._opened(), watch.version
    passed = GateResult(
        passed=True,
        num_sessions=20,
        num_rounds=400,
        before=1.0,
        after=1.5,
        lower_bound=0.25,
        agreement_before=0.5,
        agreement_after=0.6,
        slices=(),
        reasons=(),
    )
    version = registry.publish(GROUP, poor, parent=good, num_tokens=1, gate=passed).version
    outputs: list[list[list[int]]] = []
    with looking(proposer, watch):
        while not outputs or (watch.version != good and len(outputs) < MOST_TURNS):
            outputs.append(run_all(llm))
        before = proposer.tally.total(good).num_rounds
        outputs.append(run_all(llm))
    found = registry.version(GROUP, version)
    return {
        "outputs": outputs,
        "state": found.state,
        "reason": found.reason,
        "current": registry.state(GROUP).current == good,
        "agreement": proposer.tally.total(version).agreement,
        "rounds": proposer.tally.total(version).num_rounds,
        "rounds_after": proposer.tally.total(good).num_rounds - before,
        "version": metric_of(worker, "paceline_drafter_version"),
        "canary": metric_of(worker, "paceline_drafter_canary"),
        "counts": [watch.counts.canaries, watch.counts.promotions, watch.counts.rollbacks],
    }


@contextmanager
def looking(proposer: Any, watch: Any) -> Iterator[None]:
    """The watch looks before every step."""
    begin_step = proposer.begin_step

    def begin(scheduler_output: Any) -> None:
        assert watch.look()
        begin_step(scheduler_output)

    proposer.begin_step = begin
    try:
        yield
    finally:
        proposer.begin_step = begin_step


def swap_in_mid_request(llm: Any, proposer: Any, poor: Any, good: Any) -> dict[str, Any]:
    """Chains of good weights that were always there, came in between, and read nothing again."""
    from paceline.adapters.drafter_swap import Swap

    result: dict[str, Any] = {}
    heard: dict[str, dict[Any, Any]] = {}
    begin_step, retire = proposer.begin_step, proposer.model._ledger.retire
    for name, is_late, forgets in (
        ("always", False, True),
        ("mid", True, True),
        ("mixed", True, False),
    ):
        put(proposer, Swap(1, poor if is_late else good))
        proposer.model._ledger.retire = retire if forgets else (lambda: None)
        with listening(proposer) as heard[name]:
            if is_late:
                proposer.begin_step = swapping(proposer, Swap(2, good), heard[name])
            result[f"outputs_{name}"] = run_all(llm, tenant=name)
        proposer.begin_step, proposer.model._ledger.retire = begin_step, retire
    for name in ("mid", "mixed"):
        result[name] = difference(heard["always"], heard[name])
    return result


def swapping(proposer: Any, swap: Any, heard: dict[Any, Any]) -> Callable[[Any], None]:
    """Stands in for `begin_step`: swaps in the twelfth step, and forgets what was heard before."""
    begin_step, num_steps = proposer.begin_step, itertools.count(1)

    def begin(scheduler_output: Any) -> None:
        if next(num_steps) == SWAP_STEP:
            put(proposer, swap)
            heard.clear()
        begin_step(scheduler_output)

    return begin


def put_bad_weights(llm: Any, proposer: Any, good: Any) -> dict[str, Any]:
    """Weights that vLLM cannot take."""
    from paceline.adapters.drafter_swap import Swap

    some = next(iter(good.tensors.values()))
    bad = Swap(3, type(good)({"no.such.weight": some}, {}), before=good)
    proposer.swaps.offer(bad)
    before = proposer.tally.total(2).num_agreed
    return {
        "outputs_bad": run_all(llm, tenant="bad"),
        "bad_is_refused": bad.error is not None,
        "agreed_after_bad": proposer.tally.total(2).num_agreed - before,
        "usable": proposer.model.is_usable,
    }


def put(proposer: Any, swap: Any) -> None:
    proposer.swaps.offer(swap)
    proposer.swaps.take()
    assert swap.error is None, swap.error


def run_all(llm: Any, tenant: str = "t") -> list[list[int]]:
    """Greedy replies, several at once."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=40 + 8 * (number % 3),
            ignore_eos=True,
            extra_args={"paceline_tenant": tenant, "paceline_session": f"s{number}"},
        )
        for number in range(NUM_REQUESTS)
    ]
    replies = llm.generate(prompts()[:NUM_REQUESTS], params, use_tqdm=False)
    return [list(reply.outputs[0].token_ids) for reply in replies]


def metric_of(worker: Any, name: str) -> float:
    from paceline.adapters.metrics import MemoryCollector

    collector = MemoryCollector(worker._speculator, drafter=worker._drafter_figures)
    return next(
        sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name == name
    )


if __name__ == "__main__":
    # The engine in this process, so that the worker can be looked into.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["PACELINE_DRAFTER_TOKENS"] = str(MODEL_TOKENS)
    print("RESULT " + json.dumps(main(*sys.argv[1:])))
