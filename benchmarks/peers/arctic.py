"""Arctic Inference's suffix decoding, as vLLM's `suffix` method uses it, from its own sources.

The whole package replaces parts of vLLM by a plugin and needs torch to build. Its suffix decoding
is two C++ files and a Python module that need neither. They are built unmodified, in Release, from
the source distribution that pip fetches, in a folder of their own: no distribution is installed, so
no entry point of it is ever registered.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast

from paceline.errors import UnsupportedError

NAME: Final = "arctic-inference"
VERSION: Final = "0.3.0"
STEM: Final = f"arctic_inference-{VERSION}"
SDIST_SHA256: Final = "7f22e3e1b1071c6061c0d6951be17c0fb50b08d06d6e543144c8f52faba60a36"
PACKAGE: Final = "arctic_inference"
BUILD_TIMEOUT_SECONDS: Final = 900
TAIL_CHARACTERS: Final = 1500


class SuffixDraft(Protocol):
    """What a call of `SuffixCache.speculate` returns.

    Attributes:
        token_ids: drafted tokens.
        parents: for each token the index of its parent in `token_ids`, -1 at the root.
        probs: estimated probabilities.
        score: sum of `probs`.
        match_len: tokens of the context that were matched.
    """

    token_ids: list[int]
    parents: list[int]
    probs: list[float]
    score: float
    match_len: int


class SuffixCache(Protocol):
    """The part of `SuffixDecodingCache` that a proposer drives."""

    def start_request(self, req_id: int | str, prompt_token_ids: Any) -> None:
        """Open a request and build the suffix tree of its prompt."""

    def stop_request(self, req_id: int | str) -> None:
        """Close a request; its reply stays cached."""

    def add_active_response(self, req_id: int | str, token_ids: Any) -> None:
        """Append accepted tokens to the request's tree and to the shared one."""

    def speculate(
        self,
        req_id: int | str,
        context: Any,
        max_spec_tokens: int | None = None,
        max_spec_factor: float = 1.0,
        max_spec_offset: float = 0.0,
        min_token_prob: float = 0.1,
        use_tree_spec: bool = False,
    ) -> SuffixDraft:
        """Draft what may follow the last tokens of a context."""


class SuffixCacheClass(Protocol):
    """`SuffixDecodingCache` itself."""

    def __call__(self, max_tree_depth: int = 64, max_cached_requests: int = -1) -> SuffixCache:
        """An empty cache; `max_cached_requests` -1 means without limit, 0 none."""


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where peers are kept: ``$XDG_CACHE_HOME/paceline/peers`` or ``~/.cache/paceline/peers``."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "paceline" / "peers"


def load_suffix_cache(folder: Path) -> SuffixCacheClass:
    """`SuffixDecodingCache` of arctic-inference 0.3.0, built into `folder` on first use.

    A source distribution that already lies in `folder` is used as it is, so that a machine without
    an index needs only that file. Building takes about 20 s on one core.

    Raises:
        UnsupportedError: it cannot be fetched, verified, built or imported; the message says which.
    """
    home = folder / STEM / f"python-{sysconfig.get_config_var('SOABI')}"
    if not home.is_dir():
        _install(folder, home)
    return _import(home)


def _install(folder: Path, home: Path) -> None:
    """Fetch, verify and build in a scratch folder, then move the result to `home` in one step."""
    home.parent.mkdir(parents=True, exist_ok=True)
    archive = _source_distribution(folder)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="build-") as scratch:
        with tarfile.open(archive) as sources:
            sources.extractall(scratch, filter="data")
        source = Path(scratch) / STEM
        library = _build(source / "csrc" / "suffix_decoding", Path(scratch) / "cmake")
        made = Path(scratch) / "python"
        package = made / PACKAGE
        package.mkdir(parents=True)
        shutil.copy(source / PACKAGE / "__init__.py", package)
        shutil.copytree(source / PACKAGE / "suffix_decoding", package / "suffix_decoding")
        shutil.copy(library, package / "suffix_decoding")
        try:
            made.rename(home)
        except OSError:
            if not home.is_dir():  # else another process was faster, with the same files
                raise


def _source_distribution(folder: Path) -> Path:
    """The verified source distribution in `folder`, fetched by pip if it is not there."""
    archive = folder / f"{STEM}.tar.gz"
    if not archive.is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        # pip asks a source distribution for its metadata, which imports torch and setuptools: those
        # of this environment do, where isolation would download them
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        _run("fetch", *pip, *options, "--dest", folder, f"{NAME}=={VERSION}")
    if not archive.is_file():
        raise UnsupportedError(f"pip fetched no {archive.name} for {NAME}=={VERSION}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise UnsupportedError(
            f"{archive} has SHA-256 {digest}, the {NAME} {VERSION} that we compare with has "
            f"{SDIST_SHA256}: delete the file to fetch it again"
        )
    return archive


def _build(source: Path, build: Path) -> Path:
    """Compile the suffix decoding with its own CMake project; returns the extension module."""
    if importlib.util.find_spec("nanobind") is None:
        raise UnsupportedError(f"cannot build {NAME}: nanobind is missing (pip install nanobind)")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise UnsupportedError(f"cannot build {NAME}: cmake is missing (pip install cmake)")
    python = f"-DPython_EXECUTABLE={sys.executable}"
    _run("configure", cmake, "-S", source, "-B", build, python, "-DCMAKE_BUILD_TYPE=Release")
    _run("build", cmake, "--build", build, "--config", "Release", "--target", "_C")
    found = [p for p in build.rglob("_C*") if p.suffix in {".so", ".pyd"}]
    if len(found) != 1:
        raise UnsupportedError(f"building {NAME} left {len(found)} extension modules, not one")
    return found[0]


def _run(what: str, *command: str | Path) -> None:
    try:
        subprocess.run(
            [*map(str, command)],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        said = error.stdout[-TAIL_CHARACTERS:]
        raise UnsupportedError(f"cannot {what} {NAME} {VERSION}:\n{said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError(f"cannot {what} {NAME} {VERSION}: {error}") from error


def _import(home: Path) -> SuffixCacheClass:
    sys.path.insert(0, str(home))
    try:
        module = importlib.import_module(f"{PACKAGE}.suffix_decoding")
    except ImportError as error:
        raise UnsupportedError(f"cannot import {NAME} from {home}: {error}") from error
    finally:
        sys.path.remove(str(home))
    origin = Path(str(module.__file__)).resolve()
    if not origin.is_relative_to(home.resolve()):
        raise UnsupportedError(
            f"{PACKAGE} was already imported from {origin}; run the benchmark in a new process"
        )
    return cast("SuffixCacheClass", module.SuffixDecodingCache)
