"""Pages that repeat what a finding has measured repeat its numbers."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?(?![\w])")


def measured_cells(page: str) -> list[tuple[str, str]]:
    """The cells of tables that link to a finding, each with the name of the finding."""
    cells = []
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        for cell in line.split("|") if line.startswith("|") else []:
            findings = set(re.findall(r"\(findings/(\w+)\.md", cell))
            assert len(findings) <= 1, f"a cell repeats one finding, or nobody can tell whose numbers these are: {cell}"
            cells += [(finding, cell) for finding in findings]
    return cells


CELLS = [(page, *cell) for page in ("choosing.md", "reproducing.md") for cell in measured_cells(page)]


@pytest.mark.parametrize(
    ("page", "finding", "cell"), CELLS, ids=[f"{page[:-3]}-{number}" for number, (page, *_) in enumerate(CELLS)]
)
def test_a_number_stands_in_the_finding_that_its_cell_links_to(page, finding, cell):
    text = (DOCS / "findings" / f"{finding}.md").read_text(encoding="utf-8")
    known = set(NUMBER.findall(text))
    said = NUMBER.findall(re.sub(r"\]\([^)]*\)|`[^`]*`", " ", cell))
    missing = [number for number in said if number not in known]
    assert not missing, f"{page}: {missing} not in {finding}.md: {cell}"


def test_both_pages_have_numbers():
    assert {page for page, _, _ in CELLS} == {"choosing.md", "reproducing.md"}
    assert sum(len(NUMBER.findall(cell)) for _, _, cell in CELLS) > 60
