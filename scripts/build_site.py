"""Build the documentation's site: `make docs`. A broken link or anchor within it ends the build.

Pages keep the places that they have in the repository, so that their links hold in both. Zensical
looks at links between pages; links to other files are looked at here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = (
    *("README.md", "DESIGN.md", "CHANGELOG.md", "LOG.md", "LICENSE"),
    *("docs", "deploy", "examples"),
)
"""What the site is made of."""
CONFIG = "mkdocs.yml"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```+).*?^\1$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def build(out: Path, root: Path = ROOT) -> Path:
    """Build the site under `out`, which is emptied first; returns its folder.

    Raises:
        ClickException: a link leads nowhere, or a page that the navigation names is missing.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "pages"
    pages.mkdir(parents=True)
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, pages / name)
        else:
            shutil.copy(source, pages / name)
    config = yaml.safe_load((root / CONFIG).read_text(encoding="utf-8"))
    config["nav"] += _unlisted(config["nav"], pages)
    (out / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if faults := [*_missing(config["nav"], pages), *dangling_files(pages)]:
        raise click.ClickException("\n".join(faults))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(done.stdout + done.stderr)
    return out / "site"


def listed(nav: Any) -> Iterator[str]:
    """Paths of the pages in a navigation, in its order."""
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from listed(entry)


def dangling_files(pages: Path) -> Iterator[str]:
    """Links of pages to files that are no pages and do not exist, each as a line to be read."""
    for page in sorted(pages.rglob("*.md")):
        for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
            parts = urlsplit(target)
            if parts.scheme in ("http", "https"):
                if not parts.hostname or "." not in parts.hostname:
                    yield f"{page.relative_to(pages)}: {target} is no address on the web"
            elif parts.scheme:
                yield f"{page.relative_to(pages)}: {target} is neither a file nor http(s)"
            elif parts.path and not (page.parent / parts.path).exists():
                yield f"{page.relative_to(pages)}: {target} does not exist"


def _unlisted(nav: Any, pages: Path) -> list[dict[str, Any]]:
    known = set(listed(nav))
    found = [str(page.relative_to(pages)) for page in sorted(pages.glob("docs/**/*.md"))]
    rest: list[Any] = [page for page in found if page not in known]
    return [{"More": rest}] if rest else []


def _missing(nav: Any, pages: Path) -> Iterator[str]:
    for page in listed(nav):
        if not (pages / page).is_file():
            yield f"{CONFIG}: its navigation names {page}, which does not exist"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "build" / "docs")
def main(out: Path) -> None:
    """Build the site into OUT/site."""
    click.echo(f"the site: {build(out)}/docs/index.html")


if __name__ == "__main__":
    main()
