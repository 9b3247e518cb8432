"""What `paceline learner` is told, checked; its process gets it as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

import msgspec
import yaml

from paceline.caches.records import SHARED_GROUP
from paceline.errors import ConfigError
from paceline.online.errors_first import EMPHASIS
from paceline.online.idle import IdleSettings
from paceline.online.passage_teaching import READ_WEIGHT
from paceline.online.promotion import GateSettings
from paceline.online.replay import ReplaySettings
from paceline.online.settings import OBJECTIVES, Objective
from paceline.online.worthwhile import Economics

PATHS: Final = ("registry", "data", "drafter")
"""Settings that are paths; relative ones start at the file's folder."""
TeacherKind = Literal["target", "served", "text"]


def _least(where: str, block: object, **least: int) -> None:
    for name, bound in least.items():
        if (value := getattr(block, name)) < bound:
            path = f"{where}.{name}" if where else name
            raise ConfigError(f"{path} is {value}; give {bound} or more")


class TeacherSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Who says what the target would have said.

    Attributes:
        kind: ``target`` loads the target a second time, in the learner's process; ``served`` asks a
            vLLM for the probabilities of a prompt; ``text`` asks nobody and takes the served words
            for what there is to learn.
        url: base URL of that vLLM, without ``/v1``.
        api_key: for it, "" for none.
        top_k: likeliest tokens that are noted for each token.
        cache_mib: most disk for what was noted.
    """

    kind: TeacherKind = "target"
    url: str = ""
    api_key: str = ""
    top_k: int = 16
    cache_mib: int = 512

    def __post_init__(self) -> None:
        if self.kind == "served" and not self.url:
            raise ConfigError("teacher.kind is served; give teacher.url, the base URL of a vLLM")
        _least("teacher", self, top_k=1, cache_mib=1)


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be idle for there to be time to train: all of it.

    Attributes:
        engines: base URLs of engines whose running and waiting requests count.
        files: whether requests count as well that engines of this machine tell of in the registry's
            folder, all that follow it together; only beside `engines`.
        full_requests: as many running ones are a load of 1.
        gpus: indices of GPUs whose use counts.
        load_average: whether the machine's load average counts, without the learner's own part.
    """

    engines: tuple[str, ...] = ()
    files: bool = True
    full_requests: int = 8
    gpus: tuple[int, ...] = ()
    load_average: bool = False

    @property
    def says_nothing(self) -> bool:
        """Whether there is nothing to tell load by."""
        return not (self.engines or self.gpus or self.load_average)


class CycleSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a cycle learns.

    Attributes:
        min_new_tokens: that were read or said before another cycle is thought about; twice as many
            after each cycle in a row that came to nothing, unless the traffic changes.
        passages: learned from, at most.
        epochs: times each.
        batch: passages of a step.
        learning_rate: at its highest; it rises and falls within a cycle.
        objective: what is minimised, a name of `settings.Objective`.
        read_weight: what a token counts for that was read and not said.
        error_emphasis: what a token counts for where the drafter is wrong, beside one where it is
            right.
        checkpoint_steps: steps between two checkpoints.
        horizon_seconds: how long an update is taken to be of use.
        idle_price: seconds of serving that a second of an idle machine is worth.
    """

    min_new_tokens: int = 16_384
    passages: int = 256
    epochs: int = 3
    batch: int = 4
    learning_rate: float = 5e-4
    objective: Objective = "greedy"
    read_weight: float = READ_WEIGHT
    error_emphasis: float = EMPHASIS
    checkpoint_steps: int = 20
    horizon_seconds: float = 3600.0
    idle_price: float = 0.01

    def __post_init__(self) -> None:
        _least("cycle", self, min_new_tokens=1, passages=1, epochs=1, batch=1, checkpoint_steps=1)
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(
                f"cycle.learning_rate is {self.learning_rate}; give one above 0, up to 1"
            )
        if self.read_weight < 0 or self.error_emphasis < 1:
            raise ConfigError(
                f"cycle.read_weight is {self.read_weight} and cycle.error_emphasis "
                f"{self.error_emphasis}; give 0 or more, and 1 or more"
            )
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"cycle.objective is {self.objective!r}; give one of {', '.join(OBJECTIVES)}"
            )

    @property
    def economics(self) -> Economics:
        """What time is worth."""
        return Economics(horizon_seconds=self.horizon_seconds, idle_price=self.idle_price)


class JudgingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate is judged, beside what the gate itself wants to see.

    Attributes:
        max_passages: held-out passages that are read: the newest, and the newest of each workload.
        chain_tokens: longest chain that is counted.
        canary: whether an engine tries a candidate before all get it; without, it is promoted at
            once.
    """

    max_passages: int = 96
    chain_tokens: int = 8
    canary: bool = True

    def __post_init__(self) -> None:
        _least("judging", self, max_passages=2, chain_tokens=1)


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where Prometheus asks.

    Attributes:
        host: address.
        port: 0 for no metrics.
    """

    host: str = "127.0.0.1"
    port: int = 0


class LearnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`paceline learner`.

    Attributes:
        redis_url: the engines' Redis.
        registry: folder of drafters' versions that engines see as well.
        data: the learner's own folder.
        model: name that engines serve the target under.
        target: Hugging Face folder or GGUF file of the target, or ``smollm2``, the packaged one.
            Its tokenizer names the memory, its weights are the teacher of kind ``target``.
        group: whose drafter is trained.
        drafter: folder of the first version, where there is none yet.
        teacher: who says what the target would have said.
        load: what has to be idle.
        idle: how idle, and for how long (`idle.IdleSettings`).
        replay: what is kept of the traffic (`replay.ReplaySettings`).
        cycle: how a cycle learns.
        gate: what a candidate has to show (`promotion.GateSettings`).
        judging: how it is judged.
        keep_versions: old ones that are kept.
        metrics: where Prometheus asks.
        threads: of torch, None for its own choice.
        device: torch's name of where is trained; ``auto`` is a GPU where torch finds one.
    """

    redis_url: str
    registry: str
    data: str
    model: str
    target: str
    group: str = SHARED_GROUP
    drafter: str = ""
    teacher: TeacherSettings = TeacherSettings()
    load: LoadSettings = LoadSettings()
    idle: IdleSettings = IdleSettings()
    replay: ReplaySettings = ReplaySettings()
    cycle: CycleSettings = CycleSettings()
    gate: GateSettings = GateSettings()
    judging: JudgingSettings = JudgingSettings()
    keep_versions: int = 5
    metrics: MetricsSettings = MetricsSettings()
    threads: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _least("", self, keep_versions=1)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; give 1 or more, or leave it out")


NO_LOAD: Final = (
    "load names nothing that tells whether there is time to train; give load.engines with the base "
    "URLs of the engines, load.gpus with their numbers, or load.load_average: true"
)


def checked(data: Any) -> LearnerSettings:
    """The settings in what a file or a command line says.

    Raises:
        ConfigError: a name is unknown or a value wrong, naming where it stands.
    """
    if isinstance(data, dict):
        _require_known(data, LearnerSettings, "")
    try:
        settings = msgspec.convert(data, LearnerSettings)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        raise ConfigError(str(cause if isinstance(cause, ConfigError) else error)) from error
    if settings.load.says_nothing:
        raise ConfigError(NO_LOAD)
    return settings


def read_settings(file: Path) -> LearnerSettings:
    """The settings in a file.

    Raises:
        ConfigError: it cannot be read, or what it says is wrong.
    """
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no settings; see docs/learning.md for what it says")
    for name in PATHS:
        if isinstance(data.get(name), str) and data[name]:
            data[name] = str(file.absolute().parent / Path(data[name]).expanduser())
    target = data.get("target")
    if isinstance(target, str) and (beside := file.absolute().parent / target).exists():
        data["target"] = str(beside)
    try:
        return checked(data)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _require_known(data: dict[Any, Any], kind: Any, where: str) -> None:
    """Refuse names that mean nothing, wherever they stand."""
    fields = get_type_hints(kind)
    for name, value in data.items():
        if name not in fields:
            raise ConfigError(
                f"{where}{name} is no setting; {where.removesuffix('.') or 'there'} knows "
                f"{', '.join(sorted(fields))}"
            )
        if isinstance(value, dict):
            _require_known(value, fields[name], f"{where}{name}.")
