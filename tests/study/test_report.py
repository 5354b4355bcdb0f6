"""What a run ends in: a text with sentences, tables and pictures, which is written whether or not anybody reads it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nc_jax.study import Table
from nc_jax.study.page import Page
from nc_jax.study.report import Report

ROOT = Path(__file__).resolve().parents[2]


def test_the_text_has_everything_in_the_order_in_which_it_was_said(tmp_path, capsys):
    report = Report(tmp_path, "an experiment")
    report.heading("digits")
    report.say(["nearest is sooner."])
    report.tables([Table("numbers", ["", "a"], [["x", "1"]])])
    report.picture(tmp_path / "a.png")
    report.picture(None)
    report.write({"a": 1})
    text = (tmp_path / "summary.md").read_text()
    parts = ["# an experiment", "## digits", "nearest is sooner.", "numbers", "| x | 1 |", "![a](a.png)"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    assert "nearest is sooner." in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_who_leaves_costs_no_results(tmp_path):
    program = (
        "import pathlib, sys\n"
        "from nc_jax.study.report import Report\n"
        "report = Report(pathlib.Path(sys.argv[1]), 'long')\n"
        "report.say(f'sentence {number}' for number in range(20_000))\n"
        "report.write({})\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, **pipes)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0, said
    assert "sentence 19999" in (tmp_path / "summary.md").read_text()


def test_parts_of_a_page_have_names_of_their_own():
    page = Page("A page")
    for title in ("x", "x 2", "x", "x-2"):
        page.heading(title)
    assert re.findall(r'<h2 id="(.*?)">', page.text()) == ["x", "x-2", "x-3", "x-2-2"]
