"""Weights for vLLM's draft model: which are taken, which are put, and when none are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from drafter_folders import drop_weights, poison, save_drafter, truncate
from paceline.errors import DamagedDrafterError

if TYPE_CHECKING:
    from collections.abc import Callable


def make_model(*, is_packed: bool = False) -> Any:
    """Takes weights as vLLM's models do, by name, into the parameters that it has."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.taken: list[str] = []
            self.norm = torch.nn.Linear(2, 2)
            if is_packed:
                self.norm.cpu_linear = torch.nn.functional.linear

        def load_weights(self, weights: Any) -> None:
            for name, tensor in weights:
                self.taken.append(name)
                if name == "broken":
                    raise ValueError("no such weight")
                if name == "norm.weight":
                    self.norm.weight.data.copy_(tensor)

    return Model()


def make_runner(model: Any, *, eager: bool = True, **changes: Any) -> Any:
    config = {"method": "draft_model", "world_size": 1, "vocab_mapping": None} | changes
    return SimpleNamespace(
        drafter=SimpleNamespace(model=model, vocab_mapping=config["vocab_mapping"]),
        vllm_config=SimpleNamespace(
            speculative_config=SimpleNamespace(method=config["method"]),
            parallel_config=SimpleNamespace(world_size=config["world_size"], data_parallel_size=1),
            model_config=SimpleNamespace(enforce_eager=eager),
        ),
    )


def weights_of(value: float, embedding: str) -> Any:
    import torch

    from paceline.adapters.vllm.drafter_weights import DrafterWeights

    tensors = {"norm.weight": torch.full((2, 2), value), "embed_tokens.weight": torch.ones(3)}
    return DrafterWeights(tensors, {"embed_tokens.weight": embedding})


def test_weights_are_put_where_the_old_ones_are() -> None:
    """The parameter stays the same memory, so that recorded graphs compute with the new numbers."""
    from paceline.adapters.vllm.drafter_weights import RunningWeights

    model = make_model()
    place = model.norm.weight.data_ptr()
    RunningWeights(make_runner(model)).put(weights_of(0.5, "a"))
    assert model.norm.weight.data_ptr() == place
    assert model.norm.weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_what_is_as_wide_as_the_vocabulary_is_put_if_it_differs() -> None:
    """Known to be the same it is left out; after a failure nothing is known."""
    from paceline.adapters.vllm.drafter_weights import DrafterWeights, RunningWeights

    model = make_model()
    running = RunningWeights(make_runner(model))
    taken = []
    for weights, before in (
        (weights_of(0.1, "a"), None),
        (weights_of(0.2, "a"), None),
        (weights_of(0.3, "b"), None),
        (weights_of(0.4, "c"), weights_of(0.3, "c")),
    ):
        running.put(weights, before)
        taken.append("embed_tokens.weight" in model.taken)
        model.taken.clear()
    assert taken == [True, False, True, False]
    with pytest.raises(ValueError, match="no such weight"):
        running.put(DrafterWeights({"broken": None}, {}))
    running.put(weights_of(0.4, "c"))
    assert "embed_tokens.weight" in model.taken


def test_a_folder_is_read_if_it_can_take_the_place_of_the_first(tmp_path: Path) -> None:
    """With its shapes and its way to compute; the names of what differs are told."""
    from paceline.adapters.vllm.drafter_weights import read_drafter

    like = save_drafter(tmp_path / "like")
    found = read_drafter(save_drafter(tmp_path / "other", noise=0.1), like)
    assert "model.layers.2.mlp.up_proj.weight" in found.tensors
    assert set(found.digests) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert read_drafter(like, like).digests != found.digests
    for name, changes in {
        "num_hidden_layers": {"num_hidden_layers": 2},
        "rms_norm_eps": {"rms_norm_eps": 1e-3},
    }.items():
        with pytest.raises(DamagedDrafterError, match=name):
            read_drafter(save_drafter(tmp_path / name, **changes), like)


@pytest.mark.parametrize("damage", [truncate, poison, drop_weights])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Before anything of it is near the engine."""
    from paceline.adapters.vllm.drafter_weights import read_drafter

    like, bad = save_drafter(tmp_path / "like"), save_drafter(tmp_path / "bad")
    damage(bad)
    with pytest.raises(DamagedDrafterError):
        read_drafter(bad, like)


@pytest.mark.parametrize(
    ("changes", "eager", "is_packed", "words"),
    [
        ({}, False, False, ""),
        ({"method": "eagle3"}, True, False, "kind eagle3"),
        ({"world_size": 2}, True, False, "several processes"),
        ({"vocab_mapping": object()}, True, False, "vocabulary"),
        ({}, False, True, "--enforce-eager"),
    ],
)
def test_it_is_said_why_a_drafter_keeps_its_weights(
    tmp_path: Path, changes: dict[str, Any], eager: bool, is_packed: bool, words: str
) -> None:
    """EAGLE, several processes, another vocabulary, packed weights in a compiled model."""
    from paceline.adapters.vllm.drafter_weights import why_not_swapped

    runner = make_runner(make_model(is_packed=is_packed), eager=eager, **changes)
    reason = why_not_swapped(runner, str(tmp_path))
    assert bool(reason) == bool(words)
    assert words in reason
    assert "not a folder" in why_not_swapped(make_runner(make_model()), "org/model")


@pytest.mark.parametrize(
    ("group", "counts", "expected"),
    [("shared", True, [[7], [8]]), ("team", True, [[], []]), ("team", False, [[7], [8]])],
)
def test_what_vllm_drafts_alone_is_not_had_of_a_groups_drafter(
    group: str, counts: bool, expected: list[list[int]]
) -> None:
    """Its passes are run all the same, and where drafts do not count they are left as they are."""
    from paceline.adapters.vllm.fused import FusedProposer

    proposer: Any = object.__new__(FusedProposer)
    proposer._drafter_group, proposer._speculator = group, object() if counts else None
    calls: list[Any] = []
    proposer._alone = lambda *arguments: calls.append(arguments) or [[7], [8]]
    assert proposer._fall_back(None, {"sampled_token_ids": [[1], [2]]}, ()) == expected
    assert len(calls) == 1
