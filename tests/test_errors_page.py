"""The page of errors quotes the messages as the code prints them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
MESSAGES = [message for heading in re.findall(r"^### (.*)", PAGE, re.M) for message in re.findall(r"`(.+?)`", heading)]


def texts(path: Path) -> str:
    """All texts of a program, one a line, without what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


PROGRAMS = "\n".join(
    texts(path) for part in ("nc_jax", "experiments", "benchmarks") for path in (ROOT / part).rglob("*.py")
)


def test_the_page_has_messages():
    assert len(MESSAGES) > 100


def triples(text: str) -> set[str]:
    """All runs of three words, without punctuation, that nothing filled in interrupts."""
    found = set()
    for run in re.split(r"\.\.\.|\n", text):
        words = re.findall(r"[A-Za-z]+", run)
        found |= {" ".join(words[start : start + 3]) for start in range(len(words) - 2)}
    return found


SAID = triples(PROGRAMS)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_on_the_page_is_one_of_the_code(message):
    """Most runs of three words are in the code: not all, because what is filled in may be words, too."""
    here = triples(message)
    assert here, "a message has three words that never change"
    assert len(here & SAID) >= 0.5 * len(here), sorted(here - SAID)
