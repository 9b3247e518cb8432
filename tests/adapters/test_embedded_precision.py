"""Models that compute in bfloat16: the same to the last bit, however much is drafted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from drafter_folders import save_drafter
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.errors import ConfigError
from small_models import random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.target import Target


@pytest.fixture
def bfloat16() -> None:
    """Only where the processor computes in it."""
    from paceline.adapters.embedded.precision import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")


PROMPTS = (
    "def add(a, b):\n    return a + b\n\ndef add(a, b):\n    return",
    "List the planets of the solar system, one on a line, and what each is known for.",
    "The capital of France is",
    "Repeat after me: the flight HAT136 leaves at 19:00. The flight HAT136",
)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_row_is_the_same_to_the_last_bit_whatever_stands_beside(has_bias: bool) -> None:
    """Of 1 to 16 rows; and what a linear layer of torch gives, as far as the type tells."""
    import torch

    from paceline.adapters.embedded.precision import TILE_ROWS, TiledLinear

    torch.manual_seed(0)
    for num_in, num_out in ((576, 1536), (1536, 576), (576, 192), (40, 24)):
        plain = torch.nn.Linear(num_in, num_out, bias=has_bias).to(torch.bfloat16)
        tiled = TiledLinear(plain)
        rows = torch.randn(1, TILE_ROWS, num_in).to(torch.bfloat16)
        with torch.inference_mode():
            whole = tiled(rows)
            expected = plain(rows)
            assert whole.shape == expected.shape
            assert torch.allclose(whole.float(), expected.float(), atol=0.02, rtol=0.01)
            for num_rows in range(1, TILE_ROWS):
                assert torch.equal(tiled(rows[:, :num_rows]), whole[:, :num_rows])
            many = rows.repeat(1, 5, 1)
            assert torch.allclose(tiled(many).float(), plain(many).float(), atol=0.02, rtol=0.01)


@pytest.mark.usefixtures("bfloat16")
def test_logits_are_near_those_of_float32() -> None:
    """A small model in both; what it computes in is told."""
    import torch

    from paceline.adapters.embedded.precision import compute_in
    from paceline.adapters.embedded.target import Row, Target

    found = {}
    for dtype in ("float32", "bfloat16"):
        model = random_model("qwen2", initializer_range=0.05)
        compute_in(model, dtype)
        target = Target(model, tokenizer=None)
        assert target.dtype == dtype
        row = Row(
            request_id="r", key_values=target.sequence(), token_ids=[5, 6, 7, 8], num_logits=4
        )
        found[dtype] = target.forward([row])[0]
    assert found["bfloat16"].dtype is torch.float32
    difference = (found["float32"] - found["bfloat16"]).abs().max()
    assert 0 < float(difference) < 0.02 * float(found["float32"].abs().max())


def test_a_type_that_there_is_not_is_refused_by_name() -> None:
    """Another name, and a processor that cannot; the model stays as it is."""
    import torch

    from paceline.adapters.embedded import precision

    model = random_model("llama")
    with pytest.raises(ConfigError, match=r"type is float16; give one of float32, bfloat16"):
        precision.compute_in(model, "float16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "has_bfloat16", lambda: False)
        with pytest.raises(ConfigError, match=r"does not compute in bfloat16.*give float32"):
            precision.compute_in(model, "bfloat16")
        precision.compute_in(model, "float32")
    assert model.dtype is torch.float32
    assert type(model.lm_head) is torch.nn.Linear


def test_the_command_refuses_it_as_well() -> None:
    """Before anything is loaded."""
    from paceline.adapters.embedded.__main__ import main
    from paceline.middleware.cli import cli

    for command, arguments in ((main, []), (cli, ["serve"])):
        result = CliRunner().invoke(command, [*arguments, "--dtype", "float16"])
        assert result.exit_code == 2
        assert "'float16' is not one of 'float32', 'bfloat16'" in result.output


@pytest.mark.usefixtures("bfloat16")
def test_a_drafter_that_comes_later_computes_in_the_same(tmp_path: Path) -> None:
    """What the engine's host loads of the registry."""
    import torch

    from paceline.adapters.embedded.drafter_host import EmbeddedDrafterHost
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.precision import TiledLinear
    from paceline.adapters.embedded.target import Target

    for name in ("target", "drafter"):
        save_drafter(tmp_path / name)
    for dtype, kind in (("float32", torch.nn.Linear), ("bfloat16", TiledLinear)):
        engine = EmbeddedEngine(Target.load(tmp_path / "target", dtype=dtype), Speculator())
        loaded = EmbeddedDrafterHost(engine).load(tmp_path / "drafter")
        assert loaded.dtype == dtype
        assert type(loaded.model.lm_head) is kind


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.model
def test_drafts_change_no_token_of_the_real_model() -> None:
    """SmolLM2's greedy replies, one by one, with up to 15 tokens drafted and without.

    What drafts are two layers of it, untrained: rarely right, so that drafts of all lengths are
    verified and thrown away.
    """
    from paceline.adapters.embedded.target import Target

    target = Target.load(None, dtype="bfloat16")
    plain, fast = engine_of(target, drafts=False), engine_of(target, drafts=True)
    for number in range(len(PROMPTS) + 1):
        request = asked(target, number)
        assert said(fast, request) == said(plain, request)
    assert fast.counts.draft_tokens > 4 * fast.counts.rounds
    assert fast.counts.accepted_tokens > 0
    assert fast.draft_failures.count == 0


def engine_of(target: Target, *, drafts: bool) -> EmbeddedEngine:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings

    return EmbeddedEngine(
        target,
        Speculator() if drafts else None,
        EngineSettings(max_draft_tokens=15, max_draft_steps=8, always_draft=True),
        drafter=untrained_drafter() if drafts else None,
        clock=lambda: 0.0,
    )


def untrained_drafter() -> Target:
    """The first and last layer of the packaged model."""
    import torch

    from paceline.adapters.embedded.precision import compute_in
    from paceline.adapters.embedded.target import Target
    from paceline.models import load_model

    model, tokenizer = load_model(None)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[0], layers[-1]])
    model.model.layers[1].self_attn.layer_idx = 1
    model.config.num_hidden_layers = 2
    compute_in(model, "bfloat16")
    return Target(model, tokenizer)


def asked(target: Target, number: int) -> GenerationRequest:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams

    prompt = PROMPTS[number % len(PROMPTS)]
    return GenerationRequest(
        info=RequestInfo(request_id=f"r{number}", tenant="t"),
        prompt_ids=tuple(target.tokenizer.encode(prompt)),
        max_tokens=32,
        sampling=SamplingParams(temperature=0.0),
    )


def said(engine: EmbeddedEngine, request: GenerationRequest) -> list[int]:
    return [token for step in engine.generate(request) for token in step.token_ids]
