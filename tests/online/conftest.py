"""What tests of learning share: a target of which something can be learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from learning import with_drafter
from ring_language import RingLanguage


@pytest.fixture(scope="session")
def language() -> RingLanguage:
    """What the learnable target speaks."""
    return RingLanguage()


@pytest.fixture(scope="session")
def learnable(language: RingLanguage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that ``target``, and with a ``drafter`` that has learned nothing of it."""
    folder = tmp_path_factory.mktemp("learnable")
    language.write_target(folder / "target")
    return with_drafter(folder)
