"""The embedded engine by a clock that its passes alone move: what choosing is worth, exactly.

Everything is the engine that serves, but for three things: its model is small and of random
weights, so that what it says costs next to nothing; the clock moves by what a pass is said to take;
and memory can be made to be sure of junk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import TokenTree, TreeBatch
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import Progress
    from paceline.adapters.embedded.target import Target

Memory = Literal["none", "sound", "deluded"]
Drafter = Literal["none", "right", "useless"]
VOCABULARY: Final = 97
MODEL: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "initializer_range": 0.25,  # decided: what is likely is much likelier than the rest
}
TARGET_SEED: Final = 3
DRAFTER_SEEDS: Final = {"right": TARGET_SEED, "useless": 4}
DRAFTER_SHARE: Final = 0.2
"""What a pass of the drafter takes, in passes of the target."""
FIXED_SECONDS: Final = 0.03
REQUEST_SECONDS: Final = 0.002
SURE: Final = 0.99
"""What a deluded memory says of its junk."""
PROMPT_TOKENS: Final = 12


@dataclass(slots=True)
class PassClock:
    """Seconds, moved by whoever takes some."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """What a pass of the target takes.

    Attributes:
        fixed: seconds of the pass.
        request: of each request in it.
        token: of each token that it reads.
        step: of any pass in which some request reads more than a token.
        noise: part by which each pass takes more or less, at random.
    """

    fixed: float = FIXED_SECONDS
    request: float = REQUEST_SECONDS
    token: float = 0.001
    step: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.fixed, self.request, self.token, self.step)
        if least < 0.0 or not 0.0 <= self.noise < 1.0:
            raise ConfigError(
                f"a pass has a part of {least} seconds and noise {self.noise}; give no negative "
                "seconds, and noise from 0 to below 1"
            )

    def seconds(self, num_requests: int, num_tokens: int, rng: Random) -> float:
        """Of one pass."""
        step = self.step if num_tokens > num_requests else 0.0
        seconds = self.fixed + self.request * num_requests + self.token * num_tokens + step
        return seconds * (1.0 + self.noise * rng.uniform(-1.0, 1.0))


class Spelling:
    """Stands in for a tokenizer where only tokens count: a letter each."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """One letter a token."""
        return "".join(chr(65 + token_id % 26) for token_id in token_ids)


class Deluded(Speculator):
    """A memory whose calibration is broken: junk, and sure of it."""

    def propose(
        self,
        request_ids: Sequence[str],
        *,
        max_tokens: int | Mapping[str, int] = 8,
        max_branches: int = 1,
    ) -> list[TokenTree]:
        """As many tokens as may be, each of them at `SURE`."""
        wanted = [max_tokens if isinstance(max_tokens, int) else max_tokens[i] for i in request_ids]
        return [
            TokenTree.chain([(7 * k + 3) % VOCABULARY for k in range(num)], prob=[SURE] * num)
            for num in wanted
        ]

    def propose_batch(
        self,
        request_ids: Sequence[str],
        *,
        max_tokens: int | Mapping[str, int] = 8,
        max_branches: int = 1,
    ) -> TreeBatch:
        """The same."""
        return TreeBatch.of(self.propose(request_ids, max_tokens=max_tokens))


MEMORIES: Final[dict[Memory, Callable[[], Speculator | None]]] = {
    "none": lambda: None,
    "sound": Speculator,
    "deluded": Deluded,
}


def random_target(seed: int) -> Target:
    """A small model of random weights, on one thread of torch; it never ends a reply."""
    import torch
    import transformers

    from paceline.adapters.embedded.target import Target

    torch.set_num_threads(1)  # two that wait for each other are slower where all cores work
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**MODEL)
    target = Target(transformers.AutoModelForCausalLM.from_config(config).eval(), Spelling())
    target.eos_token_ids = frozenset()
    return target


class SimulatedEngine:
    """An embedded engine that answers turns of requests, all of a turn at once.

    Args:
        memory: what drafts from it.
        drafter: a model beside it.
        time: what passes of the target take; those of the drafter take `DRAFTER_SHARE` of that,
            without the step.
        num_requests: of a turn.
        seed: of the noise of passes.
        settings: further ones of the engine.

    Attributes:
        engine: the engine.
    """

    engine: EmbeddedEngine

    def __init__(
        self,
        memory: Memory | Speculator = "sound",
        *,
        drafter: Drafter = "none",
        time: PassTime | None = None,
        num_requests: int = 4,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        from paceline.adapters.embedded.engine import EmbeddedEngine
        from paceline.adapters.embedded.engine_settings import EngineSettings

        self._clock = PassClock()
        self._num_requests = num_requests
        self._rng = Random(seed)  # noqa: S311  no secret
        time = PassTime() if time is None else time
        by_drafter = PassTime(
            fixed=DRAFTER_SHARE * time.fixed,
            request=DRAFTER_SHARE * time.request,
            token=DRAFTER_SHARE * time.token,
            noise=time.noise,
        )
        self.engine = EmbeddedEngine(
            self._timed(random_target(TARGET_SEED), time),
            MEMORIES[memory]() if isinstance(memory, str) else memory,
            EngineSettings(max_running=num_requests, **settings),
            drafter=(
                None
                if drafter == "none"
                else self._timed(random_target(DRAFTER_SEEDS[drafter]), by_drafter)
            ),
            clock=self._clock,
        )

    def answer(
        self,
        turns: range,
        *,
        tenants: int = 1,
        distinct: int = 1000,
        reply_tokens: int = 48,
    ) -> tuple[float, list[list[int]]]:
        """Seconds that turns of requests take, and what is said to each of them.

        Args:
            turns: their numbers.
            tenants: that the requests of a turn are of, by turns.
            distinct: turns after which what is asked comes again.
            reply_tokens: of each reply.
        """
        from paceline.adapters.embedded.requests import GenerationRequest, Job
        from paceline.adapters.embedded.sampling import SamplingParams

        said: list[list[Progress]] = []
        began_at = self._clock()
        for turn in turns:
            for i in range(self._num_requests):
                said.append([])
                request = GenerationRequest(
                    info=RequestInfo(request_id=f"{turn}-{i}", tenant=f"t{i % tenants}"),
                    prompt_ids=_prompt(turn % distinct, i),
                    max_tokens=reply_tokens,
                    sampling=SamplingParams(temperature=0.0),
                )
                self.engine.admit(Job(request, said[-1].append))
            while self.engine.sizes()["running"]:
                self.engine.step()
        tokens = [[token for step in steps for token in step.token_ids] for steps in said]
        return self._clock() - began_at, tokens

    def failures(self) -> int:
        """Errors of drafting and of the choice of arms, since the start."""
        arms = self.engine.arms
        return self.engine.draft_failures.count + (0 if arms is None else arms.failures.count)

    def _timed(self, target: Target, time: PassTime) -> Target:
        forward = target.forward

        def timed(rows: Any) -> Any:
            num_tokens = sum(len(row.token_ids) for row in rows)
            self._clock.now += time.seconds(len(rows), num_tokens, self._rng)
            return forward(rows)

        target.forward = timed
        return target


def _prompt(turn: int, place: int) -> tuple[int, ...]:
    return tuple((turn * 31 + place * 7 + k * k) % VOCABULARY for k in range(PROMPT_TOKENS))
