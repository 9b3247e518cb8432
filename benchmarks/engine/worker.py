"""vLLM worker classes whose target says what it is told: for `paceline bench engine` alone.

`CPUWorker` and `GPUWorker` are Paceline's workers, `PeerCPUWorker` and `PeerGPUWorker` vLLM's own,
each with the same additions: a request that carries a recorded reply gets it, token for token, and
each step's length, tokens and drafting time are kept. Prefill, scheduling, verification and
drafting are the engine's. Written for vLLM's V1 model runner, the only one that runs its n-gram,
its suffix decoding and custom proposers. The classes are made on first access, as Paceline's are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from paceline.benchmarks.engine.records import REPLY_KEY
from paceline.benchmarks.engine.stepping import Row, StepLog, forced_tokens
from paceline.errors import UnsupportedError


class TraceForcing:
    """What is added to a worker; mixed in before its class."""

    model_runner: Any
    use_v2_model_runner: bool
    _log: StepLog

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the target, then put the recorded replies between its logits and its sampler.

        Raises:
            UnsupportedError: vLLM chose its V2 model runner.
        """
        super().load_model(*args, **kwargs)  # type: ignore[misc]  # the platform's worker
        if self.use_v2_model_runner:
            raise UnsupportedError(
                "vLLM chose its V2 model runner, which replies cannot be forced upon; set "
                "VLLM_USE_V2_MODEL_RUNNER=0"
            )
        runner = self.model_runner
        self._log = StepLog(time.perf_counter)
        runner._sample = ForcedSampling(runner, runner._sample, self._log)
        drafter = getattr(runner, "drafter", None)
        if drafter is None:
            return
        runner.propose_draft_token_ids = self._log.drafting(runner.propose_draft_token_ids)
        if hasattr(drafter, "finish"):
            drafter.finish = self._log.drafting(drafter.finish)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run the step's forward pass."""
        self._log.begin()
        self.model_runner._sample.begin(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]  # the platform's worker

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, verify and draft; the step ends here."""
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]  # the platform's worker
        self._log.end()
        return output

    def take_steps(self) -> list[Any]:
        """The steps since the last call, as plain lists that cross vLLM's process border."""
        steps: list[Any] = msgspec.to_builtins(self._log.take())
        return steps

    def forget(self) -> None:
        """Empty the suffix trees, which know no tenants: the next unit starts from a cold memory.

        Paceline's memory is cold for a tenant it has not seen.
        """
        runner = self.model_runner
        if hasattr(getattr(runner, "drafter", None), "suffix_cache"):
            runner.drafter = type(runner.drafter)(runner.vllm_config)


class ForcedSampling:
    """Stands in for the runner's ``_sample``: changes the logits, then calls it.

    Only the wanted token's logit is raised, so that sampling and verification cost what they cost
    on the target's own logits.

    Args:
        runner: vLLM's V1 model runner.
        sample: its own method.
        log: told what each step holds.
    """

    def __init__(self, runner: Any, sample: Any, log: StepLog) -> None:
        self._runner = runner
        self._sample = sample
        self._log = log
        self._scheduled: Any = None

    def begin(self, scheduler_output: Any) -> None:
        """A step was scheduled."""
        self._scheduled = scheduler_output

    def __call__(self, logits: Any, spec_decode_metadata: Any) -> Any:
        """Make each row of `logits` want its recorded token, then sample.

        Args:
            logits: (rows, vocabulary), changed in place; None on ranks that do not sample.
            spec_decode_metadata: of the step, None without drafts.
        """
        started = time.perf_counter()
        rows = tuple(self._rows())
        self._log.observe(rows)
        if logits is not None:
            raise_logits(logits, *forced_tokens(rows))
        self._log.add_forcing(time.perf_counter() - started)
        return self._sample(logits, spec_decode_metadata)

    def _rows(self) -> Iterator[Row]:
        runner, scheduled = self._runner, self._scheduled
        batch = runner.input_batch
        partial = runner.discard_request_mask.np
        for index in range(batch.num_reqs):
            request_id = batch.req_ids[index]
            params = runner.requests[request_id].sampling_params
            yield Row(
                request_id=request_id,
                reply=(params.extra_args or {}).get(REPLY_KEY),
                position=int(batch.num_tokens_no_spec[index] - batch.num_prompt_tokens[index]),
                num_scheduled=scheduled.num_scheduled_tokens[request_id],
                draft_ids=scheduled.scheduled_spec_decode_tokens.get(request_id, ()),
                is_partial=bool(partial[index]),
            )


def raise_logits(logits: Any, indices: Sequence[int], token_ids: Sequence[int]) -> None:
    """Make row ``indices[i]`` of `logits` want ``token_ids[i]``, in place."""
    import torch

    if not indices:
        return
    # pinned, so that the copy only queues: the step's forward pass may still run on the GPU
    where = torch.tensor([indices, token_ids], dtype=torch.int64, pin_memory=logits.is_cuda)
    rows, tokens = where.to(logits.device, non_blocking=True)
    logits[rows, tokens] = torch.finfo(logits.dtype).max


def __getattr__(name: str) -> type:
    if name in ("CPUWorker", "GPUWorker"):
        from paceline.adapters.vllm import worker as ours

        base = getattr(ours, name)
    elif name == "PeerCPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker

        base = CPUWorker
    elif name == "PeerGPUWorker":
        from vllm.v1.worker.gpu_worker import Worker

        base = Worker
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    worker = type(name, (TraceForcing, base), {})
    worker.__module__ = __name__
    globals()[name] = worker
    return worker
