"""Folders of real small drafters are let in when they are whole, else refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.caches.drafter_registry import folder_checksum
from paceline.drafter_folder import read_record, write_record
from paceline.errors import ConfigError
from paceline.online.settings import InitSettings
from small_chats import WORDS, write_target

VOCABULARY = 97
PROMPTS = [[5, 6, 7, 8, 9, 10], [3], [50, 51, 52, 50]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut drafters: with a head of its own, a tied one and a trimmed one."""
    from paceline.online.cutting import init_drafter

    folder = tmp_path_factory.mktemp("load-check")
    text = folder / "text.txt"
    text.write_text(" ".join(WORDS), encoding="utf-8")
    for name, changes in (("whole", {}), ("tied", {"tie_word_embeddings": True})):
        write_target(folder / f"target-{name}", **changes)
        told = InitSettings(target=str(folder / f"target-{name}"), out=str(folder / name))
        init_drafter(told)
    init_drafter(
        InitSettings(
            target=str(folder / "target-whole"),
            out=str(folder / "trimmed"),
            head_tokens=60,
            token_counts=(str(text),),
        )
    )
    return folder


@pytest.fixture
def drafter(folders: Path, tmp_path: Path) -> Path:
    """A drafter to spoil."""
    return Path(shutil.copytree(folders / "whole", tmp_path / "drafter"))


def check(folder: Path, **told: Any) -> None:
    from paceline.online.load_check import check_drafter

    check_drafter(folder, **{"vocab_size": VOCABULARY, "prompts": PROMPTS, **told})


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a drafter's tensors again, changed."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["whole", "tied", "trimmed"])
def test_a_good_drafter_is_let_in(name: str, folders: Path) -> None:
    """As it was cut, with its checksum and without."""
    check(folders / name)
    check(folders / name, checksum=folder_checksum(folders / name))


def test_a_drafter_in_several_files_is_let_in(folders: Path, tmp_path: Path) -> None:
    """As large models are saved."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(folders / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(folders / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    check(tmp_path / "parts")
    first = min((tmp_path / "parts").glob("*.safetensors"))
    shutil.copy(first, tmp_path / "parts" / "model-again.safetensors")
    with pytest.raises(ConfigError, match="in several files"):
        check(tmp_path / "parts")


def test_another_checksum_is_refused(drafter: Path) -> None:
    """Both are named."""
    recorded = folder_checksum(drafter)
    (drafter / "more.txt").write_text("added later", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{recorded} was recorded: its files have changed"):
        check(drafter, checksum=recorded)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, drafter: Path) -> None:
    """Wherever it ends, without a checksum too."""
    file = drafter / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        check(drafter)


LAYER = "model.layers.0.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[LAYER][0].fill_(float("nan")), f"numbers in {LAYER} that are infinite"),
        (lambda t: t[LAYER][3].fill_(float("inf")), f"numbers in {LAYER} that are infinite"),
        (lambda t: t.update({LAYER: t[LAYER].int()}), f"numbers in {LAYER} that are infinite"),
        (lambda t: t.pop(LAYER), f"lacks {LAYER}"),
        (lambda t: t.pop("lm_head.weight"), r"lacks lm_head\.weight"),
        (lambda t: t.update(extra=t[LAYER].clone()), "a tensor extra that its model does not have"),
        (lambda t: t.update({LAYER: t[LAYER][:-1].clone()}), f"has {LAYER} of shape \\(47, 32\\)"),
        (lambda t: [it.zero_() for it in t.values()], "finds every token as likely as any other"),
        (lambda t: t["lm_head.weight"].mul_(1e38), "drafts with logits that are infinite"),
        (
            lambda t: t[EMBEDDINGS].copy_(t[EMBEDDINGS][:1].expand(97, 32)),
            "drafts the same whatever it has read",
        ),
    ],
)
def test_spoiled_tensors_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, drafter: Path
) -> None:
    """The tensor and what is wrong with it, or what it drafts."""
    spoil(drafter, change)
    with pytest.raises(ConfigError, match=message):
        check(drafter)


def test_one_token_everywhere_is_refused(drafter: Path) -> None:
    """A drafter that has collapsed, though it is not the same to the last digit."""

    def collapse(tensors: dict[str, Any]) -> None:
        norm, head = tensors["model.norm.weight"], tensors["lm_head.weight"]
        tensors[EMBEDDINGS][:, 0] = 40.0  # said of every token, so that one logit can follow it
        norm.fill_(1.0)
        head[17] = 0.0
        head[17, 0] = 20.0

    spoil(drafter, collapse)
    with pytest.raises(ConfigError, match="drafts token 17 everywhere"):
        check(drafter)


def test_a_tied_head_may_be_stored_or_not(folders: Path, tmp_path: Path) -> None:
    """Under either of its names; with neither it is lacking."""
    drafter = Path(shutil.copytree(folders / "tied", tmp_path / "tied"))
    spoil(drafter, lambda t: t.update({"lm_head.weight": t[EMBEDDINGS].clone()}))
    check(drafter)
    spoil(drafter, lambda t: (t.pop(EMBEDDINGS), t.pop("lm_head.weight")))
    with pytest.raises(ConfigError, match=r"lacks .*embed_tokens\.weight|lacks lm_head\.weight or"):
        check(drafter)


def test_another_targets_vocabulary_is_refused(drafter: Path, tmp_path: Path) -> None:
    """By the target's size, the configuration's and the record's."""
    from paceline.online.cutting import init_drafter

    with pytest.raises(ConfigError, match=r"is of 97 tokens .*, its target of 120"):
        check(drafter, vocab_size=120)
    write_target(tmp_path / "target", vocab_size=120)
    init_drafter(InitSettings(target=str(tmp_path / "target"), out=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"is of 120 tokens .*, its target of 97"):
        check(tmp_path / "other")
    record = read_record(tmp_path / "other")
    assert record is not None
    write_record(drafter, record)
    with pytest.raises(ConfigError, match=r"of 97 tokens \(paceline\.json: 120\)"):
        check(drafter)


def test_kept_tokens_out_of_range_are_refused(folders: Path, tmp_path: Path) -> None:
    """As whoever reads the record refuses them."""
    drafter = Path(shutil.copytree(folders / "trimmed", tmp_path / "trimmed"))
    record = json.loads((drafter / "paceline.json").read_text())
    record["kept_token_ids"][0] = VOCABULARY
    (drafter / "paceline.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="keeps tokens outside"):
        check(drafter)


def test_what_is_no_model_is_refused(drafter: Path, tmp_path: Path) -> None:
    """No folder, no weights, a configuration of nothing, an architecture nobody knows."""
    with pytest.raises(ConfigError, match="no configuration that can be read"):
        check(tmp_path / "none")
    config = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    with pytest.raises(ConfigError, match="no configuration that can be read"):
        check(drafter)
    (drafter / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.2\."):
        check(drafter)
    (drafter / "config.json").write_text(json.dumps(config))
    (drafter / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks .*lm_head\.weight"):
        check(drafter)


def test_there_has_to_be_something_to_try_it_on(drafter: Path) -> None:
    """Nothing passes unseen; and tokens that are none are the drafter's failure to run."""
    for prompts in ([], [[]], [[3, 3, 3]]):
        with pytest.raises(ConfigError, match="no prompt of two different tokens"):
            check(drafter, prompts=prompts)
    with pytest.raises(ConfigError, match="cannot be run: IndexError"):
        check(drafter, prompts=[[5, VOCABULARY]])
