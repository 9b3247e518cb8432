"""What the command and the engine's process hand each other, and what a measured unit holds."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from paceline.adapters.vllm.settings import MAX_DRAFT_TOKENS, WorkerSettings
from paceline.benchmarks.replay.episodes import AGENT_SOURCES
from paceline.errors import ConfigError, PacelineError

Variant = Literal[
    "off",
    "ngram",
    "suffix",
    "paceline",
    "paceline-fused",
    "embedded-off",
    "embedded",
    "embedded-tree",
    "embedded-drafter",
    "embedded-drafter-tree",
    "embedded-fused",
    "embedded-fused-tree",
]
VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)
EMBEDDED: Final[tuple[Variant, ...]] = tuple(v for v in VARIANTS if v.startswith("embedded"))
DRAFTED_BY_MODEL: Final[tuple[Variant, ...]] = tuple(
    v for v in VARIANTS if "drafter" in v or "fused" in v
)
OURS_IN_VLLM: Final[tuple[Variant, ...]] = ("paceline", "paceline-fused")
REPLY_KEY: Final = "paceline_bench_reply"
"""Extra argument of a request: the recorded reply's token ids."""


class TraceForcingError(PacelineError):
    """The engine said something else than the recorded reply: nothing it was measured at counts."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How requests come.

    Attributes:
        concurrency: episodes in flight; the next request follows the reply before it.
        arrivals: name of a trace of arrival times that requests keep to instead; "" for none.
        arrival_factor: stretches the gaps between arrivals, > 0.
    """

    concurrency: int = 1
    arrivals: str = ""
    arrival_factor: float = 1.0

    @property
    def label(self) -> str:
        """Short name, without dots."""
        if not self.arrivals:
            return f"c{self.concurrency}"
        name = self.arrivals.partition(".")[0]
        return f"{name}-x{self.arrival_factor:g}".replace(".", "_")


class EngineBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is replayed, and on what.

    Attributes:
        traces: folder of the recorded traces.
        model: Hugging Face folder of the target; a config alone is enough with dummy weights.
        tokenizer: folder whose tokenizer renders the traces; "" for SmolLM2's.
        sources: trace files to take episodes from.
        episodes: episodes of each source, the first ones.
        reporting_half: take episodes of the replay's reporting half only, on which nothing was
            tuned.
        requests: requests of each episode, the first ones.
        context_tokens: longest prompt.
        output_tokens: longest reply, 0 for the whole of it.
        dtype: vLLM's name of the number format.
        load_format: vLLM's name of where weights come from; ``dummy`` needs none.
        num_draft_tokens: most tokens that Paceline and the suffix tree draft a step.
        num_ngram_tokens: tokens that vLLM's n-gram drafts at a match.
        suffix_depth: depth of the suffix trees.
        suffix_factor: most drafted tokens of the suffix tree per matched token.
        min_probability: where Paceline's drafts stop.
        drafter: Hugging Face folder of the model that drafts in the variants with one; "" for none.
        num_drafter_tokens: most tokens that it drafts a step in ``paceline-fused``.
        eager: the target is not compiled and no graphs are captured.
        max_in_flight: most requests that the engine runs at once.
        engine_options: further arguments of vLLM's engine.
    """

    traces: str
    model: str
    tokenizer: str
    drafter: str = ""
    sources: tuple[str, ...] = AGENT_SOURCES
    episodes: int = 8
    reporting_half: bool = False
    requests: int = 4
    context_tokens: int = 2048
    output_tokens: int = 0
    dtype: str = "bfloat16"
    load_format: str = "auto"
    num_draft_tokens: int = 16
    num_ngram_tokens: int = 8
    suffix_depth: int = 24
    suffix_factor: float = 1.0
    min_probability: float = WorkerSettings().min_probability
    num_drafter_tokens: int = WorkerSettings().drafter_tokens
    eager: bool = False
    max_in_flight: int = 256
    engine_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for name in ("episodes", "requests", "context_tokens", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("num_draft_tokens", "num_ngram_tokens", "num_drafter_tokens"):
            if not 1 <= getattr(self, name) <= MAX_DRAFT_TOKENS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; give a number from 1 to {MAX_DRAFT_TOKENS}"
                )
        if self.output_tokens < 0:
            raise ConfigError(
                f"output_tokens is {self.output_tokens}; give 0 for whole replies, or a length"
            )

    def digest(self) -> str:
        """Names everything a unit's figures depend on beside the unit itself."""
        alike = msgspec.structs.replace(self, sources=())
        return blake2b(msgspec.json.encode(alike), digest_size=6).hexdigest()


class WorkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to be sent.

    Attributes:
        tenant: whose memory it draws from; engine-wide unique to the unit and the traces' model.
        session: session the episode belongs to.
        episode_id: episode it belongs to.
        turn: index in its episode.
        prompt_ids: what the target reads.
        output_ids: what the target is made to say.
    """

    tenant: str
    session: str
    episode_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]

    @property
    def request_id(self) -> str:
        """Unique in an engine's life."""
        return f"{self.tenant}/{self.episode_id}/{self.turn}"


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement: a variant on a source under a load.

    Attributes:
        variant: how the engine speculates.
        source: where the requests come from.
        load: how they come.
        file: where the result goes.
        episodes: the requests, by episode.
        arrival_seconds: when each request is due, first turns first, in seconds from the start;
            empty without a trace of arrivals.
    """

    variant: Variant
    source: str
    load: Load
    file: str
    episodes: tuple[tuple[WorkRequest, ...], ...]
    arrival_seconds: tuple[float, ...] = ()

    @property
    def num_requests(self) -> int:
        """Requests of all episodes."""
        return sum(map(len, self.episodes))


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine process measures.

    Attributes:
        settings: of the run.
        variant: how its engine speculates.
        units: one after the other, each from a cold memory.
        progress_file: grows by one byte with each finished request.
    """

    settings: EngineBenchSettings
    variant: Variant
    units: tuple[Unit, ...]
    progress_file: str


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One step of an engine.

    Attributes:
        start: when the worker began it, in seconds of some clock.
        end: when it had sampled and drafted.
        round_seconds: time since the step before it ended, where a request was in both; else its
            own length.
        num_requests: requests in it.
        num_prefill: prompt tokens processed.
        num_decoding: requests that had a first token before it.
        num_verified: tokens scheduled for those: the last one of each and its drafts.
        num_drafted: drafted tokens among them.
        num_accepted: drafted tokens that were the recorded ones.
        num_decoded: tokens those requests said in it.
        draft_seconds: spent on drafting: reading what was accepted, proposing, closing requests.
        force_seconds: spent on making the target want the recorded tokens.
    """

    start: float
    end: float
    round_seconds: float
    num_requests: int
    num_prefill: int
    num_decoding: int
    num_verified: int
    num_drafted: int
    num_accepted: int
    num_decoded: int
    draft_seconds: float
    force_seconds: float


class RequestTiming(msgspec.Struct, frozen=True, array_like=True):
    """When a reply came. Times are seconds of one clock.

    Attributes:
        episode_id: episode it belongs to.
        turn: index in its episode.
        num_prompt: prompt tokens.
        loops: whether some 8-gram of the recorded reply occurs four times.
        due: when it was to be sent: at its arrival, or when the reply before it had come.
        chunk_times: when each piece of the reply came.
        chunk_tokens: tokens of each piece.
    """

    episode_id: str
    turn: int
    num_prompt: int
    loops: bool
    due: float
    chunk_times: tuple[float, ...]
    chunk_tokens: tuple[int, ...]

    @property
    def num_output(self) -> int:
        """Tokens of the reply."""
        return sum(self.chunk_tokens)

    @property
    def total_seconds(self) -> float:
        """From due to the last token."""
        return self.chunk_times[-1] - self.due

    @property
    def first_token_seconds(self) -> float:
        """From due to the first token."""
        return self.chunk_times[0] - self.due


class UnitResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a unit; every reply was the recorded one, token for token."""

    variant: Variant
    source: str
    load: Load
    timings: tuple[RequestTiming, ...]
    steps: tuple[Step, ...]


def read_result(file: Path) -> UnitResult | None:
    """The result in `file`; None if there is none.

    Raises:
        ConfigError: the file holds something else.
    """
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=UnitResult)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is not a unit's result; remove it: {error}") from error


def write_result(result: UnitResult, file: Path) -> None:
    """Write `result`, whole or not at all."""
    scratch = file.with_suffix(".tmp")
    scratch.write_bytes(msgspec.json.encode(result))
    scratch.replace(file)
