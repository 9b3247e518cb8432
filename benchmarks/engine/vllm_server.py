"""vLLM's asynchronous engine, made to say recorded replies; tokens in, tokens out."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, Final

import msgspec

from paceline.adapters.vllm.launch import Device, require_vllm, serve_environment
from paceline.adapters.vllm.settings import WorkerSettings
from paceline.benchmarks.engine.records import (
    OURS_IN_VLLM,
    REPLY_KEY,
    EngineBenchSettings,
    Step,
    Unit,
    Variant,
    WorkRequest,
)
from paceline.benchmarks.engines import KV_CACHE_GIB
from paceline.benchmarks.peers.arctic import PACKAGE, STEM, default_folder
from paceline.errors import ConfigError

NGRAM_LENGTHS: Final = (2, 5)
WORKERS: Final = "paceline.benchmarks.engine.worker"
SLACK_TOKENS: Final = 64
"""Kept free at the end of every context: near it vLLM drafts less, or for nobody."""


def suffix_path(env: Mapping[str, str]) -> str | None:
    """What to add to ``PYTHONPATH`` so that vLLM's ``suffix`` method can run.

    "" where its package is in this environment, the folder where `paceline bench replay` has built
    it, None where there is neither.
    """
    if util.find_spec(PACKAGE) is not None:
        return ""
    built = default_folder(env) / STEM / f"python-{sysconfig.get_config_var('SOABI')}"
    return str(built) if (built / PACKAGE).is_dir() else None


def engine_environment(
    settings: EngineBenchSettings, env: Mapping[str, str], device: Device
) -> dict[str, str]:
    """The environment of an engine's process, the same for every variant."""
    paths = [path for path in (suffix_path(env), env.get("PYTHONPATH")) if path]
    return serve_environment(
        {
            "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
            "VLLM_LOGGING_LEVEL": "WARNING",
            **env,
            **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            # No plugin may change the engine: a peer's would replace parts of it for everybody.
            "VLLM_PLUGINS": "",
            # What forces the replies is written for V1, which every drafting variant runs on.
            "VLLM_USE_V2_MODEL_RUNNER": "0",
        },
        WorkerSettings(
            min_probability=settings.min_probability, drafter_tokens=settings.num_drafter_tokens
        ),
        device=device,
    )


def engine_arguments(
    settings: EngineBenchSettings, variant: Variant, *, longest_reply: int, device: Device
) -> dict[str, Any]:
    """Arguments of vLLM's engine for a variant; `settings.engine_options` win.

    Args:
        settings: of the run.
        variant: how it speculates.
        longest_reply: tokens of the longest reply that will be asked for.
        device: which platform's worker is taken.
    """
    most_drafted = max(settings.num_draft_tokens, settings.num_ngram_tokens)
    max_model_len = settings.context_tokens + longest_reply + 2 * most_drafted + SLACK_TOKENS
    peer = "" if variant in OURS_IN_VLLM else "Peer"
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "load_format": settings.load_format,
        "enforce_eager": settings.eager,
        "max_model_len": max_model_len,
        "max_num_seqs": settings.max_in_flight,
        "skip_tokenizer_init": True,
        "worker_cls": f"{WORKERS}.{peer}{device.upper()}Worker",
        "disable_log_stats": True,
    }
    if max_model_len > _trained_length(Path(settings.model)):
        # What the target says is not its own, so it may read further than it was trained to.
        arguments["hf_overrides"] = {"max_position_embeddings": max_model_len}
    if variant == "paceline-fused":
        arguments["async_scheduling"] = False  # as `paceline vllm --drafter` starts it
    speculation = _speculation(settings, variant)
    if speculation:
        arguments["speculative_config"] = speculation
    return arguments | settings.engine_options


def read_config(model: Path) -> dict[str, Any]:
    """The config of a Hugging Face folder.

    Raises:
        ConfigError: there is none, or it is not JSON.
    """
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{model} holds no readable config.json; name a Hugging Face folder (--model): {error}"
        ) from error
    return dict(config)


def _trained_length(model: Path) -> int:
    return int(read_config(model).get("max_position_embeddings") or 0)


def _speculation(settings: EngineBenchSettings, variant: Variant) -> dict[str, Any] | None:
    if variant == "ngram":
        shortest, longest = NGRAM_LENGTHS
        return {
            "method": "ngram",
            "num_speculative_tokens": settings.num_ngram_tokens,
            "prompt_lookup_min": shortest,
            "prompt_lookup_max": longest,
        }
    if variant == "suffix":
        return {
            "method": "suffix",
            "num_speculative_tokens": settings.num_draft_tokens,
            "suffix_decoding_max_tree_depth": settings.suffix_depth,
            "suffix_decoding_max_spec_factor": settings.suffix_factor,
        }
    if variant == "paceline":
        return {
            "method": "custom_class",
            "model": "paceline.adapters.vllm.proposer.DraftProposer",
            "num_speculative_tokens": settings.num_draft_tokens,
        }
    if variant == "paceline-fused":
        return {
            "method": "draft_model",
            "model": settings.drafter,
            "num_speculative_tokens": settings.num_draft_tokens,
        }
    return None


class VllmServer:
    """One engine in a process of its own, driven from this process's event loop.

    Args:
        engine: vLLM's ``AsyncLLM`` with a worker of `paceline.benchmarks.engine.worker`.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @classmethod
    def start(
        cls, settings: EngineBenchSettings, variant: Variant, *, longest_reply: int
    ) -> VllmServer:
        """Start the engine, from within a running event loop."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(
            settings, variant, longest_reply=longest_reply, device=require_vllm().device
        )
        # the context in which vLLM picks the batch sizes of a server
        return cls(
            AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments), usage_context=UsageContext.OPENAI_API_SERVER
            )
        )

    async def generate(self, request: WorkRequest) -> AsyncIterator[Sequence[int]]:
        """The reply's tokens, piece by piece as they come."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0,
            max_tokens=len(request.output_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={
                REPLY_KEY: list(request.output_ids),
                "paceline_tenant": request.tenant,
                "paceline_session": request.session,
            },
        )
        # the proxy salts the prefix cache with the sharing scope, too
        prompt = {"prompt_token_ids": list(request.prompt_ids), "cache_salt": request.tenant}
        async for output in self._engine.generate(prompt, params, request.request_id):
            yield output.outputs[0].token_ids

    async def make_cold(self) -> None:
        """Forget what earlier units left, in the prefix cache and in memories without tenants."""
        await self._engine.reset_prefix_cache()
        await self._engine.collective_rpc("forget")
        await self.take_steps()

    async def take_steps(self) -> list[Step]:
        """The engine's steps since the last call, of its first rank."""
        (steps, *_) = await self._engine.collective_rpc("take_steps")
        return msgspec.convert(steps, list[Step])

    def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()


def longest_reply(units: Sequence[Unit]) -> int:
    """Tokens of the longest reply of `units`."""
    return max(len(r.output_ids) for unit in units for e in unit.episodes for r in e)
