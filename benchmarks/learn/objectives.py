"""`paceline bench objectives`: what a drafter is best trained to do, and what should weigh more.

One drafter, one order of the same lessons, as many steps; only what is minimised differs. No time
is measured, so nothing depends on what else the machine does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from paceline.benchmarks.learn.options import run_options
from paceline.benchmarks.learn.prompts import Prompts, read_prompts
from paceline.benchmarks.learn.records import (
    Asked,
    InTurnWork,
    Replayed,
    TeachWork,
    TrainWork,
    Workload,
)
from paceline.benchmarks.learn.stack import run_worker
from paceline.benchmarks.learn.variants import (
    BASE,
    HeldOutReply,
    checked_cycle,
    figures,
    variants_of,
)
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.online.learner_settings import CycleSettings

WORKLOADS: Final = ("tau-bench:tau-airline", "tau-bench:tau-retail")
CHAIN_TOKENS: Final = 8
TOP_K: Final = 16
LONGEST_SECONDS: Final = 86_400.0
LESSONS, HELD_OUT, TRAINED = "lessons", "held-out", "trained"


class ObjectivesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is learned, and from what.

    Attributes:
        traces: folder of recorded traces.
        drafter: folder of the drafter that every training begins with.
        target: Hugging Face folder, GGUF file or the packaged model's name.
        workloads: as `Workload.parse` reads them.
        prompts: of each workload, most that are learned from.
        held_out: of each workload, those that are measured by.
        held_out_turns: most of these from one task.
        context_tokens: longest prompt.
        output_tokens: longest reply.
        seeds: orders of the lessons, each trained from anew.
        confidence: of all lower bounds together, and of all upper ones.
    """

    traces: str
    drafter: str
    target: str
    workloads: tuple[str, ...]
    prompts: int
    held_out: int
    held_out_turns: int
    context_tokens: int
    output_tokens: int
    seeds: int
    confidence: float

    def __post_init__(self) -> None:
        for name in ("prompts", "held_out", "held_out_turns", "output_tokens", "seeds"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
        if not 0.5 < self.confidence < 1:  # noqa: PLR2004  half is no confidence
            raise ConfigError(f"--confidence is {self.confidence}; give a share above 0.5, below 1")

    def read(self) -> dict[str, Prompts]:
        """Each workload's prompts, by its name.

        Raises:
            ConfigError: there are too few.
        """
        renderer = Renderer(load_encoder(None if self.target == "smollm2" else self.target))
        found: dict[str, Prompts] = {}
        for each in map(Workload.parse, self.workloads):
            its = read_prompts(
                Path(self.traces),
                each,
                renderer,
                self.context_tokens,
                self.held_out,
                held_out_turns=self.held_out_turns,
            )
            found[each.name] = Prompts(spread(its.asked, self.prompts), its.held_out)
        return found


def spread(prompts: Sequence[Asked], num: int) -> list[Asked]:
    """At most `num` different prompts, evenly from the first to the last."""
    different = list({asked.token_ids: asked for asked in prompts}.values())
    num = min(num, len(different))
    return [different[i * len(different) // num] for i in range(num)]


class ObjectivesRun:
    """Lessons, then trainings, each kept in a folder so that the run can end anywhere and go on.

    Args:
        settings: what is learned.
        folder: for all of it.
    """

    def __init__(self, settings: ObjectivesSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        (folder / TRAINED).mkdir(parents=True, exist_ok=True)

    def lessons(self, prompts: Sequence[Prompts]) -> list[TeachWork]:
        """Have the target answer what it has not answered yet.

        Raises:
            ConfigError: the folder holds what others were answered.
        """
        return [
            self._answers(LESSONS, chain.from_iterable(its.asked for its in prompts)),
            self._answers(HELD_OUT, chain.from_iterable(its.held_out for its in prompts)),
        ]

    def training(self, cycle: CycleSettings, seed: int | None) -> TrainWork:
        """One training; no seed: none, only the replay of what all begin with."""
        work = TrainWork(
            drafter=self._settings.drafter,
            lessons=str(self._folder / LESSONS),
            held_out=str(self._folder / HELD_OUT),
            cycle=cycle,
            seed=seed,
            chain_tokens=CHAIN_TOKENS,
            out="",
        )
        out = self._folder / TRAINED / f"{_digest(work)}.json"
        return msgspec.structs.replace(work, out=str(out))

    def do(self, works: Sequence[TeachWork | TrainWork]) -> None:
        """Do what has not been done, in one process.

        Raises:
            ProcessError: it failed; what was done before is kept.
        """
        missing = [work for work in works if not _is_done(work)]
        if missing:
            click.echo(f"{len(missing)} steps; {self._folder}/worker.log tells of them", err=True)
            run_worker(InTurnWork(tuple(missing)), self._folder, timeout_seconds=LONGEST_SECONDS)

    def _answers(self, name: str, prompts: Iterable[Asked]) -> TeachWork:
        work = TeachWork(
            target=self._settings.target,
            prompts=tuple(prompts),
            output_tokens=self._settings.output_tokens,
            top_k=TOP_K,
            out="",
        )
        file, digest = self._folder / f"{name}.digest", _digest(work)
        if file.exists() and file.read_text(encoding="utf-8") != digest:
            raise ConfigError(
                f"{self._folder} holds other replies (other prompts, target or lengths); give "
                "another --work, or delete it"
            )
        file.write_text(digest, encoding="utf-8")
        return msgspec.structs.replace(work, out=str(self._folder / name))


def run_objectives(
    settings: ObjectivesSettings, variants: Mapping[str, CycleSettings], folder: Path
) -> Report:
    """Train them all, in turns, and compare them.

    Args:
        settings: what is learned.
        variants: by name, `BASE` among them.
        folder: for all that is made; made if missing.

    Raises:
        ConfigError: there are too few prompts, or the folder holds others' replies.
        ProcessError: a process failed; what is done is kept.
    """
    read = settings.read()
    replies = [HeldOutReply(it.session, name) for name, its in read.items() for it in its.held_out]
    run = ObjectivesRun(settings, folder)
    untrained = run.training(variants[BASE], None)
    trainings = {
        name: [run.training(cycle, seed) for seed in range(settings.seeds)]
        for name, cycle in variants.items()
    }
    # a seed of every variant before the next one: a run that is stopped has something to compare
    in_turn = chain.from_iterable(zip(*trainings.values(), strict=True))
    run.do([*run.lessons(list(read.values())), untrained, *in_turn])
    trained = {name: [_replayed(work) for work in works] for name, works in trainings.items()}
    said = msgspec.to_builtins(settings)
    for name in ("traces", "drafter", "target"):
        said[name] = Path(said[name]).name
    said |= {"asked": sum(len(its.asked) for its in read.values()), "base": variants[BASE]}
    found = figures(trained, _replayed(untrained), replies, confidence=settings.confidence)
    return Report("objectives", msgspec.to_builtins(said), found)


def _digest(work: TeachWork | TrainWork) -> str:
    return blake2b(msgspec.json.encode(work), digest_size=16).hexdigest()


def _is_done(work: TeachWork | TrainWork) -> bool:
    out = Path(work.out)
    return (out / "complete").exists() if isinstance(work, TeachWork) else out.exists()


def _replayed(work: TrainWork) -> list[Replayed]:
    return msgspec.json.decode(Path(work.out).read_bytes(), type=list[Replayed])


@click.command("objectives")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("--drafter", required=True, type=click.Path(path_type=Path), help="To begin with.")
@click.option("--target", default="smollm2", show_default=True)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    default=WORKLOADS,
    show_default=True,
    help="SOURCE[:TASKS]; may be repeated.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="NAME=VALUE[,NAME=VALUE] of a cycle; may be repeated.  [default: every one]",
)
@click.option("--prompts", default=64, show_default=True, help="Of a workload, learned from.")
@click.option("--held-out", default=36, show_default=True, help="Of a workload, measured by.")
@click.option("--held-out-turns", default=2, show_default=True, help="Most of them from one task.")
@click.option("--context-tokens", default=128, show_default=True)
@click.option("--output-tokens", default=48, show_default=True)
@click.option("--seeds", default=2, show_default=True, help="Orders of the lessons.")
@click.option("--confidence", default=0.95, show_default=True, help="Of all bounds together.")
@run_options
def objectives(
    traces: Path,
    drafter: Path,
    variants: tuple[str, ...],
    learner: dict[str, Any],
    work: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """What a drafter is best trained to do.

    The target answers prompts of recorded agents; the same drafter learns from the same replies,
    in the same order and as long, by each objective and weighting, and is replayed on replies to
    tasks that it never saw. The base is a learner's settings, which `--learner-option cycle.NAME=`
    changes; every other variant is compared with it by a bootstrap over tasks. With `--work` a run
    that was stopped goes on. One core is enough.
    """
    if other := learner.keys() - {"cycle"}:
        raise ConfigError(f"--learner-option {min(other)} changes nothing here; give cycle.NAME")
    compared = variants_of(checked_cycle(learner.get("cycle", {})), variants)
    settings = ObjectivesSettings(
        traces=str(traces.absolute()), drafter=str(drafter.absolute()), **options
    )
    with tempfile.TemporaryDirectory(prefix="paceline-objectives-") as scratch:
        folder = Path(scratch) if work is None else work.absolute()
        report = run_objectives(settings, compared, folder)
    write_report(report, json_file)
