"""What `paceline bench learn` notes, and what its processes tell each other."""

from __future__ import annotations

import msgspec

from paceline.online.greedy_replay import ReplayCounts
from paceline.online.learner_settings import CycleSettings


class Workload(msgspec.Struct, frozen=True):
    """Recorded tasks whose prompts are asked.

    Attributes:
        source: name of the trace file.
        tasks: beginning of the names of its tasks, "" for all.
    """

    source: str
    tasks: str = ""

    @classmethod
    def parse(cls, text: str) -> Workload:
        """From ``SOURCE`` or ``SOURCE:TASKS``."""
        source, _, tasks = text.partition(":")
        return cls(source, tasks)

    @property
    def name(self) -> str:
        """As in figures, and as requests name it."""
        return f"{self.source}.{self.tasks}" if self.tasks else self.source


class Asked(msgspec.Struct, frozen=True):
    """A prompt.

    Attributes:
        session: what ties prompts together.
        token_ids: of it.
    """

    session: str
    token_ids: tuple[int, ...]


class Examined(msgspec.Struct, frozen=True):
    """A drafter on the target's replies to prompts of held-out sessions, by greedy replay.

    Attributes:
        accepted_length: tokens of its chains a round.
        agreement: share of tokens where it finds the same one likeliest.
    """

    accepted_length: float
    agreement: float


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What is known at one time of the run.

    Attributes:
        workload: that is served.
        served: tokens said so far, by both workloads.
        seconds: since the start.
        version: of the drafter that runs.
        learned: it, on held-out sessions of each workload by name.
        frozen: the one that the run began with.
    """

    workload: str
    served: int
    seconds: float
    version: int
    learned: dict[str, Examined]
    frozen: dict[str, Examined]


class AnswerWork(msgspec.Struct, frozen=True, tag="answer"):
    """Have the target answer prompts, greedily, and note its likeliest tokens.

    Attributes:
        target: Hugging Face folder, GGUF file or the packaged model's name.
        prompts: what is asked.
        output_tokens: longest reply.
        out: folder for the lessons.
        core: to compute on.
    """

    target: str
    prompts: tuple[Asked, ...]
    output_tokens: int
    out: str
    core: int


class ExamineWork(msgspec.Struct, frozen=True, tag="examine"):
    """Replay drafters on lessons.

    Attributes:
        drafters: folders.
        lessons: folders that `AnswerWork` has filled.
        chain_tokens: longest chain.
        core: to compute on.
    """

    drafters: tuple[str, ...]
    lessons: tuple[str, ...]
    chain_tokens: int
    core: int


class SpeedWork(msgspec.Struct, frozen=True, tag="speed"):
    """Answer prompts with each of some ways to draft, prompt by prompt in turns.

    Attributes:
        target: as in `AnswerWork`.
        dtype: what it and the drafters compute in.
        drafters: folders, "" for memory alone, None for no drafts.
        prompts: what is asked.
        output_tokens: longest reply.
        in_flight: requests at a time.
        draft_tokens: most tokens drafted a request and round.
        branches: most drafted tokens that continue one.
        min_probability: what is less likely is not drafted.
        apart: whether each request is another tenant's, whose memory is empty.
        num_warm: prompts that are asked first and not counted.
        core: to compute on.
    """

    target: str
    dtype: str
    drafters: tuple[str | None, ...]
    prompts: tuple[Asked, ...]
    output_tokens: int
    in_flight: int
    draft_tokens: int
    branches: int
    min_probability: float
    apart: bool
    num_warm: int
    core: int


class Speed(msgspec.Struct, frozen=True):
    """What an engine came to, turn by turn: as many prompts as are in flight make one.

    Attributes:
        num_tokens: said in each turn.
        seconds: of each turn.
        tokens_per_round: of a request.
        digest: of the replies.
    """

    num_tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    tokens_per_round: float
    digest: str

    @property
    def tokens_per_second(self) -> float:
        """Over all turns."""
        return sum(self.num_tokens) / sum(self.seconds)


class TeachWork(msgspec.Struct, frozen=True, tag="teach"):
    """Have the target answer prompts, greedily, and read all of what it then knows.

    Lessons as a learner has them: all but a text's first token is the reply, and what the target
    only read has no weight yet.

    Attributes:
        target: as in `AnswerWork`.
        prompts: what is asked.
        output_tokens: longest reply.
        top_k: likeliest tokens noted at each place.
        out: folder for the lessons; what stands there is gone on with.
    """

    target: str
    prompts: tuple[Asked, ...]
    output_tokens: int
    top_k: int
    out: str


class TrainWork(msgspec.Struct, frozen=True, tag="train"):
    """Train a drafter for one cycle, and replay it on lessons of other sessions.

    Attributes:
        drafter: folder; it is not changed.
        lessons: folder that `TeachWork` has filled, to learn from.
        held_out: another one, to measure by.
        cycle: how is learned: objective, weights, rate, steps.
        seed: of the order of lessons; None trains nothing.
        chain_tokens: longest chain.
        out: file for what comes of it, a list of `Replayed` as JSON; written whole or not at all.
    """

    drafter: str
    lessons: str
    held_out: str
    cycle: CycleSettings
    seed: int | None
    chain_tokens: int
    out: str


class InTurnWork(msgspec.Struct, frozen=True, tag="in-turn"):
    """Several of these one after the other, in one process.

    Attributes:
        works: what is done.
    """

    works: tuple[TeachWork | TrainWork, ...]

    @property
    def core(self) -> int | None:
        """None: whichever is free."""
        return None


class Replayed(msgspec.Struct, frozen=True):
    """A drafter on one held-out reply.

    Attributes:
        counts: of a target that says its likeliest token.
        sampled: tokens of the drafter's that a target which samples would accept, one at a time:
            the sum of its probabilities of them, as far as they are among those noted.
    """

    counts: ReplayCounts
    sampled: float


Work = AnswerWork | ExamineWork | SpeedWork | InTurnWork
