"""Paceline: speculation middleware for agents on self-hosted vLLM.

The sub-packages are the rooms described in DESIGN.md: ``caches`` (draft memory), ``policies``
(tenants), ``adapters`` (engines), ``middleware`` (the proxy and the ``paceline`` command),
``benchmarks``.
"""

from importlib.metadata import version

__version__ = version("paceline")
