"""A drafter cut from its target: a plain Hugging Face folder, its head trimmed for our engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from paceline.drafter_folder import (
    DrafterRecord,
    new_folder,
    read_record,
    write_record,
)
from paceline.errors import ConfigError
from paceline.online.settings import InitSettings
from small_chats import write_target
from small_models import VOCABULARY, random_model


def init(target: Path, out: Path, **settings: Any) -> DrafterRecord:
    from paceline.online.cutting import init_drafter

    return init_drafter(InitSettings(target=str(target), out=str(out), **settings))


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2"])
@pytest.mark.parametrize("tied", [False, True], ids=["a head of its own", "a tied head"])
def test_a_drafter_has_the_targets_weights(kind: str, tied: bool, tmp_path: Path) -> None:
    """What transformers loads is the target with fewer layers, the chosen ones, in order."""
    import torch

    target = write_target(tmp_path / "target", kind, num_hidden_layers=4, tie_word_embeddings=tied)
    record = init(target, tmp_path / "drafter", layers=(1, 3))
    assert record.layers == (1, 3)
    whole, small = load(target), load(tmp_path / "drafter")
    assert small.config.num_hidden_layers == 2
    if getattr(small.config, "layer_types", None):
        assert small.config.layer_types == [whole.config.layer_types[i] for i in (1, 3)]
    kept = torch.nn.ModuleList([whole.model.layers[i] for i in (1, 3)])
    whole.model.layers = kept
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    whole.config = small.config
    whole.model.config = small.config
    token_ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = whole(token_ids, use_cache=False).logits
        assert torch.equal(small(token_ids, use_cache=False).logits, expected)


def test_layers_are_spread_from_first_to_last(tmp_path: Path) -> None:
    """Two are the first and the last, three have the middle; one is the first."""
    target = write_target(tmp_path / "target", num_hidden_layers=7)
    for num, expected in ((1, (0,)), (2, (0, 6)), (3, (0, 3, 6))):
        assert init(target, tmp_path / f"d{num}", num_layers=num).layers == expected


def test_the_tokenizer_and_its_template_come_along(tmp_path: Path) -> None:
    """Text becomes the same tokens, and so does a chat."""
    from transformers import AutoTokenizer

    target = write_target(tmp_path / "target")
    init(target, tmp_path / "drafter")
    ours, theirs = (AutoTokenizer.from_pretrained(it) for it in (tmp_path / "drafter", target))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template


def test_a_trimmed_head_keeps_the_most_frequent_tokens(tmp_path: Path) -> None:
    """Most frequent first, what ends a reply at the end however rare; plain loaders see all."""
    target = write_target(tmp_path / "target")
    words = "w7 " * 50 + "w8 " * 40 + " ".join(f"w{i}" for i in range(9, 40))
    text = tmp_path / "text.txt"
    text.write_text(words, encoding="utf-8")
    record = init(target, tmp_path / "drafter", head_tokens=20, token_counts=(str(text),))
    assert record.kept_token_ids[:2] == (9, 10)  # w7 and w8
    assert set(record.kept_token_ids[-2:]) == {0, 1}
    assert len(record.kept_token_ids) == 20
    assert read_record(tmp_path / "drafter") == record
    assert load(tmp_path / "drafter").lm_head.out_features == VOCABULARY


def test_the_engine_computes_kept_tokens_alone(tmp_path: Path) -> None:
    """Their logits are the whole head's, others are impossible; a target is never trimmed."""
    import torch

    from paceline.adapters.embedded.target import Row, Target

    target = write_target(tmp_path / "target")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in range(9, 40)), encoding="utf-8")
    record = init(target, tmp_path / "drafter", head_tokens=24, token_counts=(str(text),))
    folder = tmp_path / "drafter"

    def logits(model: Target) -> torch.Tensor:
        row = Row(request_id="r", key_values=model.sequence(), token_ids=[5, 6, 7], num_logits=2)
        return model.in_vocabulary(model.forward([row])[0])

    whole, trimmed = Target.load(folder), Target.load_drafter(folder)
    kept = list(record.kept_token_ids)
    assert trimmed.model.lm_head.out_features == 24
    torch.testing.assert_close(logits(trimmed)[:, kept], logits(whole)[:, kept])
    probs = logits(trimmed).softmax(-1)
    assert torch.count_nonzero(probs) == 2 * 24
    torch.testing.assert_close(probs.sum(-1), torch.ones(2))
    assert torch.isfinite(logits(whole)).all()


def test_a_text_with_few_tokens_keeps_few(tmp_path: Path) -> None:
    """No token is made up to fill the head."""
    target = write_target(tmp_path / "target")
    text = tmp_path / "text.jsonl"
    text.write_text('{"messages": [{"role": "user", "content": "w1 w2 w2"}]}\n', encoding="utf-8")
    record = init(target, tmp_path / "drafter", head_tokens=64, token_counts=(str(text),))
    assert record.kept_token_ids == (4, 3, 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (0, 3)}, r"--layers is 0,3; name layers from 0 to 2"),
        ({"layers": (2, 1)}, "ascending"),
        ({"num_layers": 4}, r"--num-layers is 4; the target has only 3"),
        ({"num_layers": 0}, r"--num-layers is 0; give 1 or more"),
        ({"head_tokens": 4}, r"--head-tokens is 4; give 16 or more"),
        ({"head_tokens": 64}, r"give --token-counts FILE"),
        ({"token_counts": ("x",)}, r"needs --head-tokens"),
        ({"head_tokens": 64, "token_counts": ("nowhere",)}, r"nowhere does not exist"),
    ],
)
def test_what_cannot_be_cut_is_said(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Each mistake is named with its limit, and nothing is left behind."""
    target = write_target(tmp_path / "target")
    with pytest.raises(ConfigError, match=message):
        init(target, tmp_path / "drafter", **settings)
    assert [it.name for it in tmp_path.iterdir()] == ["target"]


def test_a_model_built_otherwise_is_refused(tmp_path: Path) -> None:
    """A GPT-2 has no layers where a Llama has them; its parts are named."""
    import transformers

    config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)
    target = write_target(tmp_path / "target")
    shutil.rmtree(target / "model.safetensors", ignore_errors=True)
    transformers.GPT2LMHeadModel(config).save_pretrained(target)
    with pytest.raises(
        ConfigError, match=r"GPT2LMHeadModel cannot be cut: it has no .*model.*trans"
    ):
        init(target, tmp_path / "drafter")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that exists is refused before the target is read; a failed one leaves no trace."""
    (tmp_path / "drafter").mkdir()
    with pytest.raises(ConfigError, match="exists; give a folder that does not"):
        init(tmp_path / "no target", tmp_path / "drafter")

    def half() -> None:
        with new_folder(tmp_path / "new") as beside:
            (beside / "file").touch()
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        half()
    assert [it.name for it in tmp_path.iterdir()] == ["drafter"]


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    """A cut file, a newer version and tokens out of range are each named; none at all is fine."""
    assert read_record(tmp_path) is None
    file = tmp_path / "paceline.json"
    file.write_text('{"version": 1, "target":', encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged"):
        read_record(tmp_path)
    file.write_text('{"version": 2}', encoding="utf-8")
    with pytest.raises(ConfigError, match="has version 2, this Paceline reads up to 1"):
        read_record(tmp_path)
    write_record(
        tmp_path, DrafterRecord(target="t", layers=(0,), vocab_size=9, kept_token_ids=(3, 9))
    )
    with pytest.raises(ConfigError, match=r"outside 0\.\.8"):
        read_record(tmp_path)


def test_a_record_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Kept tokens of another model would draft nonsense."""
    from paceline.adapters.embedded.target import Target

    folder = write_target(tmp_path / "model")
    write_record(
        folder, DrafterRecord(target="t", layers=(0,), vocab_size=9, kept_token_ids=(3, 4))
    )
    with pytest.raises(ConfigError, match="is of 9 tokens, the model of 97"):
        Target.load_drafter(folder)


def test_the_random_models_differ() -> None:
    """Another seed gives another model, so that equal outputs above mean equal weights."""
    import torch

    one, two = (random_model("llama", seed=seed).lm_head.weight for seed in (1, 2))
    assert not torch.equal(one, two)
