"""`paceline drafter list`, `show`, `promote` and so on: versions of a model's drafter."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from paceline.drafter_folder import new_folder, read_record
from paceline.errors import ConfigError
from paceline.middleware.memory import connected, data_option, redis_option

if TYPE_CHECKING:
    from paceline.caches.drafter_registry import DrafterRegistry
    from paceline.caches.journal_client import Client
    from paceline.caches.records import ModelFingerprint

BY_HAND: Final = "by hand"

_group = click.option(
    "--group",
    envvar="PACELINE_DRAFTER_GROUP",
    default="shared",
    show_default=True,
    help="Group of tenants that train and use the drafter.",
)
_reason = click.option("--reason", default=BY_HAND, show_default=True, help="Kept with it.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a command finds the registry.

    Attributes:
        redis_url: of the Redis, None for the embedded Valkey.
        data_folder: of the embedded Valkey, None for the user's.
        registry: folder of the files, None where the command needs none.
        model: name that it is served under, None for the only one.
        tokenizer: digest of its tokenizer, a folder or a name on the Hub; None for the only one.
    """

    redis_url: str | None
    data_folder: Path | None
    registry: Path | None
    model: str | None
    tokenizer: str | None

    @contextmanager
    def open(self, *, makes: bool = False) -> Iterator[tuple[ModelFingerprint, DrafterRegistry]]:
        """The model and the registry of its drafters.

        Args:
            makes: whether files are written or removed: the folder has to be named then, and a
                model that Redis does not know yet is taken in if it is named whole.

        Raises:
            ConfigError: the folder or the model is not named and cannot be told.
            JournalError: Redis cannot be used.
        """
        from paceline.caches.drafter_registry import DrafterRegistry
        from paceline.caches.journal_store import JournalStore
        from paceline.caches.keys import JournalKeys, namespace_of

        if makes and self.registry is None:
            raise ConfigError(
                "give --registry FOLDER (or PACELINE_DRAFTER_REGISTRY): the folder of drafters' "
                "versions that learner and engines see as well"
            )
        with connected(self.redis_url, self.data_folder) as client:
            fingerprint, is_known = self._model(client)
            store = JournalStore(client, JournalKeys(namespace_of(fingerprint)))
            if makes and not is_known:
                store.register(fingerprint)
            # the other commands go by the folders that are recorded
            yield fingerprint, DrafterRegistry(store, self.registry or Path())

    def _model(self, client: Client) -> tuple[ModelFingerprint, bool]:
        """Whose drafters, and whether Redis knows the model."""
        from paceline.caches.journal_store import registered_models
        from paceline.caches.records import ModelFingerprint

        digest = None if self.tokenizer is None else tokenizer_of(self.tokenizer)
        known = registered_models(client)
        found = [
            each
            for each in known
            if self.model in {None, each.model} and digest in {None, each.tokenizer}
        ]
        if len(found) == 1:
            return found[0], True
        if not found and self.model is not None and digest is not None:
            return ModelFingerprint(model=self.model, tokenizer=digest), False
        listed = ", ".join(f"{each.model} (tokenizer {each.tokenizer})" for each in known)
        raise ConfigError(
            f"{len(found)} models in Redis are meant by --model {self.model or '(any)'} "
            f"--tokenizer {self.tokenizer or '(any)'}; name one of those known: "
            f"{listed or 'none'}. One that no engine has served yet needs both"
        )


def tokenizer_of(source: str) -> str:
    """Digest of a tokenizer that is named by it, by a folder or on the Hub."""
    from paceline.caches.tokenizer import TextTokenizer

    is_digest = len(source) == 32 and all(c in "0123456789abcdef" for c in source)  # noqa: PLR2004
    return source if is_digest and not Path(source).exists() else TextTokenizer(source).digest


def _placed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where the registry is, as one `place`."""

    @redis_option
    @data_option
    @click.option(
        "--registry",
        envvar="PACELINE_DRAFTER_REGISTRY",
        type=click.Path(path_type=Path),
        help="Folder of drafters' versions.",
    )
    @click.option("--model", help="Name that the model is served under.  [default: the only one]")
    @click.option(
        "--tokenizer",
        help="Its tokenizer: folder, name or digest.  [default: the only one of the model]",
    )
    @wraps(command)
    def placed(
        redis_url: str | None,
        data_folder: Path | None,
        registry: Path | None,
        model: str | None,
        tokenizer: str | None,
        **options: Any,
    ) -> None:
        place = Place(
            redis_url=redis_url,
            data_folder=data_folder,
            registry=registry,
            model=model,
            tokenizer=tokenizer,
        )
        command(place=place, **options)

    return placed


@click.command(name="list")
@click.option("--group", help="Only this group's.  [default: all]")
@_json
@_placed
def list_versions(place: Place, group: str | None, as_json: bool) -> None:
    """List versions of the drafter, how they were judged and how they do."""
    from paceline.middleware.drafter_report import GroupReport, as_text, encoded

    with place.open() as (fingerprint, registry):
        model = fingerprint.model
        groups = registry.groups() if group is None else [group]
        found = [GroupReport.read(registry, each) for each in groups]
        num_skipped = registry.num_skipped_newer + registry.num_skipped_malformed
    if as_json:
        click.echo(encoded(model, found))
        return
    if not found:
        click.echo(f"{model} has no drafter here")
    for each in found:
        click.echo("\n".join(as_text(model, each, now=time.time())))
    if num_skipped:
        click.echo(f"{num_skipped} record(s) cannot be read here; is a newer Paceline at work?")


@click.command(name="show")
@click.argument("version", type=int, required=False)
@_group
@_json
@_placed
def show_version(place: Place, version: int | None, group: str, as_json: bool) -> None:
    """Show all that is known of VERSION, and what is tried where.

    By default of the current version, or where there is none of the one that is tried.
    """
    from paceline.middleware.drafter_report import (
        GroupReport,
        canary_line,
        details,
        encoded_version,
    )

    with place.open() as (_, registry):
        report = GroupReport.read(registry, group)
        state = report.state
        number = state.current or state.canary if version is None else version
        if not number:
            raise ConfigError(f"{group} has no current version; name one: show VERSION")
        shown = registry.version(group, number)
    live = [figures for figures in report.live if figures.version == number]
    if as_json:
        click.echo(encoded_version(shown, live))
        return
    click.echo("\n".join(details(shown, live, now=time.time())))
    if (line := canary_line(report, now=time.time())) is not None:
        click.echo(line)


@click.command()
@click.argument("version", type=int)
@_reason
@_group
@_placed
def promote(place: Place, version: int, reason: str, group: str) -> None:
    """Have all engines run VERSION: a candidate, a canary or one that ran before."""
    with place.open() as (_, registry):
        registry.promote(group, version, reason=reason)
        _say_state(registry, group)


@click.command()
@click.option("--to", type=int, help="Version to go back to.  [default: the last good one]")
@_reason
@_group
@_placed
def rollback(place: Place, to: int | None, reason: str, group: str) -> None:
    """Take back the canary if one runs, else the current version.

    With --to it is the current version in any case. What is taken back never runs again.
    """
    with place.open() as (_, registry):
        before = registry.state(group)
        # named, so that nothing is taken back that somebody promotes just now
        number = before.current if to is not None else before.canary or before.current
        registry.roll_back(group, reason=reason, version=number or None, to=to)
        click.echo(f"version {number} of {group} is rolled back")
        _say_state(registry, group)


@click.command()
@click.argument("version", type=int)
@click.argument("out", type=click.Path(path_type=Path))
@_group
@_placed
def export(place: Place, version: int, out: Path, group: str) -> None:
    """Copy VERSION's files into the new folder OUT, an ordinary one of Hugging Face."""
    from paceline.caches.drafter_registry import folder_checksum

    with place.open() as (_, registry):
        found = registry.version(group, version)
    try:
        with new_folder(out) as beside:
            shutil.copytree(found.folder, beside, dirs_exist_ok=True)
            if folder_checksum(beside) != found.checksum:
                raise ConfigError(
                    f"{found.folder} is not what was published as version {version}: its checksum "
                    "is another; roll the version back"
                )
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"{found.folder} cannot be copied to {out}: {error}") from error
    click.echo(f"version {version} of {group} is in {out}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--promote", "is_promoted", is_flag=True, help="Have all engines run it at once.")
@click.option(
    "--check/--no-check",
    "is_checked",
    default=True,
    show_default=True,
    help="Load it and let it draft a little first, as the learner does; needs torch.",
)
@_reason
@_group
@_placed
def publish(
    place: Place, folder: Path, is_promoted: bool, is_checked: bool, reason: str, group: str
) -> None:
    """Bring a drafter's FOLDER in as a version, as `paceline drafter distil` writes it.

    It is a candidate that one engine tries first. The folder is copied.
    """
    from paceline.middleware.drafter_check import check_folder

    record = read_record(folder)
    distilled = None if record is None else record.distilled
    with place.open(makes=True) as (fingerprint, registry):
        if is_checked:
            check_folder(folder, fingerprint)
        version = registry.publish(
            group,
            folder,
            parent=0,
            num_tokens=0 if distilled is None else distilled.num_tokens,
            gate=None,
            reason=reason,
        )
        click.echo(f"{folder} is version {version.version} of {group}, a candidate")
        if is_promoted:
            registry.promote(group, version.version, reason=reason)
            _say_state(registry, group)


@click.command()
@click.option("--group", required=True, help="Group whose drafter goes.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_placed
def retire(place: Place, group: str, yes: bool) -> None:
    """Take a group's drafter out of use, and delete all of its versions.

    A model cannot unlearn what a tenant has said: this is how it is forgotten.
    """
    if not yes:
        click.confirm(f"Delete every version of the drafter of {group}?", abort=True)
    with place.open(makes=True) as (_, registry):
        removed = registry.retire(group)
    click.echo(f"deleted {len(removed)} version(s) of {group}; its engines go on without")


def _say_state(registry: DrafterRegistry, group: str) -> None:
    from paceline.middleware.drafter_report import state_line

    click.echo(state_line(group, registry.state(group)))


COMMANDS: Final = (list_versions, show_version, promote, rollback, export, publish, retire)
"""Of the group `paceline drafter`."""
