"""The embedded engine, real and small, in the test's own process: its insides can be seen."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from small_chats import write_target
from small_models import VOCABULARY
from waiting import wait_until

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine


@dataclass
class ServedEngine:
    """An engine and where it listens."""

    engine: EmbeddedEngine
    url: str


@contextmanager
def served_engine(
    folder: Path,
    *,
    name: str = "target",
    max_tokens: int = 4096,
    speculator: Any = None,
    **settings: Any,
) -> Iterator[ServedEngine]:
    """A model that never ends a reply by itself, over HTTP."""
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.adapters.embedded.server import EngineServer
    from paceline.adapters.embedded.target import Target

    never = VOCABULARY  # the first number that is no token
    model = write_target(folder / "target", eos_token_id=never, max_position_embeddings=max_tokens)
    engine = EmbeddedEngine(Target.load(model), speculator, EngineSettings(**settings))
    app = EngineServer(engine, model_name=name).app()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield ServedEngine(engine, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
