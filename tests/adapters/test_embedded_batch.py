"""Packed batches: every sequence gets the logits that transformers gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.caches.tree import ROOT
from paceline.errors import EngineError
from small_models import VOCABULARY, random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.target import Target


def random_target(kind: str) -> Target:
    from paceline.adapters.embedded.target import Target

    return Target(random_model(kind), tokenizer=None)


@pytest.fixture(scope="module")
def llama() -> Target:
    """A small Llama with grouped queries."""
    return random_target("llama")


def tokens(seed: int, number: int) -> list[int]:
    return [(seed * 31 + i * i * 7) % VOCABULARY for i in range(number)]


def alone(target: Target, token_ids: list[int]) -> Any:
    """Logits after each token, read in one go."""
    from paceline.adapters.embedded.target import Row

    row = Row(
        request_id="alone",
        key_values=target.sequence(),
        token_ids=token_ids,
        num_logits=len(token_ids),
    )
    return target.forward([row])[0]


def close(one: Any, other: Any) -> bool:
    import torch

    return bool(torch.allclose(one, other, atol=1e-4, rtol=1e-4))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_packed_sequences_get_the_logits_of_the_model_itself(kind: str) -> None:
    """Prompts and continuations of several lengths in one pass, in pieces, windows included."""
    import torch

    from paceline.adapters.embedded.target import Row

    texts = {name: tokens(seed, 20 + seed * 9) for seed, name in enumerate("abc")}
    model = random_model(kind)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = {
            name: model(input_ids=torch.tensor([text])).logits[0] for name, text in texts.items()
        }
    target = random_target(kind)
    sequences = {name: target.sequence() for name in texts}
    for start, end in ((0, 3), (3, 4), (4, 15), (15, 20)):
        rows = [
            Row(
                request_id=name,
                key_values=sequences[name],
                token_ids=text[start:end],
                num_logits=end - start,
            )
            for name, text in texts.items()
        ]
        for name, logits in zip(texts, target.forward(rows), strict=True):
            assert close(logits, expected[name][start:end])
    assert [len(kept) for kept in sequences.values()] == [20, 20, 20]


trees = st.lists(st.tuples(st.integers(0, VOCABULARY - 1), st.integers(0, 100)), max_size=10)


@settings(max_examples=40, deadline=None)
@given(nodes=trees, num_context=st.integers(1, 12), kind=st.sampled_from(["llama", "mistral"]))
def test_every_node_of_a_tree_reads_its_own_path(
    nodes: list[tuple[int, int]], num_context: int, kind: str, models: Callable[[str], Target]
) -> None:
    """A node's logits are those of the chain that leads to it, whatever stands beside."""
    from paceline.adapters.embedded.target import Row

    target = models(kind)
    context = tokens(5, num_context)
    parents = [ROOT if i == 0 else pick % (i + 1) - 1 for i, (_, pick) in enumerate(nodes)]
    drafted = [token for token, _ in nodes]
    row = Row(
        request_id="tree",
        key_values=target.sequence(),
        token_ids=[*context, *drafted],
        parents=parents,
        num_logits=len(drafted) + 1,
    )
    logits = target.forward([row])[0]
    for node in range(len(drafted)):
        path, above = [drafted[node]], parents[node]
        while above != ROOT:
            path.insert(0, drafted[above])
            above = parents[above]
        assert close(logits[node + 1], alone(target, context + path)[-1])
    assert close(logits[0], alone(target, context)[-1])


@pytest.fixture(scope="module")
def models() -> Callable[[str], Target]:
    """Small targets by kind, each made once."""
    made: dict[str, Target] = {}

    def of(kind: str) -> Target:
        if kind not in made:
            made[kind] = random_target(kind)
        return made[kind]

    return of


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 40])
def test_attention_is_the_same_to_the_last_bit_however_much_is_drafted(
    dtype: str, window: int | None
) -> None:
    """A token's attended values, alone and with drafted tokens behind it, across blocks' ends."""
    import torch

    from paceline.adapters.embedded.key_values import CacheShape, KeyValues
    from paceline.adapters.embedded.packed_attention import PackedCache, Span, attend

    kind, layer = getattr(torch, dtype), SimpleNamespace(layer_idx=0)
    generator = torch.Generator().manual_seed(5)
    shape = CacheShape(num_layers=1, num_heads=3, head_dim=64, dtype=kind)

    def attended(sequence: KeyValues, drawn: list[Any]) -> Any:
        num_new = drawn[0].shape[2]
        sequence.reserve(num_new)
        at = torch.arange(num_new) + len(sequence)
        batch = PackedCache([Span(0, num_new, sequence, at, None)])
        found, _ = attend(
            layer, *drawn, None, sliding_window=window, scaling=0.125, paceline_batch=batch
        )
        return found[0]

    for held in (1, 13, 15, 16, 31, 60, 250, 510):
        sequence = KeyValues(shape)
        past = [
            torch.randn(1, heads, held, 64, generator=generator).to(kind) for heads in (9, 3, 3)
        ]
        attended(sequence, past)
        sequence.advance(held)
        new = [torch.randn(1, heads, 12, 64, generator=generator).to(kind) for heads in (9, 3, 3)]
        together = attended(sequence, new)
        for i in range(12):
            one = attended(sequence, [each[:, :, i : i + 1] for each in new])
            assert torch.equal(one[0], together[i])
            sequence.advance(1)


def test_an_accepted_path_is_all_that_stays(llama: Target) -> None:
    """After `keep` the sequence goes on as if only the accepted nodes had ever been read."""
    from paceline.adapters.embedded.target import Row

    context, accepted, after = tokens(1, 70), [11, 12, 13], [4, 5, 6, 7]
    sequence = llama.sequence()
    tree = [90, 11, 91, 12, 92, 13]
    parents = [ROOT, ROOT, 1, 1, 3, 3]
    llama.forward([
        Row(request_id="r", key_values=sequence, token_ids=[*context, *tree], parents=parents)
    ])  # fmt: skip
    sequence.keep(len(context), [1, 3, 5])
    assert len(sequence) == len(context) + 3
    row = Row(request_id="r", key_values=sequence, token_ids=after, num_logits=len(after))
    expected = alone(llama, context + accepted + after)[-len(after) :]
    assert close(llama.forward([row])[0], expected)


def test_a_copy_is_independent(llama: Target) -> None:
    """A copied beginning reads on like the original, which it does not change."""
    from paceline.adapters.embedded.target import Row

    context = tokens(2, 30)
    original = llama.sequence()
    llama.forward([Row(request_id="o", key_values=original, token_ids=context)])
    copied = original.copy(20)
    fork = Row(request_id="c", key_values=copied, token_ids=[1, 2], num_logits=2)
    assert close(llama.forward([fork])[0], alone(llama, [*context[:20], 1, 2])[-2:])
    on = Row(request_id="o", key_values=original, token_ids=[3], num_logits=1)
    assert close(llama.forward([on])[0], alone(llama, [*context, 3])[-1:])


def test_a_failed_pass_leaves_the_sequences_as_they_were(llama: Target) -> None:
    """An error in the model counts no token as read; the same sequence can be read on."""
    from paceline.adapters.embedded.target import Row

    sequence = llama.sequence()
    context = tokens(4, 10)
    llama.forward([Row(request_id="r", key_values=sequence, token_ids=context)])
    with pytest.raises(IndexError):
        llama.forward([Row(request_id="r", key_values=sequence, token_ids=[VOCABULARY + 5])])
    assert len(sequence) == 10
    row = Row(request_id="r", key_values=sequence, token_ids=[1], num_logits=1)
    assert close(llama.forward([row])[0], alone(llama, [*context, 1])[-1:])


def test_attention_that_is_not_understood_is_refused() -> None:
    """A model with capped scores gets an error that names them, not wrong logits."""
    with pytest.raises(EngineError, match=r"softcap.*serve it with vLLM"):
        alone(random_target("gemma2"), [1, 2, 3])
