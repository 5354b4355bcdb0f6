"""Every block of every page of documentation runs."""

import importlib.util
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from nc_jax.commands import COMMANDS

DOCS = pages.ROOT / "docs"
# Findings say how their numbers were made, in hours; pages of the API are docstrings, which have tests of their own.
LEFT_OUT = ("findings", "api", "_build")
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in LEFT_OUT and pages.blocks_of(path)
)
LANGUAGES = {"python", *pages.COMMANDS, "text", "toml", "diff", "json", "{toctree}", "mermaid"}
OPTIONAL = {"torch", "flwr", "equinox", "safetensors"}  # what `pip install nc_jax` does not bring


def imports_of(page: Path) -> set[str]:
    """The packages that the blocks of a page import which run."""
    blocks = [block for block in pages.blocks_of(page) if block.language == "python" and block.not_run is None]
    return set().union(*map(pages.imports_of, blocks))


def of_page(page: Path):
    """A page as a parameter; `-m torch` runs those that need PyTorch where it is there."""
    marks = [pytest.mark.torch] if "torch" in imports_of(page) else []
    return pytest.param(page, marks=marks, id=str(page.relative_to(DOCS)))


of_every_page = pytest.mark.parametrize("page", [of_page(page) for page in PAGES])


def test_there_are_pages():
    assert len(PAGES) > 5


@of_every_page
def test_blocks_compile(page):
    for block in pages.blocks_of(page):
        assert block.language in LANGUAGES
        assert block.not_run is None or len(block.not_run.split()) > 2, "a reason is a few words"
        if block.language == "python":
            compile(block.text, str(page), "exec")
        for words in block.commands:
            assert words[0] != "nc-jax" or words[1] in COMMANDS
    # A fence within a list or a quotation would not be seen.
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip("> \t").startswith("```")]
    assert len(fences) == 2 * len(pages.blocks_of(page))


@pytest.mark.slow
@of_every_page
def test_blocks_run(page, tmp_path):
    for name in sorted(OPTIONAL & imports_of(page)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"this page needs {name}")
    pages.run_page(page, tmp_path)


@pytest.mark.slow
def test_the_program_for_several_hosts_runs_on_two(tmp_path):
    """The first and the last program of the page, in two processes that each see half of every batch."""
    blocks = pages.blocks_of(DOCS / "tutorials" / "several_devices.md")
    first, *_, last = (block.text for block in blocks if block.language == "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = f"""import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
"""
    end = "\nprint(jax.process_count(), [array.addressable_shards[0].data.shape for array in here[0]])"
    program = tmp_path / "program.py"
    program.write_text(begin + first + last + end)
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(index)],
            env=pages.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for output in outputs:
        assert output.splitlines()[-2:] == ["as on one device", "2 [(8, 64), (8,)]"]


PAGE = """
```python
# numbers_of_mine.py
from pathlib import Path
number = 4
print("training", number, "gives  0.981", Path("file").write_text("1"))
```

```text
training 4 gives 0.97 1
```

```console
$ pip install something
$ python -m calendar 2024 1   # a comment
$ nc-jax report RUN
```

<!-- not run: it would end the process -->
```python
raise SystemExit(3)
```

```python
import json
import numbers_of_mine
print(number + len(Path("file").read_text()), __name__)
```

```text
training 4 gives 0.97 1
5 page
```
"""


def written(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


def test_a_page_runs_block_after_block_in_its_folder(tmp_path):
    page = written(tmp_path, PAGE)
    first, text, command, left, last, _ = pages.blocks_of(page)
    assert (first.language, first.line, first.prints) == ("python", 3, text.text)
    assert [shlex.join(words) for words in command.commands] == ["python -m calendar 2024 1"]
    assert (left.not_run, left.text, command.prints) == ("it would end the process", "raise SystemExit(3)\n", None)
    assert pages.imports_of(last) == {"json", "numbers_of_mine"}
    printed = pages.run_page(page, tmp_path)
    assert printed.startswith("training 4 gives  0.981 1\n")
    assert "January 2024" in printed
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("number = 4", "number = 5", "line 3: the page says"),
        ("0.981", "1.981", "line 3: the page says"),
        ("calendar 2024", "calendar x", "calendar x 1 fails"),
        ("import json", "import json\nvalue = 1 / 0", r"(?s)page.md., line 26.*ZeroDivisionError"),
        ("import json", "import warnings\nwarnings.warn('old')", "UserWarning: old"),
    ],
)
def test_a_page_that_is_wrong_fails(tmp_path, old, new, message):
    with pytest.raises(AssertionError, match=message):
        pages.run_page(written(tmp_path, PAGE.replace(old, new)), tmp_path)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        ("a  0.95\n", "a 0.97"),
        ("-0.010101003 (512, 100)", "-0.0101 (512, 100)"),
        ("0.02", "0.00"),
        ("1.0e-07", "1.0e-07"),
        ("2.1e-7", "2e-7"),
    ],
)
def test_what_is_the_same(got, wanted):
    pages.compare(got, wanted)


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        ("0.90", "0.97"),
        ("33", "32"),
        ("0.03", "0.00"),
        ("nan", "0.97"),
        ("one", "two"),
        ("1 2", "1"),
        ("1\n2", "1"),
        ("4.1e-7", "1e-7"),
        ("-0.5", "0.5"),
    ],
)
def test_what_is_not_the_same(got, wanted):
    with pytest.raises(AssertionError, match="the page says"):
        pages.compare(got, wanted)
