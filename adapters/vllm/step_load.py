"""How many requests vLLM has, told to a learner beside it as its steps begin."""

from __future__ import annotations

import logging
from typing import Any, Final

from paceline.load_file import TEACHING_KEY, EngineLoad

logger = logging.getLogger("paceline.vllm")

TEACHING: Final = 1


class StepLoad:
    """Reads from each step which requests came and went.

    A request that waits until vLLM schedules it first is not known here. Each that has ended is
    told in the step behind its last one, for which vLLM makes an empty step if need be. What a
    learner's teacher asks is no load.

    Args:
        load: is told.
    """

    def __init__(self, load: EngineLoad) -> None:
        self._load = load
        self._is_broken = False

    def begin(self, scheduler_output: Any) -> None:
        """A step begins that vLLM has scheduled so. Never raises; O(requests that came or went)."""
        if self._is_broken:
            return
        try:
            for request_id in scheduler_output.finished_req_ids:
                self._load.end(request_id)
            for request in scheduler_output.scheduled_new_reqs:
                if not _is_teachers(request):
                    self._load.begin(request.req_id)
        except (AttributeError, TypeError):
            self._is_broken = True
            self._load.close()
            logger.exception("a learner is not told of requests: vLLM's steps are not as we know")

    def close(self) -> None:
        """The engine ends."""
        self._load.close()


def _is_teachers(request: Any) -> bool:
    """Whether a learner's teacher asks it."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    return bool(extra.get(TEACHING_KEY) == TEACHING)
