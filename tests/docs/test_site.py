"""The site builds without a network, with no link or anchor that leads nowhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest
import yaml

from build_site import CONFIG, ROOT, SOURCES, build, dangling_files, listed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    return build(tmp_path_factory.mktemp("site") / "out")


def test_every_page_is_there(site: Path) -> None:
    """Each page of the tree is one of the site, and README is its front."""
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "DESIGN.md", ROOT / "LOG.md"]:
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page
    assert "make serve" in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "deploy" / "compose.yaml").is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """No page loads a style, a font or a script of another host."""
    text = (site / "docs" / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:link|script|img)[^>]+(?:href|src)=\"?(https?:[^\"\s>]+)", text)
    assert not loaded


def test_every_page_is_found_from_the_navigation(site: Path) -> None:
    """Those that the configuration does not list too."""
    text = (site / "docs" / "index.html").read_text(encoding="utf-8")
    links = {
        href.rpartition("/")[2] for href in re.findall(r'<a href="([^"]+)"[^>]*nav__link', text)
    }
    assert {f"{page.stem}.html" for page in ROOT.glob("docs/**/*.md")} <= links


def broken(tmp_path: Path, text: str) -> Path:
    """A copy of the tree's pages with one more."""
    root = tmp_path / "root"
    root.mkdir()
    for name in (*SOURCES, CONFIG):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name)
        else:
            shutil.copy(source, root / name)
    (root / "docs" / "new.md").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("[a](nowhere.md)", "docs/new.md: nowhere.md does not exist"),
        ("[a](policy.md#nowhere)", "anchor does not exist"),
        ("[a](benchmarks/nowhere.json)", "docs/new.md: benchmarks/nowhere.json does not exist"),
        ("[a](https://nowhere)", "is no address on the web"),
        ("[a](ftp://example.com/x)", "is neither a file nor http"),
    ],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, link: str, why: str) -> None:
    """The message says which."""
    root = broken(tmp_path, f"# New\n\n{link}\n")
    with pytest.raises(click.ClickException) as raised:
        build(tmp_path / "out", root)
    plain = re.sub(r"\x1b\[[\d;]*m", "", raised.value.message)
    assert why in plain
    assert "docs/new.md" in plain


def test_links_in_code_are_none(tmp_path: Path) -> None:
    """What stands in a block or between backticks is not followed."""
    (tmp_path / "page.md").write_text("`[a](b.txt)`\n\n```\n[c](d.txt)\n```\n", encoding="utf-8")
    assert not list(dangling_files(tmp_path))


def test_a_page_of_the_navigation_that_is_missing_ends_the_build(tmp_path: Path) -> None:
    """It would be a dead entry otherwise."""
    root = broken(tmp_path, "# New\n")
    (root / "docs" / "limits.md").unlink()
    with pytest.raises(click.ClickException, match=r"names docs/limits\.md, which does not exist"):
        build(tmp_path / "out", root)


def test_no_page_is_listed_twice() -> None:
    """Each has one place."""
    names = list(listed(yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["nav"]))
    assert len(set(names)) == len(names)
