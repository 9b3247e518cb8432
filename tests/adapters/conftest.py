"""The packaged model, loaded once for all tests that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from paceline.adapters.embedded.target import Target


@pytest.fixture(scope="session")
def target() -> Target:
    """SmolLM2-135M-Instruct in float32."""
    import torch

    from paceline.adapters.embedded.target import Target

    # Two threads that wait for each other on a busy machine are slower than one.
    torch.set_num_threads(1)
    return Target.load(None)
