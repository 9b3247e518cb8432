"""Greedy replies of a real vLLM with and without drafts, in float32, and their speed; not in CI.

Usage: python exactness.py TRACES TARGET OUT.json [MODE [DRAFTER]] [NAME=VALUE ...]

MODE is ``off``, ``memory``, ``drafter`` (vLLM's own draft_model, without Paceline) or ``fused``.
The prompts are those of `paceline bench exact`. Run several and compare the outputs:
python exactness.py ONE.json OTHER.json

NAME=VALUE changes one of the numbers in DEFAULTS. ``every=n`` lets the model of ``fused`` draft in
every n-th round whatever it costs, instead of where it is worth it, ``always=1`` drafts all that
may be drafted, ``warm=n`` lets the first n prompts of each source pass before anything is counted
or timed. Runs on whatever vLLM was built for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SOURCES = ("tau-bench", "mini-swe-agent", "intercode-sql", "spec-bench")
DEFAULTS = {
    "prompts": 50,
    "turns": 5,
    "context_tokens": 192,
    "output_tokens": 48,
    "in_flight": 10,
    "draft_tokens": 16,
    "model_tokens": 3,
    "every": 0,
    "always": 0,
    "warm": 0,
}
SLACK_TOKENS = 40


def main(
    traces: Path, target: str, mode: str, drafter: str | None, numbers: dict[str, int]
) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from paceline.benchmarks.exact.prompts import read_prompts
    from paceline.benchmarks.replay.tokens import Renderer, load_encoder

    os.environ["PACELINE_DRAFTER_TOKENS"] = str(numbers["model_tokens"])
    os.environ["PACELINE_ALWAYS_DRAFT"] = str(numbers["always"])
    llm = LLM(
        target,
        dtype="float32",
        enforce_eager=True,
        max_model_len=numbers["context_tokens"] + numbers["output_tokens"] + SLACK_TOKENS,
        max_num_seqs=numbers["in_flight"],
        disable_log_stats=False,
        **options(mode, drafter, numbers),
    )
    worker = llm.llm_engine.model_executor.driver_worker.worker
    if numbers["every"]:
        worker._proposer.fuser.gate = every_nth(numbers["every"])
    renderer = Renderer(load_encoder(target))
    result: dict[str, Any] = {"mode": mode, "outputs": [], "sources": {}, "numbers": numbers}
    for source in SOURCES:
        prompts = read_prompts(
            traces,
            source,
            renderer,
            num_prompts=numbers["prompts"],
            num_turns=numbers["turns"],
            context_tokens=numbers["context_tokens"],
        )
        params = SamplingParams(
            temperature=0,
            max_tokens=numbers["output_tokens"],
            output_kind=RequestOutputKind.CUMULATIVE,
            extra_args={"paceline_tenant": source},
        )
        asked, num_warm = [list(p.token_ids) for p in prompts], numbers["warm"]
        warming, _ = answer(llm, f"{source}/warm", asked[:num_warm], params)
        before, began_at, cpu_began = spec_counts(llm), time.perf_counter(), time.process_time()
        outputs, num_steps = answer(llm, source, asked[num_warm:], params)
        seconds, cpu = time.perf_counter() - began_at, time.process_time() - cpu_began
        result["outputs"] += [*warming, *outputs]
        counts = {name: n - before[name] for name, n in spec_counts(llm).items()}
        result["sources"][source] = figures(outputs, seconds, counts, num_steps) | {"cpu": cpu}
    if mode in ("memory", "fused"):
        drafting = worker._proposer.figures()
        result["stats"] = worker._speculator.stats() | drafting.events
        result["learned"] = {name: repr(cost) for name, cost in drafting.costs.items()}
    return result


def options(mode: str, drafter: str | None, numbers: dict[str, int]) -> dict[str, Any]:
    """Arguments of the engine for a mode."""
    from paceline.adapters.vllm.launch import require_vllm

    if mode == "off":
        return {}
    given: dict[str, Any] = {"async_scheduling": False}  # as `paceline vllm` starts it
    if mode == "memory":
        method, model, num_tokens = "custom_class", PROPOSER, numbers["draft_tokens"]
    else:
        assert drafter is not None
        method, model = "draft_model", drafter
        num_tokens = numbers["draft_tokens" if mode == "fused" else "model_tokens"]
    if mode != "drafter":
        device = require_vllm().device.upper()
        given["worker_cls"] = f"paceline.adapters.vllm.worker.{device}Worker"
    given["speculative_config"] = {
        "method": method,
        "model": model,
        "num_speculative_tokens": num_tokens,
    }
    return given


PROPOSER = "paceline.adapters.vllm.proposer.DraftProposer"


def answer(
    llm: Any, source: str, prompts: list[list[int]], params: Any
) -> tuple[list[list[int]], int]:
    """(replies, steps in which a reply grew, the first of each left out: it reads the prompt).

    Steps are counted: what vLLM says was accepted includes tokens behind a reply's end.
    """
    engine = llm.llm_engine
    for i, token_ids in enumerate(prompts):
        engine.add_request(f"{source}/{i}", {"prompt_token_ids": token_ids}, params)
    said: dict[str, list[int]] = {}
    num_steps = -len(prompts)
    while engine.has_unfinished_requests():
        for output in engine.step():
            token_ids = list(output.outputs[0].token_ids)
            num_steps += len(token_ids) > len(said.get(output.request_id, ()))
            said[output.request_id] = token_ids
    return [said[f"{source}/{i}"] for i in range(len(prompts))], num_steps


def spec_counts(llm: Any) -> dict[str, int]:
    """Drafted and accepted tokens so far."""
    found = dict.fromkeys(("draft_tokens", "accepted_tokens"), 0)
    for metric in llm.get_metrics():
        for name in found:
            if metric.name == f"vllm:spec_decode_num_{name}":
                found[name] += metric.value
    return found


def figures(
    outputs: list[list[int]], seconds: float, counts: dict[str, int], num_steps: int
) -> dict[str, float | int]:
    """Of one source. The first token of a reply comes with its prompt and is no step."""
    num_tokens = sum(map(len, outputs))
    return counts | {
        "tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_step": (num_tokens - len(outputs)) / num_steps,
        "drafted_per_step": counts["draft_tokens"] / num_steps,
    }


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


def compare(one: Path, other: Path) -> None:
    first, second = (json.loads(path.read_text()) for path in (one, other))
    a, b = first["outputs"], second["outputs"]
    assert len(a) == len(b)
    print(f"{sum(x == y for x, y in zip(a, b, strict=True))} of {len(a)} identical")
    for source, theirs in first["sources"].items():
        mine = second["sources"][source]
        ratio = mine["tokens_per_second"] / theirs["tokens_per_second"]
        print(
            f"{source:<16} {mine['tokens_per_step']:.2f}@{mine['drafted_per_step']:.1f} "
            f"tokens/step, {mine['tokens_per_second']:.1f} tokens/s, {ratio:.2f} times, by the "
            f"processor's time {theirs['cpu'] / mine['cpu']:.2f} times"
        )


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    given = [argument for argument in sys.argv[1:] if "=" not in argument]
    changed = dict(argument.split("=") for argument in sys.argv[1:] if "=" in argument)
    if len(given) == 2:
        compare(Path(given[0]), Path(given[1]))
    else:
        numbers = DEFAULTS | {name: int(value) for name, value in changed.items()}
        traces, target, out, mode, drafter = (*given, None, None)[:5]
        result = main(Path(str(traces)), str(target), mode or "off", drafter, numbers)
        Path(str(out)).write_text(json.dumps(result))
