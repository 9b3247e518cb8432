"""What is computed from a trace-forced run's timings and steps, and how a run goes on."""

from __future__ import annotations

import json
import math
import os
import sysconfig
from importlib import util
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.engine import command
from paceline.benchmarks.engine.command import available, make_loads
from paceline.benchmarks.engine.figures import bucket, episode_speed, figures, inter_token_seconds
from paceline.benchmarks.engine.records import (
    EngineBenchSettings,
    Load,
    RequestTiming,
    Step,
    UnitResult,
    Variant,
    read_result,
    write_result,
)
from paceline.benchmarks.engine.run import make_units, read_work, run_variant
from paceline.benchmarks.engine.vllm_server import (
    engine_arguments,
    engine_environment,
    suffix_path,
)
from paceline.benchmarks.peers.arctic import PACKAGE, STEM, default_folder
from paceline.benchmarks.replay.episodes import is_reporting
from paceline.benchmarks.tables import engine_tables
from paceline.errors import ConfigError
from recorded import write_model_config, write_tokenizer, write_trace

MESSAGES = [
    {"role": "user", "content": "Say it."},
    {"role": "assistant", "content": "Said it."},
    {"role": "user", "content": "Again."},
    {"role": "assistant", "content": "Said it again."},
]


def timing(
    episode: str, due: float, times: tuple[float, ...], sizes: tuple[int, ...], *, loops: bool
) -> RequestTiming:
    return RequestTiming(episode, 0, 50, loops, due, times, sizes)


def step(seconds: float, *, verified: int = 1, drafted: int = 0, accepted: int = 0) -> Step:
    return Step(0.0, seconds, seconds, 1, 0, 1, verified, drafted, accepted, accepted + 1, 0.01, 0)


def prefill(seconds: float) -> Step:
    return Step(0.0, seconds, seconds, 1, 50, 0, 0, 0, 0, 0, 0.03, 0)


def result(variant: Variant, pace: float, steps: tuple[Step, ...], **load: int) -> UnitResult:
    timings = (
        timing("a", 0.0, (1.0, 1.0 + pace, 1.0 + 3 * pace), (1, 1, 2), loops=False),
        timing("b", 4.0, (5.0, 5.0 + pace), (1, 4), loops=True),
    )
    return UnitResult(variant=variant, source="s", load=Load(**load), timings=timings, steps=steps)


def test_figures_of_a_unit_and_its_ratios() -> None:
    """Sums over steps, speeds by episode, ratios against the same load of the same source."""
    off = result("off", 2.0, (prefill(1.0), step(2.0), step(4.0)))
    ours = result("paceline", 1.0, (prefill(1.0), step(2.0, verified=4, drafted=3, accepted=1)))
    other = result("off", 9.0, (step(1.0),), concurrency=8)
    flat = figures([off, ours, other])
    assert flat["s.c1.paceline.tokens_per_second"] == pytest.approx(9 / 6)
    assert flat["s.c1.off.tokens_per_second"] == pytest.approx(9 / 7)
    assert flat["s.c1.paceline.ratio_to_off"] == pytest.approx(7 / 6)
    # episodes: 4 tokens in 4 s and 5 in 2 s, against 4 in 7 s and 5 in 3 s
    assert flat["s.c1.paceline.episode_tokens_per_second"] == pytest.approx((1 + 2.5) / 2)
    assert flat["s.c1.paceline.episode_ratio_to_off"] == pytest.approx((7 / 4 + 3 / 2) / 2)
    assert flat["s.c1.paceline.decode_ratio_to_off"] == pytest.approx(2)
    assert flat["s.c1.paceline.episode_ratio_not_looping_to_off"] == pytest.approx(7 / 4)
    assert flat["s.c1.paceline.looping_requests"] == 1
    assert flat["s.c1.paceline.tokens_per_step"] == 2
    assert flat["s.c1.paceline.drafted_per_step"] == 3
    assert flat["s.c1.paceline.acceptance"] == pytest.approx(1 / 3)
    assert flat["s.c1.paceline.drafting_share"] == pytest.approx(0.04 / 3)
    assert flat["s.c1.paceline.drafting_share_decode"] == pytest.approx(0.01 / 2)
    assert flat["s.c1.paceline.prefill_share"] == pytest.approx(1 / 3)
    assert flat["s.c1.off.step_ms"] == 3000
    assert flat["s.c1.off.ttft_p50_ms"] == 1000
    assert flat["macro.c1.paceline.ratio_to_off"] == flat["s.c1.paceline.ratio_to_off"]
    assert "s.c8.off.ratio_to_off" not in flat
    assert flat["rounds.c1.off.1.ms"] == 3000
    assert flat["rounds.c1.off.1.steps"] == 2
    assert flat["rounds.c1.paceline.3-4.ms"] == 2000
    table = engine_tables(flat)
    assert "| s | c1 | Paceline | 1.5 |" in table
    assert "| c1 | without speculation | 3000.0 (2) |  |" in table


def test_nothing_to_measure_is_no_number() -> None:
    """Replies of one token have no pace; an engine without drafts has no acceptance."""
    one = UnitResult(
        variant="off",
        source="s",
        load=Load(),
        timings=(timing("a", 0.0, (1.0,), (1,), loops=True),),
        steps=(prefill(1.0),),
    )
    flat = figures([one])
    for name in ("decode_tokens_per_second", "inter_token_p50_ms", "acceptance", "step_ms"):
        assert math.isnan(flat[f"s.c1.off.{name}"])
    assert math.isnan(flat["s.c1.off.episode_tokens_per_second_not_looping"])
    assert "nan" not in engine_tables(flat)


def test_tokens_that_come_together_share_their_wait() -> None:
    """A piece of two tokens after a second is two tokens half a second apart."""
    gaps = inter_token_seconds([timing("a", 0.0, (1.0, 2.0, 5.0), (3, 2, 1), loops=False)])
    assert gaps.tolist() == [0.5, 0.5, 3.0]
    assert episode_speed([], decode=True) == {}


@pytest.mark.parametrize(
    ("num_tokens", "name"),
    [(1, "1"), (2, "2"), (3, "3-4"), (4, "3-4"), (5, "5-8"), (16, "9-16"), (17, "17-32")],
)
def test_buckets_are_powers_of_two(num_tokens: int, name: str) -> None:
    """Each bucket's upper end is a power of two."""
    assert bucket(num_tokens) == name


def make_settings(folder: Path, **options: object) -> EngineBenchSettings:
    write_trace(folder, "s", MESSAGES, MESSAGES, MESSAGES)
    return EngineBenchSettings(
        **{  # type: ignore[arg-type]
            "traces": str(folder),
            "model": str(write_model_config(folder / "model")),
            "tokenizer": str(write_tokenizer(folder / "tokenizer")),
            "sources": ("s",),
            "episodes": 2,
            "requests": 1,
            **options,
        }
    )


def test_units_hold_the_first_requests_of_the_first_episodes(tmp_path: Path) -> None:
    """Their tenants differ by load, so that each begins cold."""
    settings = make_settings(tmp_path)
    work = read_work(settings)
    loads = make_loads((1, 8), (), 1.0)
    units = make_units(settings, work, "paceline", loads, tmp_path)
    assert [u.load.label for u in units] == ["c1", "c8"]
    assert [u.num_requests for u in units] == [2, 2]
    tenants = [r.tenant for u in units for e in u.episodes for r in e]
    assert tenants == ["s/m/c1"] * 2 + ["s/m/c8"] * 2


def test_a_run_goes_on_from_the_results_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit measured with the same settings and code is read; others give it another file."""
    settings = make_settings(tmp_path)
    work = read_work(settings)
    (unit,) = make_units(settings, work, "off", [Load()], tmp_path)
    kept = result("off", 1.0, (step(1.0),))
    write_result(kept, Path(unit.file))
    assert run_variant(settings, "off", [unit], tmp_path) == [kept]
    changed = make_settings(tmp_path, context_tokens=99)
    (other,) = make_units(changed, read_work(changed), "off", [Load()], tmp_path)
    assert other.file != unit.file
    assert read_result(Path(other.file)) is None
    monkeypatch.setattr("paceline.benchmarks.engine.run.installed_code", lambda: "newer")
    (newer,) = make_units(settings, work, "off", [Load()], tmp_path)
    assert read_result(Path(newer.file)) is None
    Path(unit.file).write_text("{}")
    with pytest.raises(ConfigError, match="is not a unit's result; remove it"):
        read_result(Path(unit.file))


def test_the_reporting_half_is_the_replays(tmp_path: Path) -> None:
    """Episodes that something may have been tuned on are passed over."""
    settings = make_settings(tmp_path, episodes=3, reporting_half=True)
    (episodes,) = read_work(settings).values()
    taken = [requests[0].episode_id for requests in episodes]
    assert taken == [f"s-{n}" for n in range(3) if is_reporting(f"s-{n}")]
    assert 0 < len(taken) < 3


def test_a_tokenizer_that_does_not_fit_the_target_is_refused(tmp_path: Path) -> None:
    """Tokens beyond the target's vocabulary are named before an engine dies of them."""
    settings = make_settings(tmp_path)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 320', '"vocab_size": 257'))
    with pytest.raises(ConfigError, match=r"token 257, the target's vocabulary ends at 256"):
        read_work(settings)
    config.unlink()
    with pytest.raises(ConfigError, match="holds no readable config"):
        read_work(settings)


def test_a_finished_run_is_reported_without_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings name folders, not places; a load that its episodes cannot fill is said aloud."""
    settings = make_settings(tmp_path)
    loads = make_loads((1, 8), (), 1.0)
    for unit in make_units(settings, read_work(settings), "off", loads, tmp_path):
        load = {"concurrency": unit.load.concurrency}
        write_result(result("off", 1.0, (step(1.0),), **load), Path(unit.file))
    report = command.run_engine_bench(settings, ("off",), loads, folder=tmp_path)
    assert report.settings["model"] == "model"
    assert report.settings["loads"] == ["c1", "c8"]
    assert str(tmp_path) not in report.as_json()
    assert report.figures["s.c8.off.requests"] == 2
    assert "load c8: some source has 2 episodes only" in capsys.readouterr().err


def test_each_variant_gets_its_own_speculation_and_the_same_engine(tmp_path: Path) -> None:
    """Variants differ in speculation and worker only; no plugin may load in any."""
    settings = make_settings(tmp_path, eager=True, engine_options={"seed": 3})
    arguments = {
        variant: engine_arguments(settings, variant, longest_reply=100, device="cpu")
        for variant in ("off", "ngram", "suffix", "paceline")
    }
    own = {"speculative_config", "worker_cls"}
    shared = [{k: v for k, v in a.items() if k not in own} for a in arguments.values()]
    assert all(a == shared[0] for a in shared)
    assert shared[0]["seed"] == 3
    # longer than the model was made for: what it says is not its own
    assert shared[0]["hf_overrides"] == {"max_position_embeddings": shared[0]["max_model_len"]}
    assert "speculative_config" not in arguments["off"]
    assert arguments["ngram"]["speculative_config"]["num_speculative_tokens"] == 8
    assert arguments["suffix"]["speculative_config"]["suffix_decoding_max_tree_depth"] == 24
    assert arguments["off"]["worker_cls"].endswith(".PeerCPUWorker")
    assert arguments["paceline"]["worker_cls"].endswith(".CPUWorker")
    gpu = engine_arguments(settings, "paceline", longest_reply=1, device="gpu")
    assert gpu["worker_cls"].endswith(".GPUWorker")
    assert engine_environment(settings, {"VLLM_PLUGINS": "x"}, "gpu")["VLLM_PLUGINS"] == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"num_draft_tokens": 129}, "num_draft_tokens is 129; give a number from 1 to 128"),
        ({"output_tokens": -1}, "output_tokens is -1"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    """The message gives value, limit and fix."""
    with pytest.raises(ConfigError, match=message):
        make_settings(tmp_path, **wrong)


def test_loads_have_short_names_without_dots() -> None:
    """A figure's name is split at dots."""
    loads = make_loads((8,), ("mooncake_trace.jsonl.gz",), 0.5)
    assert [load.label for load in loads] == ["c8", "mooncake_trace-x0_5"]
    with pytest.raises(ConfigError, match="--concurrency 0"):
        make_loads((0,), (), 1.0)


def test_a_peer_that_is_not_installed_is_left_out_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other variants are measured without it."""
    monkeypatch.setattr(command, "suffix_path", lambda _env: None)
    assert available(("off", "suffix", "paceline")) == ("off", "paceline")
    assert "`suffix` is left out" in capsys.readouterr().err
    monkeypatch.setattr(command, "suffix_path", lambda _env: "")
    assert available(("off", "suffix")) == ("off", "suffix")


def test_fusion_is_measured_where_a_drafter_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a drafter the variant is left out aloud; with one it is vLLM's, on our worker."""
    assert available(("off", "paceline-fused")) == ("off",)
    assert "--drafter" in capsys.readouterr().err
    assert available(("paceline-fused",), tmp_path) == ("paceline-fused",)
    settings = make_settings(tmp_path, drafter="small", num_draft_tokens=5)
    arguments = engine_arguments(settings, "paceline-fused", longest_reply=1, device="cpu")
    assert arguments["speculative_config"] == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 5,
    }
    assert arguments["async_scheduling"] is False
    assert arguments["worker_cls"].endswith(".CPUWorker")


def test_variants_with_a_model_need_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a drafter they are left out, aloud."""
    wanted: tuple[Variant, ...] = ("embedded-off", "embedded-drafter", "embedded-fused-tree")
    assert available(wanted) == ("embedded-off",)
    assert "--drafter" in capsys.readouterr().err
    assert available(wanted, tmp_path) == wanted


def test_a_peer_that_the_replay_built_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder goes before what the caller's PYTHONPATH says; an installed one needs none."""
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    env = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": "mine"}
    assert suffix_path(env) is None
    settings = make_settings(tmp_path)
    assert engine_environment(settings, env, "gpu")["PYTHONPATH"] == "mine"
    home = default_folder(env) / STEM / f"python-{sysconfig.get_config_var('SOABI')}"
    (home / PACKAGE).mkdir(parents=True)
    expected = f"{home}{os.pathsep}mine"
    assert engine_environment(settings, env, "gpu")["PYTHONPATH"] == expected
    monkeypatch.setattr(util, "find_spec", lambda _name: object())
    assert suffix_path(env) == ""


def test_engine_options_are_names_and_json() -> None:
    """What is not JSON is text; what is no pair is refused."""
    runner = CliRunner()
    arguments = ["--traces", "t", "--engine-option"]
    done = runner.invoke(command.engine, [*arguments, "nothing"])
    assert done.exit_code == 2
    assert "'nothing' is not NAME=VALUE" in done.output


def test_a_report_of_the_engine_has_a_table(tmp_path: Path) -> None:
    """The JSON that the command writes makes the same tables again."""
    from paceline.benchmarks.report import Report
    from paceline.benchmarks.tables import table

    flat = figures([result("off", 2.0, (prefill(1.0), step(2.0)))])
    file = tmp_path / "engine.json"
    file.write_text(Report("engine", {}, flat).as_json())
    assert json.loads(file.read_text())["bench"] == "engine"
    assert table(file) == engine_tables(flat)
