"""Other weights for the draft model of a running vLLM, put where its old ones are.

vLLM's models take weights by their Hugging Face names (``load_weights``) and copy them into the
parameters that they have, joined ones (queries, keys and values) included. The parameters stay
where they are in memory, so that recorded CUDA graphs compute with the new ones. A build that has
packed its weights after loading (vLLM's on a CPU) unpacks and packs each layer anew with vLLM's own
``initialize_layerwise_reload`` (0.32).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from paceline.adapters.drafter_files import TIED_HEAD, check_weights, read_config, read_weights
from paceline.errors import DamagedDrafterError

SWAPPED_METHOD: Final = "draft_model"
WIDE: Final = ("embed_tokens.weight", TIED_HEAD)
"""Ends of names of tensors as wide as the vocabulary: large, and mostly the target's own."""


@dataclass(frozen=True, slots=True, eq=False)
class DrafterWeights:
    """A drafter as it was read.

    Attributes:
        tensors: by their Hugging Face names, on the CPU.
        digests: of the contents of those that are as wide as the vocabulary.
    """

    tensors: Mapping[str, Any]
    digests: Mapping[str, str]


def read_drafter(folder: Path, like: Path, *, pin: bool = False) -> DrafterWeights:
    """A drafter that can take the place of another.

    Args:
        folder: its own.
        like: folder of the one that vLLM was started with.
        pin: have the tensors where a GPU copies from fastest.

    Raises:
        DamagedDrafterError: it cannot be read, or computes in another way.
    """
    config = read_config(folder)
    if config != (other := read_config(like)):
        names = sorted(name for name in config | other if config.get(name) != other.get(name))
        raise DamagedDrafterError(
            f"{folder} differs from the drafter that vLLM was started with ({like}) in "
            f"{', '.join(names)}; vLLM takes weights of the same shapes: start it with this drafter"
        )
    tensors = read_weights(folder)
    check_weights(folder, tensors)
    if config.get("tie_word_embeddings"):
        tensors.pop(TIED_HEAD, None)
    digests = {name: _digest(tensor) for name, tensor in tensors.items() if name.endswith(WIDE)}
    if pin:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return DrafterWeights(tensors, digests)


def why_not_swapped(runner: Any, folder: str) -> str:
    """Why the drafter of a runner keeps its weights while it runs; "" where they can change.

    Args:
        runner: vLLM's V1 model runner, its drafter loaded.
        folder: what vLLM was told to draft with.
    """
    config, drafter = runner.vllm_config, runner.drafter
    packed, is_eager = _is_packed(drafter.model), config.model_config.enforce_eager
    method = config.speculative_config.method
    reasons = {
        f"it is of the kind {method}; only a draft model's weights are swapped": (
            method != SWAPPED_METHOD
        ),
        "several processes run it together, which would have to swap in one step": (
            config.parallel_config.world_size > 1 or config.parallel_config.data_parallel_size > 1
        ),
        f"{folder} is not a folder; start vLLM with the folder of a drafter": (
            not Path(folder).is_dir()
        ),
        "its vocabulary is not the target's": getattr(drafter, "vocab_mapping", None) is not None,
        "its packed weights are compiled in; start vLLM with --enforce-eager": (
            packed and not is_eager
        ),
        "this vLLM cannot unpack the weights that it has packed": (
            packed and is_eager and not _can_repack()
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _can_repack() -> bool:
    try:
        from vllm.model_executor.model_loader.reload import layerwise
    except ImportError:
        return False
    return hasattr(layerwise, "initialize_layerwise_reload")


class RunningWeights:
    """The weights of a runner's draft model.

    Args:
        runner: vLLM's V1 model runner, its drafter loaded.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._digests: Mapping[str, str] = {}

    def put(self, weights: DrafterWeights, running: DrafterWeights | None = None) -> None:
        """Replace them in place, between two steps. O(bytes), which the step waits for.

        Tensors as wide as the vocabulary are left out where they are known to be the same.

        Args:
            weights: the new ones.
            running: those that are replaced; None for those of the last call.

        Raises:
            Exception: whatever vLLM raises; some weights may be old then and some new.
        """
        known = self._digests if running is None else running.digests
        self._digests = {}
        changed = [
            (name, tensor)
            for name, tensor in weights.tensors.items()
            if weights.digests.get(name, "") != known.get(name)
        ]
        put = _repack if _is_packed(self._runner.drafter.model) else _copy
        put(self._runner, changed)
        self._digests = weights.digests


def _copy(runner: Any, weights: Iterable[tuple[str, Any]]) -> None:
    runner.drafter.model.load_weights(weights)


def _repack(runner: Any, weights: list[tuple[str, Any]]) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import layerwise

    model = runner.drafter.model
    config = runner.vllm_config
    with set_current_vllm_config(config):
        layerwise.initialize_layerwise_reload(model)
        try:
            model.load_weights(weights)
        finally:
            layerwise.finalize_layerwise_reload(model, config.speculative_config.draft_model_config)


def _is_packed(model: Any) -> bool:
    """Whether a layer computes from another form of its weights than the parameters."""
    return any(hasattr(layer, "cpu_linear") for layer in model.modules())


def _digest(tensor: Any) -> str:
    import torch

    data = tensor.contiguous().view(torch.uint8).numpy()
    return blake2b(data, digest_size=16).hexdigest()
