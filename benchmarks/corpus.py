"""`paceline bench corpus`: drafts from a large frozen text, beside Arctic Inference's, in one run.

The first tokens of a text are the corpus; documents from behind it are written token for token, as
in the replay: a prompt, then steps that draft and verify. No model runs. Each drafter has a process
of its own. What a document said is remembered for the next ones by all of them.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import click
import numpy as np

from paceline.benchmarks.index_text import Text, load_text
from paceline.benchmarks.peers.arctic import default_folder, load_suffix_cache
from paceline.benchmarks.replay.base import Drafter
from paceline.benchmarks.replay.drafters.arctic import ArcticDrafter
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.benchmarks.replay.run import Request, Tally
from paceline.benchmarks.report import Report, write_report
from paceline.caches.corpus import DEFAULT_SEGMENT_TOKENS
from paceline.caches.segment import build_segment
from paceline.errors import ConfigError

SCOPE: Final = "code"
MIN_PROBABILITIES: Final = (0.03, 0.05, 0.1, 0.2, 0.3)
ARCTIC: Final = {"24x1": (24, 1.0), "24x2": (24, 2.0), "64x2": (64, 2.0)}
OURS: Final = {"corpus": 1, "tree": 8, "log": 1, "alone": 1}
"""How the text is held, and the most nodes that continue one node.

As a corpus (chain and tree), as tokens of the shared log, or not at all.
"""
LEAST_OUTPUT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusBenchSettings:
    """What is drafted, and from what.

    Attributes:
        size: tokens of the corpus.
        documents: most held-out documents that are written.
        prompt_tokens: first tokens of each, which are read.
        output_tokens: most tokens of each that are written then.
        min_probabilities: where Paceline's drafts stop; once with each.
        with_arctic: whether the peer is measured too.
        peers: folder that it is built in.
        seed: of the choice of documents.
    """

    size: int
    documents: int = 200
    prompt_tokens: int = 256
    output_tokens: int = 512
    min_probabilities: tuple[float, ...] = MIN_PROBABILITIES
    with_arctic: bool = True
    peers: Path
    seed: int = 0


def run_corpus_bench(text: Text, settings: CorpusBenchSettings) -> Report:
    """Write the documents with every drafter; starts a process for each.

    Raises:
        ConfigError: the text is too short.
    """
    held, unseen = text.split(settings.size)
    documents = choose_documents(unseen, settings)
    if settings.with_arctic:
        load_suffix_cache(settings.peers)  # built before anything is measured
    names = [f"{kind}-{p:g}" for kind in OURS for p in settings.min_probabilities]
    names += [f"arctic-{name}" for name in ARCTIC] if settings.with_arctic else []
    figures: dict[str, float] = {"documents": float(len(documents))}
    frontiers: dict[str, dict[str, float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        click.progressbar(names, label="drafters", item_show_func=str) as bar,
    ):
        folder = Path(scratch)
        np.save(folder / "held.npy", held.token_ids)
        write_segments(folder, held)
        for name in bar:
            frontiers[name] = _in_a_process(name, folder, documents, settings)
            figures |= {f"{name}/{figure}": value for figure, value in frontiers[name].items()}
    shown = {**asdict(settings), "peers": "", "text_tokens": len(text.token_ids)}
    return Report(bench="corpus", settings=shown, figures=figures | at_equal_drafted(frontiers))


def choose_documents(unseen: Text, settings: CorpusBenchSettings) -> list[np.ndarray]:
    """Held-out documents long enough to be written, in random order."""
    edges = np.flatnonzero(unseen.token_ids < 0)
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    least = settings.prompt_tokens + LEAST_OUTPUT
    found = [unseen.token_ids[a + 1 : b] for a, b in pairs if b - a > least]
    if not found:
        raise ConfigError(
            f"no held-out document has {least} tokens; give more text or a smaller --prompt-tokens"
        )
    order = np.random.default_rng(settings.seed).permutation(len(found))
    most = settings.prompt_tokens + settings.output_tokens
    return [np.ascontiguousarray(found[i][:most]) for i in order[: settings.documents]]


def write_segments(folder: Path, held: Text) -> None:
    """The text as a corpus would be: segments of the default size."""
    for number, first in enumerate(range(0, len(held.token_ids), DEFAULT_SEGMENT_TOKENS)):
        part = held.token_ids[first : first + DEFAULT_SEGMENT_TOKENS]
        build_segment(folder / f"{number:05}.segment", part)


def _in_a_process(
    name: str, folder: Path, documents: list[np.ndarray], settings: CorpusBenchSettings
) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(measure, name, folder, documents, settings).result()


def measure(
    name: str, folder: Path, documents: Sequence[np.ndarray], settings: CorpusBenchSettings
) -> dict[str, float]:
    """Figures of one drafter."""
    drafter = make_drafter(name, folder, settings)
    tally = Tally(perf_counter_ns)
    for number, document in enumerate(documents):
        prompt, output = np.split(document, [settings.prompt_tokens])
        tally.replay(
            drafter,
            Request(
                request_id=number,
                session_id=str(number),
                scope=SCOPE,
                episode=number,
                prompt_ids=prompt,
                output_ids=output.tolist(),
                subset="",
            ),
        )
    counts = tally.counts()
    durations = counts.durations()
    kept = {figure: durations[figure] for figure in ("propose_mean_us", "propose_p99_us")}
    return {"steps": float(counts.steps), **counts.quality(), **kept}


def make_drafter(name: str, folder: Path, settings: CorpusBenchSettings) -> Drafter:
    """The drafter called `name`, which has read the corpus in `folder`."""
    kind, _, variant = name.partition("-")
    if kind == "arctic":
        depth, factor = ARCTIC[variant]
        cache_class = load_suffix_cache(settings.peers)
        peer = ArcticDrafter(cache_class, depth=depth, factor=factor, max_cached_requests=-1)
        peer.remember(load_text(folder / "held.npy").sequences())
        return peer
    from paceline.caches import CorpusSegment

    reads = kind in {"corpus", "tree"}
    drafter = PacelineDrafter(
        min_probability=float(variant),
        max_branches=OURS[kind],
        segments=[CorpusSegment(str(path)) for path in sorted(folder.glob("*.segment")) if reads],
    )
    if kind == "log":
        held = load_text(folder / "held.npy")
        capacity = len(held.token_ids) * 9 // 8  # room for what the documents say
        drafter.remember(SCOPE, held.sequences(), capacity=capacity)
    return drafter


def at_equal_drafted(frontiers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Our tokens/step over each setting of Arctic's, between our thresholds at its drafted/step."""
    ratios: dict[str, float] = {}
    for peer in (name for name in frontiers if name.startswith("arctic-")):
        wanted = frontiers[peer]["drafted_per_step"]
        for kind in OURS:
            mine = [figures for name, figures in frontiers.items() if name.startswith(f"{kind}-")]
            tokens = interpolate(
                [(each["drafted_per_step"], each["tokens_per_step"]) for each in mine], wanted
            )
            ratios[f"{kind}_over_{peer}"] = tokens / frontiers[peer]["tokens_per_step"]
    return ratios


def interpolate(points: Iterable[tuple[float, float]], wanted: float) -> float:
    """Height at `wanted` of the line through the points; NaN outside of them."""
    ordered = sorted(points)
    if not ordered or not ordered[0][0] <= wanted <= ordered[-1][0]:
        return math.nan
    drafted = [point[0] for point in ordered]
    return float(np.interp(wanted, drafted, [point[1] for point in ordered]))


@click.command("corpus")
@click.option(
    "--tokens",
    required=True,
    type=click.Path(path_type=Path),
    help=".npy of int32 token ids, -1 between documents.",
)
@click.option("--size", default=10_000_000, show_default=True, help="Tokens of the corpus.")
@click.option("--documents", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--prompt-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option("--output-tokens", default=512, show_default=True, type=click.IntRange(min=16))
@click.option(
    "--min-probability",
    "min_probabilities",
    multiple=True,
    type=float,
    help=f"Where Paceline's drafts stop; may be repeated.  [default: {MIN_PROBABILITIES}]",
)
@click.option("--seed", default=0, show_default=True, help="Of the choice of documents.")
@click.option("--arctic/--no-arctic", default=True, help="Compare with arctic-inference 0.3.0.")
@click.option("--peers", type=click.Path(path_type=Path), help="Folder that it is built in.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def corpus(
    tokens: Path,
    size: int,
    documents: int,
    prompt_tokens: int,
    output_tokens: int,
    min_probabilities: tuple[float, ...],
    seed: int,
    arctic: bool,
    peers: Path | None,
    json_file: Path | None,
) -> None:
    """Tokens/step and time of drafts from a corpus, for documents that are not in it.

    Compared at equal drafted/step: Paceline with the text as a corpus (chain and tree), as tokens
    of its shared log, and without it; Arctic with the text in its tree.
    """
    settings = CorpusBenchSettings(
        size=size,
        documents=documents,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        min_probabilities=min_probabilities or MIN_PROBABILITIES,
        with_arctic=arctic,
        peers=peers or default_folder(),
        seed=seed,
    )
    write_report(run_corpus_bench(load_text(tokens), settings), json_file)
