"""The proxy's configuration file: where it listens, which engines it has, whose policy it keeps."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from paceline.errors import ConfigError
from paceline.middleware.routing_config import RoutingConfig
from paceline.middleware.shaping import BUCKETS
from paceline.policies.tenants import PolicyFile, describe, parse_policy


class ListenConfig(BaseModel):
    """Where the proxy listens.

    Attributes:
        host: address; without a policy file it must be a loopback one.
        port: 0 takes a free one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080


class UpstreamConfig(BaseModel):
    """One engine.

    Attributes:
        name: unique name, for metrics.
        url: its base URL, without ``/v1``.
        api_key: key it wants, if any.
        refuse_seeded_sampling: answer a sampled request that has a ``seed`` with an error. Set it
            for a vLLM CPU build that runs without our worker: such a request ends it.
        decisions_url: base URL of where it tells what it decided for a request: of a vLLM with our
            worker the worker's metrics (``PACELINE_METRICS_PORT``), of the embedded engine its own
            URL. None: requests that want to be explained are told the policy alone.
        draining: it gets no new requests and finishes those it has.
        cache_tokens: tokens that its prefix cache holds; vLLM logs that at its start as "GPU KV
            cache size".
        health_path: where it says with 200 that it can answer, for what is neither vLLM nor ours:
            LiteLLM's own ``/health`` asks a model, its ``/health/liveliness`` does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    url: Annotated[str, Field(pattern=r"^https?://[^/]+$")]
    api_key: str | None = None
    refuse_seeded_sampling: bool = False
    decisions_url: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    draining: bool = False
    cache_tokens: Annotated[int, Field(ge=1024, le=2**30)] = 262_144
    health_path: Annotated[str, Field(pattern=r"^/")] = "/health"

    @field_validator("url", "decisions_url", mode="before")
    @classmethod
    def _without_slash(cls, url: object) -> object:
        return url.rstrip("/") if isinstance(url, str) else url

    @field_validator("url", "decisions_url")
    @classmethod
    def _check_address(cls, url: str | None) -> str | None:
        if url is not None:
            _require_address(url)
        return url


class CaptureConfig(BaseModel):
    """Recording what engines without our worker serve, from the token ids they are asked for.

    Attributes:
        redis_url: Redis that the memory is shared through, as engines with our worker are given it.
        model: the served model's name as the engine answers it: the first ``--served-model-name``,
            else what ``vllm serve`` was given. With the tokenizer it says whose memory this is.
        tokenizer: the served model's folder with its ``tokenizer.json``, or that file; a relative
            path is meant relative to the configuration's folder.
        adapters: names of LoRA adapters whose answers are recorded too, each in a memory of its
            own. Answers under any other name are not recorded.
        max_request_bytes: most token ids held of one request, as the engine writes them (six bytes
            a token or so); a request that has more is not recorded.
        max_in_flight_bytes: most of all requests together, those that wait to be published
            included.
        queue_tokens: most tokens held while Redis is away (4 bytes each); the oldest are dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    redis_url: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    tokenizer: Path
    adapters: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_request_bytes: Annotated[int, Field(ge=4096)] = 16 * 1024 * 1024
    max_in_flight_bytes: Annotated[int, Field(ge=4096)] = 256 * 1024 * 1024
    queue_tokens: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, adapters: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("model") in adapters:
            raise ValueError("an adapter has the model's own name; leave it out of adapters")
        return adapters

    @field_validator("max_in_flight_bytes")
    @classmethod
    def _check_in_flight(cls, max_bytes: int, info: ValidationInfo) -> int:
        one = info.data.get("max_request_bytes", 0)
        if max_bytes < one:
            raise ValueError(
                f"it is less than max_request_bytes, {one}; raise it, or lower that one"
            )
        return max_bytes


class ShapingConfig(BaseModel):
    """How answers of tenants whose ``side_channel`` is ``aggregate`` or ``padded`` are written.

    Attributes:
        interval_ms: time between two ticks; nothing is written in between.
        bytes_per_tick: size of each tick of a padded stream; more for requests of several choices
            or with log probabilities. A whole answer is padded to it times a power of two.
        round_ticks: a padded answer ends at a tick whose number is a multiple of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval_ms: Annotated[int, Field(ge=5, le=10_000)] = 100
    bytes_per_tick: int = 4096
    round_ticks: Annotated[int, Field(ge=1, le=10_000)] = 10

    @field_validator("bytes_per_tick")
    @classmethod
    def _check_size(cls, size: int) -> int:
        if size not in BUCKETS:
            raise ValueError(f"it is none of {', '.join(map(str, BUCKETS))}; choose one of them")
        return size


class WorkloadsConfig(BaseModel):
    """Kinds of work found by the wording of requests, where no header names them.

    Attributes:
        clusters: whether they are; left out, where a Redis is named here.
        redis_url: Redis that proxies share the names through; left out, the capture's.
        near_prompts: whether a system prompt that differs from a known one in details only counts
            as the same workload. False leaves each prompt its fingerprint; requests without system
            prompt and tools are named either way.
        wait_milliseconds: longest that a request waits for the name of a text never seen before; 0
            sends it on at once, named from its next turn on.
        max_clusters: most kinds of a sharing scope; beyond, the one asked for least makes room.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clusters: bool | None = None
    redis_url: Annotated[str, Field(min_length=1)] | None = None
    near_prompts: bool = True
    wait_milliseconds: Annotated[float, Field(ge=0, le=1000)] = 20.0
    max_clusters: Annotated[int, Field(ge=1, le=4096)] = 256


class LimitsConfig(BaseModel):
    """Where tenants' limits are counted.

    Attributes:
        redis_url: Redis that all proxies share the limits through; None takes the capture's, and
            where there is none each process counts by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    redis_url: Annotated[str, Field(min_length=1)] | None = None


class TracingConfig(BaseModel):
    """Traces of generations, for OpenTelemetry.

    Attributes:
        endpoint: where a collector takes traces over HTTP, its path included
            (``http://HOST:4318/v1/traces``).
        headers: that it wants, a key for example.
        sample_ratio: part of the traces that is kept; of those that clients began, what they say
            is kept.
        service_name: under which they are found.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+/")]
    headers: dict[str, str] = Field(default_factory=dict)
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    service_name: Annotated[str, Field(min_length=1)] = "paceline"


class DashboardConfig(BaseModel):
    """The dashboard's process, whose pages are shown at ``/dashboard``.

    Attributes:
        url: where `paceline dashboard` listens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(pattern=r"^http://[^/]+$")]

    @field_validator("url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        _require_address(url)
        return url


class ProxyConfig(BaseModel):
    """The whole configuration file.

    Attributes:
        listen: where to listen.
        upstreams: at least one engine. Changes of these alone are taken over while the proxy runs.
        policy_file: tenants and their keys; None serves one local tenant without a key, on loopback
            only.
        local_learning: without a policy file, whether a drafter may be trained on what is said.
        capture: how the proxy itself records what engines serve; None leaves it to engines that
            have our worker.
        priority_scheduling: engines schedule by priority (vLLM's ``--scheduling-policy priority``)
            and are told that of each request's policy; others refuse a request that has one.
        shaping: how answers are written that shall not tell by sizes and times what is in them.
        workloads: how kinds of work are found that no header names.
        limits: where tenants' limits are counted.
        routing: how engines are chosen, and what is done when one fails.
        dashboard: the dashboard that is shown to admins; None for none.
        tracing: where traces go; None makes none.
        log_format: of standard error; ``json`` is an object a line, with one for each request.
        max_body_bytes: longest request body.
        connect_timeout_seconds: longest wait for a connection to an engine.
        read_timeout_seconds: longest silence of an engine within a reply.
        first_byte_timeout_seconds: longest wait for the first byte of a stream while there is
            another engine to be asked in its place; it has to cover the longest wait in an engine's
            queue and the longest prompt's reading. None: ``read_timeout_seconds`` alone holds, as
            it does for answers that are not streamed.
        health_interval_seconds: time between two looks at an engine's health.
        shutdown_grace_seconds: longest time that answers under way get when the proxy is stopped;
            streams that take longer end with an error event.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: ListenConfig = ListenConfig()
    upstreams: Annotated[list[UpstreamConfig], Field(min_length=1)]
    policy_file: Path | None = None
    local_learning: bool = False
    capture: CaptureConfig | None = None
    priority_scheduling: bool = False
    shaping: ShapingConfig = ShapingConfig()
    workloads: WorkloadsConfig = WorkloadsConfig()
    limits: LimitsConfig = LimitsConfig()
    routing: RoutingConfig = RoutingConfig()
    dashboard: DashboardConfig | None = None
    tracing: TracingConfig | None = None
    log_format: Literal["text", "json"] = "text"
    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = 2.0
    read_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    first_byte_timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    health_interval_seconds: Annotated[float, Field(gt=0)] = 2.0
    shutdown_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 25.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [upstream.name for upstream in self.upstreams]
        if len(set(names)) < len(names):
            raise ValueError(f"upstream names {names} are not unique; give each its own")
        first = self.first_byte_timeout_seconds
        if first is not None and first > self.read_timeout_seconds:
            raise ValueError(
                f"first_byte_timeout_seconds is {first:g}, and read_timeout_seconds, "
                f"{self.read_timeout_seconds:g}, would end the wait before; lower the one or raise "
                "the other"
            )
        if self.policy_file is not None and self.local_learning:
            raise ValueError(
                "local_learning is true beside a policy_file; leave it out and say learn: true in "
                "the policy file, for each tenant that wants it"
            )
        if self.policy_file is None and not is_loopback(self.listen.host):
            raise ValueError(
                f"listen.host is {self.listen.host!r} without a policy_file; listen on 127.0.0.1, "
                "or write a "
                "policy file with tenants and keys"
            )
        return self

    @property
    def limits_redis_url(self) -> str | None:
        """Redis that limits are shared through; None if each process counts by itself."""
        shared = None if self.capture is None else self.capture.redis_url
        return self.limits.redis_url or shared

    def load_policy(self) -> PolicyFile | None:
        """Read the policy file; None if there is none.

        Raises:
            ConfigError: it cannot be read or breaks a rule.
        """
        if self.policy_file is None:
            return None
        return read_policy(self.policy_file)


def load_config(path: Path) -> ProxyConfig:
    """Read a configuration file and check it together with the policy file it names.

    A relative ``policy_file`` or ``capture.tokenizer`` is meant relative to the configuration's
    folder.

    Raises:
        ConfigError: a file cannot be read or breaks a rule.
    """
    config = resolved(read_config(path), path.parent)
    config.load_policy()
    return config


def resolved(config: ProxyConfig, folder: Path) -> ProxyConfig:
    """A configuration whose relative paths are meant relative to `folder`, with whole ones."""
    if config.policy_file is not None:
        config = config.model_copy(update={"policy_file": folder / config.policy_file})
    if config.capture is not None:
        tokenizer = folder / config.capture.tokenizer.expanduser()
        capture = config.capture.model_copy(update={"tokenizer": tokenizer})
        config = config.model_copy(update={"capture": capture})
    return config


def read_config(path: Path) -> ProxyConfig:
    """The configuration of a file as it stands there; no other file is looked at.

    Raises:
        ConfigError: it cannot be read or breaks a rule.
    """
    text = _read(path)
    try:
        return ProxyConfig.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(describe(error, name=str(path))) from error


def _require_address(url: str) -> None:
    """Check that a URL names a host, and no port that there cannot be.

    Raises:
        ValueError: it does not.
    """
    try:
        parts = urlsplit(url)
        is_complete = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete:
        raise ValueError(
            f"{url!r} names no host, or no port from 1 to 65535; write it as http://HOST:PORT"
        )


def make_config(**values: object) -> ProxyConfig:
    """A configuration made in code; like `ProxyConfig(**values)`, but with our error.

    Raises:
        ConfigError: a value breaks a rule.
    """
    try:
        return ProxyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, name="the proxy's settings")) from error


def read_policy(path: Path) -> PolicyFile:
    """The policy of a file.

    Raises:
        ConfigError: it cannot be read or breaks a rule.
    """
    return parse_policy(_read(path), name=str(path))


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether `host` is the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}; check the path and its permissions"
        ) from error
