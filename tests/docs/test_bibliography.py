"""Whoever is cited, in the code or on a page, is in the bibliography."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
YEAR = r"(?:18|19|20)\d\d"
TEXT = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
ENTRIES = [" ".join(entry.split()) for entry in re.split(r"^\* ", TEXT, flags=re.M)[1:]]
NAME = r"(?<!\w)[A-ZÀ-Ž][\w'’-]+"
# "Hong and Ling (2024)", "Zhu et al. (2021)", "Barz and Denzler, 2019": the names at the end, and the year.
CITED = re.compile(rf"({NAME}(?:(?:, {NAME})*,? and {NAME}| et al\.)?),? \(?({YEAR})[a-z]?\b(?!-|\.\d)")
PAGES = [
    path
    for folder, ending in (("nc_jax", "py"), ("experiments", "py"), ("benchmarks", "py"), ("docs", "md"))
    for path in sorted((ROOT / folder).rglob(f"*.{ending}"))
    if "_build" not in path.parts and path.name != "bibliography.md"
]
# Words with a capital before a year that cite nobody: conferences.
NO_AUTHORS = {"ICLR", "NeurIPS", "ICML", "ICCV", "CVPR", "AAAI"}


def citations(text: str) -> set[tuple[str, str]]:
    """Names and years, from a text whose lines may break within a citation or begin with a sign of a comment."""
    flat = re.sub(r"\s*\n[ \t]*(?:#[ \t]*)?", " ", text)
    return {(names, year) for names, year in CITED.findall(flat) if names not in NO_AUTHORS}


def has_entry(names: str, year: str) -> bool:
    """Whether an entry of that year has these words; the first of several words is its first author."""
    words = re.findall(NAME, names.replace(" et al.", "").replace(" and ", ", "))
    of_year = [entry for entry in ENTRIES if re.search(rf"\({year}[a-z]?\)", entry)]
    if len(words) > 1 or names.endswith("et al."):
        of_year = [entry for entry in of_year if re.match(rf"(?:[a-z]+ )*{re.escape(words[0])}\b", entry)]
    return any(all(re.search(rf"\b{re.escape(word)}\b", entry, re.I) for word in words) for entry in of_year)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_citation_has_an_entry(path):
    missing = {found for found in citations(path.read_text(encoding="utf-8")) if not has_entry(*found)}
    assert not missing


def test_citations_are_found():
    text = (
        "Zhu et al. (2021) and Hong and\n    # Ling (2024); (Barz and Denzler, 2019); Absil, Mahony and Sepulchre 2008"
    )
    assert citations(text) == {
        ("Zhu et al.", "2021"),
        ("Hong and Ling", "2024"),
        ("Barz and Denzler", "2019"),
        ("Absil, Mahony and Sepulchre", "2008"),
    }
    assert has_entry("Hong and Ling", "2024")
    assert not has_entry("Hong and Ling", "2023")
    assert sum(len(citations(path.read_text(encoding="utf-8"))) for path in PAGES) > 200


def test_entries_have_one_form():
    assert len(ENTRIES) > 100
    for entry in ENTRIES:
        assert re.match(rf"[^(]+ \({YEAR}[a-z]?\)\. \S", entry), entry
    assert len(set(ENTRIES)) == len(ENTRIES)
    identifiers = re.findall(r"\[arXiv:(\S+?)\]\(https://arxiv\.org/abs/(\S+?)\)", TEXT)
    assert len(identifiers) > 80
    assert all(shown == linked for shown, linked in identifiers)
