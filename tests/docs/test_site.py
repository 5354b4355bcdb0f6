"""The built site, and a page of a report: links lead somewhere, nothing scrolls sideways, no script complains."""

import html.parser
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import pytest
from commands.test_report import make_run

from nc_jax.commands import main
from nc_jax.study.page import Page
from nc_jax.study.tables import Table

ROOT = Path(__file__).parents[2]
WIDTHS = NARROW, WIDE = 380, 1300  # pixels of a telephone and of a laptop
MADE_BY_SPHINX = ("_modules", "_static", "genindex.html", "py-modindex.html", "search.html")

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium (apt-get install chromium)")


class Links(html.parser.HTMLParser):
    """Collects where a page's links, pictures and scripts point to, and the names of its parts."""

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets += [found[key] for key in ("href", "src") if found.get(key)]


def broken(folder: Path) -> list[str]:
    """Return the links of a folder of pages that lead to no file, or to no part of a page."""
    pages = {path.resolve(): Links(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            names = pages[there].names if parts.fragment and there in pages else {unquote(parts.fragment)}
            if not there.is_file() or unquote(parts.fragment) not in names:
                found.append(f"{path.relative_to(folder.resolve())}: {target}")
    return found


def build(folder: Path) -> Path:
    """Build the site into a folder, from what `make docs` has built before, if there is anything."""
    there, site = ROOT / "docs" / "_build" / "html", folder / "html"
    if (there / ".doctrees").is_dir():
        shutil.copytree(there, site)
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(site)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "furo", "myst_parser"))), reason="no Sphinx (pip install 'nc_jax[docs]')"
)
def test_the_site(tmp_path):
    site = build(tmp_path)
    assert not broken(site)
    written = [path.relative_to(site) for path in sorted(site.rglob("*.html"))]
    paths = [path.as_posix() for path in written if path.parts[0] not in MADE_BY_SPHINX]
    assert len(paths) > 50
    if browser.find() is None:
        pytest.skip("the links are right; no Chromium to look at the pages (apt-get install chromium)")
    for width in WIDTHS:
        seen, console = browser.look(site, paths, width=width)
        assert [page.path for page in seen] == paths
        assert not console
        for page in seen:
            assert page.taken <= page.shown <= width, f"{page.path} is {page.taken} pixels wide: {page.wide}"
            assert not page.pictures, page.path
            assert page.title
            assert page.text > 100, page.path


def long_words() -> str:
    """A page with what may be too wide: a long word, a table of many columns, a table of sentences."""
    page = Page("Runs <a> and b")
    page.heading("Settings")
    page.say(["A word that is longer than a telephone is wide: --data.name=" + "folder/" * 12])
    columns = ["method", *(f"metric {number}" for number in range(14))]
    means = Table("Means over seeds", columns, [["nearest", *["0.979 ± 0.004"] * 14]])
    words = Table("In words", ["method", "verdict"], [["nearest", "reaches 95 % sooner than fixed (p = 0.001)"]])
    page.heading("Results")
    page.tables([means, words])
    return page.text()


@pytest.mark.slow
@needs_browser
def test_a_report_of_three_runs(tmp_path):
    runs = [
        make_run(tmp_path / f"a-run-with-a-long-name-{number}" / "20261126-default", 0.1 * number)
        for number in range(3)
    ]
    main(["report", *map(str, runs), "--out", str(tmp_path / "report.html")])
    (tmp_path / "words.html").write_text(long_words(), encoding="utf-8")
    assert not broken(tmp_path)
    for width in WIDTHS:
        seen, console = browser.look(tmp_path, ["report.html", "words.html"], width=width)
        assert not console
        assert seen[1].title == "Runs <a> and b"
        for page in seen:
            assert page.taken <= page.shown <= width, page.wide
            assert not page.pictures
            assert page.text > 300


@pytest.mark.slow
@needs_browser
def test_what_is_wrong_with_a_page_is_seen(tmp_path):
    wide = '<div id="wide" style="width: 900px">text</div>'
    text = f'<!doctype html><title>bad</title>{wide}<img src="none.png"><script>missing()</script>'
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    (seen,), console = browser.look(tmp_path, ["bad.html"], width=NARROW)
    assert seen.taken > seen.shown
    assert 'id="wide"' in seen.wide[0]
    assert len(seen.pictures) == 1
    assert any("missing is not defined" in line for line in console)


def test_broken_links_are_found(tmp_path):
    (tmp_path / "one.html").write_text(
        '<a href="two.html#part">good</a><a href="#here" id="here">good</a><a href="https://example.org">far</a>'
        '<a href="two.html#none">bad</a><a href="three.html">bad</a><img src="picture.png">',
        encoding="utf-8",
    )
    (tmp_path / "two.html").write_text('<p id="part"></p>', encoding="utf-8")
    assert broken(tmp_path) == [f"one.html: {target}" for target in ("two.html#none", "three.html", "picture.png")]


def test_the_site_says_its_version():
    below_the_name = (ROOT / "docs" / "_templates" / "sidebar" / "version.html").read_text(encoding="utf-8")
    assert "{{ version }}" in below_the_name
    assert "pathto('changelog')" in below_the_name
