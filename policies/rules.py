"""What a policy may say of requests, and how what several say is put together.

Four may say something, one after the other: the file's defaults, the tenant, the workload, the
request itself. Each can only narrow what those before it say. What neither the defaults nor the
tenant say has a built-in value, which a workload or a request can narrow but not widen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from paceline.policies.limits import LimitsPolicy

Sharing = Literal["private", "group", "global"]
SideChannel = Literal["open", "aggregate", "padded"]
DraftSource = Literal["memory", "model"]

SHARING: Final[tuple[Sharing, ...]] = ("private", "group", "global")
"""The narrowest first."""
SIDE_CHANNEL: Final[tuple[SideChannel, ...]] = ("padded", "aggregate", "open")
"""The narrowest first."""
DRAFT_SOURCES: Final[tuple[DraftSource, ...]] = ("memory", "model")
MAX_DRAFT_TOKENS: Final = 128
MAX_PRIORITY: Final = 1000
SHARED_DRAFTER: Final = "shared"
"""Name of the drafter that everybody trains and uses who names no other."""
BUILT_IN: Final = "built in"
"""Where values come from that nobody has set."""

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


def said_in(block: BaseModel) -> dict[str, Any]:
    """The values of a block that were set, by name; those of one within it as ``BLOCK.NAME``.

    None says nothing.
    """
    found: dict[str, Any] = {}
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, BaseModel):
            found |= {f"{name}.{inner}": each for inner, each in said_in(value).items()}
        elif name in block.model_fields_set and value is not None:
            found[name] = value
    return found


class MemoryPolicy(BaseModel):
    """What a tenant's draft memory is kept to; every setting only narrows the engines' own.

    Attributes:
        session: whether a conversation's context is kept for its next turn.
        workload: whether each kind of work has a memory of its own.
        tenant: whether one kind of work drafts from the others of the sharing scope.
        capacity: most tokens of each of the scope's logs; None for the engines'.
        retention_seconds: what finished longer ago is forgotten; in a group the shortest holds.
        stored_tokens: most tokens that Redis keeps of the tenant for each model, the newest; None
            for no limit of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: bool = True
    workload: bool = True
    tenant: bool = True
    capacity: Annotated[int, Field(ge=2)] | None = None
    retention_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    stored_tokens: Count | None = None

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers that are on."""
        return tuple(name for name in ("session", "workload", "tenant") if getattr(self, name))


class Speculation(BaseModel):
    """Who may draft, and how far.

    In a file also ``auto``, everybody as far as the engine goes, and ``off``, nobody.

    Attributes:
        sources: of ``memory`` and ``model``; none has the target answer without drafts.
        draft_tokens: most tokens drafted a request and round; None for the engine's limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[DraftSource, ...] = DRAFT_SOURCES
    draft_tokens: Annotated[int, Field(ge=0, le=MAX_DRAFT_TOKENS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_a_word(cls, data: object) -> object:
        if data in ("auto", True):  # YAML takes an unquoted on for true, off for false
            return {"sources": DRAFT_SOURCES}
        if data in ("off", False):
            return {"sources": ()}
        if isinstance(data, str):
            raise ValueError(
                f"speculation is {data!r}; give auto, off, or sources and draft_tokens"
            )
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """As a block, or one of the two words."""
        return {"anyOf": [{"enum": ["auto", "off", True, False]}, handler(core)]}

    @field_validator("sources")
    @classmethod
    def _in_order(cls, sources: tuple[DraftSource, ...]) -> tuple[DraftSource, ...]:
        return tuple(source for source in DRAFT_SOURCES if source in sources)

    @property
    def is_off(self) -> bool:
        """Whether nothing is drafted."""
        return not self.sources or self.draft_tokens == 0

    def __str__(self) -> str:
        if self.is_off:
            return "off"
        most = "" if self.draft_tokens is None else f"; draft_tokens={self.draft_tokens}"
        return (
            "auto" if not most and self.sources == DRAFT_SOURCES else ",".join(self.sources) + most
        )


class Rules(BaseModel):
    """What defaults, a tenant or one of its workloads may say; None says nothing.

    Attributes:
        sharing: who reads what is said, and whose words are read: ``private``, the tenant alone;
            ``group``, the tenants of its group; ``global``, every tenant that says ``global``.
        record: False keeps what is said and read out of every shared memory.
        learn: whether a model drafter may be trained on it; has no effect without `record`.
        drafter: whose drafter that is, and drafts for it: ``shared``, or a name that tenants which
            share a drafter of their own agree on.
        memory: what the draft memory is kept to.
        speculation: who drafts; ``auto`` or ``off`` for everybody or nobody.
        priority: for engines that schedule by it; 0 comes first, larger numbers later.
        side_channel: what an eavesdropper may tell from the sizes and times of a stream's packets.
        limits: how much may be asked for. Those of a workload hold for it beside the tenant's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sharing: Sharing | None = None
    record: bool | None = None
    learn: bool | None = None
    drafter: Name | None = None
    memory: MemoryPolicy | None = None
    speculation: Speculation | None = None
    priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] | None = None
    side_channel: SideChannel | None = None
    limits: LimitsPolicy | None = None


TENANT_WIDE: Final = ("capacity", "retention_seconds", "stored_tokens")
"""Of `MemoryPolicy`, what holds for a tenant's memory as a whole."""


class WorkloadRules(Rules):
    """What a tenant may say of one kind of work."""

    @field_validator("drafter")
    @classmethod
    def _check_drafter(cls, drafter: str | None) -> str | None:
        if drafter is not None:
            raise ValueError("a drafter is a tenant's; set it for the tenant")
        return drafter

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, memory: MemoryPolicy | None) -> MemoryPolicy | None:
        for name in TENANT_WIDE:
            if memory is not None and name in memory.model_fields_set:
                raise ValueError(
                    f"memory.{name} holds for all of a tenant's memory; set it for the tenant"
                )
        return memory


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """What holds for a request: `Rules` without anything left open."""

    sharing: Sharing = "private"
    record: bool = True
    learn: bool = False
    drafter: str = SHARED_DRAFTER
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    speculation: Speculation = field(default_factory=Speculation)
    priority: int = 0
    side_channel: SideChannel = "open"
    limits: LimitsPolicy = field(default_factory=LimitsPolicy)

    @property
    def is_learned_from(self) -> bool:
        """Whether a drafter may be trained on it: what is not recorded cannot be."""
        return self.learn and self.record


@dataclass(frozen=True, slots=True)
class Layer:
    """One of those who say something.

    Attributes:
        name: as it is shown to people.
        said: values by dotted name (`said_in`).
    """

    name: str
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """An effective policy and where it comes from.

    Attributes:
        values: by dotted name.
        origins: name of the layer that each comes from.
        ignored: (layer, dotted name, value) of what would have widened, and has no effect.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    ignored: Sequence[tuple[str, str, Any]]

    @cached_property
    def policy(self) -> EffectivePolicy:
        """The policy itself."""
        plain = {name: value for name, value in self.values.items() if "." not in name}
        for block, kind in BLOCKS.items():
            inner = {
                name.partition(".")[2]: value
                for name, value in self.values.items()
                if name.startswith(f"{block}.")
            }
            plain[block] = kind.model_validate(inner)
        return EffectivePolicy(**plain)

    def narrowed(self, layers: Iterable[Layer]) -> Self:
        """With further layers, which only narrow. O(values said)."""
        values, origins, ignored = dict(self.values), dict(self.origins), list(self.ignored)
        for layer in layers:
            for name, value in layer.said.items():
                _take(layer.name, name, value, values, origins, ignored)
        return type(self)(MappingProxyType(values), MappingProxyType(origins), tuple(ignored))


def resolve(configured: Sequence[Layer], narrowing: Sequence[Layer] = ()) -> Resolved:
    """What layers say together.

    Args:
        configured: those before the built-in values, the outermost first.
        narrowing: those behind them.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    ignored: list[tuple[str, str, Any]] = []
    for layer in configured:
        for name, value in layer.said.items():
            if name in values:
                _take(layer.name, name, value, values, origins, ignored)
            else:
                values[name], origins[name] = value, layer.name
    for name, value in _BUILT_IN.items():
        if name not in values:
            values[name], origins[name] = value, BUILT_IN
    return Resolved(values, origins, ignored).narrowed(narrowing)


def _take(
    layer: str,
    name: str,
    value: Any,
    values: dict[str, Any],
    origins: dict[str, str],
    ignored: list[tuple[str, str, Any]],
) -> None:
    """Narrow one value, or note that it would have been widened."""
    held = values[name]
    narrower = FIELDS[name](held, value)
    if narrower != held:
        values[name], origins[name] = narrower, layer
    if narrower != value:
        ignored.append((layer, name, value))


def _smaller(held: Any, given: Any) -> Any:
    """Of two limits, of which None is none."""
    return given if held is None else held if given is None else min(held, given)


def _both(held: bool, given: bool) -> bool:
    return held and given


def _common(held: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in held if each in given)


def _of_fewer(held: str, given: str) -> str:
    """A drafter of some tenants' own is narrower than everybody's; of two such the last holds."""
    return held if given == SHARED_DRAFTER else given


def _earlier(order: Sequence[str]) -> Callable[[str, str], str]:
    return lambda held, given: min(held, given, key=order.index)


FIELDS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "sharing": _earlier(SHARING),
    "record": _both,
    "learn": _both,
    "drafter": _of_fewer,
    "memory.session": _both,
    "memory.workload": _both,
    "memory.tenant": _both,
    "memory.capacity": _smaller,
    "memory.retention_seconds": _smaller,
    "memory.stored_tokens": _smaller,
    "speculation.sources": _common,
    "speculation.draft_tokens": _smaller,
    "priority": max,
    "side_channel": _earlier(SIDE_CHANNEL),
    "limits.requests_per_minute": _smaller,
    "limits.tokens_per_minute": _smaller,
    "limits.concurrency": _smaller,
}
"""Of each value, which of two is the narrower, by dotted name."""
BLOCKS: Final[Mapping[str, type[BaseModel]]] = {
    "memory": MemoryPolicy,
    "speculation": Speculation,
    "limits": LimitsPolicy,
}


def _built_in() -> dict[str, Any]:
    policy, found = EffectivePolicy(), {}
    for name in FIELDS:
        value: Any = policy
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    return found


_BUILT_IN: Final = MappingProxyType(_built_in())
