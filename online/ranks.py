"""Training in several processes, as ``torchrun`` starts them. Needs torch.

Each takes its share of a step's lessons; gradients are added up, so that all of them hold the same
weights after every step. The first process decides what is trained and when; the others follow.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self, TypeVar

import torch
import torch.distributed

from paceline.errors import ConfigError

T = TypeVar("T")

VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks:
    """The processes of one training; alone unless `from_env` finds more.

    Args:
        rank: which one this is, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, *, device: str = "cpu") -> Self:
        """As ``torchrun`` says; joins the others.

        Args:
            env: the environment.
            device: kind of device that gradients are on; ``cuda`` talks over NCCL, all else over
                gloo.

        Raises:
            ConfigError: only part of what ``torchrun`` sets is there.
        """
        given = [name for name in VARIABLES if name in env]
        if not given:
            return cls()
        if missing := sorted({*VARIABLES} - {*given}):
            raise ConfigError(
                f"{', '.join(given)} are set, but not {', '.join(missing)}; start several "
                "processes with torchrun, or unset them"
            )
        backend = "nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(int(env.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group(backend)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process decides."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items, maybe none."""
        return items[self.rank :: self.size]

    def add_up(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum each parameter's gradient over all processes, in place; none counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def from_first(self, value: T) -> T:
        """What the first process gave; waits for it."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1:
            torch.distributed.destroy_process_group()
