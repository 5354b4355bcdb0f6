"""`nc-jax report`: one page that holds all it shows, with the numbers of NumPy and SciPy; what is missing is said."""

import base64
import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from scipy import stats

from nc_jax.commands import main
from nc_jax.study import Ledger, Table
from nc_jax.study.report import Report, read_summary
from nc_jax.study.tables import fitted
from nc_jax.training import MetricsLog

SEEDS, EPOCHS, METHODS = 4, 3, ("fixed", "nearest")
CONFUSION = np.array([[3, 1], [0, 4]])


def accuracy(method: str, seed: int, gain: float) -> float:
    return float(np.random.default_rng([len(method), seed]).uniform(0.6, 0.7)) + gain


def recall(method: str, seed: int) -> list[float]:
    return np.random.default_rng([len(method), seed, 9]).uniform(0.5, 1, 2).tolist()


def make_run(directory: Path, gain: float, *, finished: bool = True, seeds: int = SEEDS) -> Path:
    """A run of nearest_etf with two methods, whose learning rate is the gain in accuracy."""
    with MetricsLog(directory) as log:
        for method in METHODS:
            for seed in range(seeds):
                for epoch in range(EPOCHS + 1):
                    found = {"train/loss": 1 / (epoch + 1), "test/accuracy": accuracy(method, seed, gain)}
                    log.write(
                        f"{method}-seed{seed}", 5 * epoch, epoch, found | {"test/nc4": 0.9, "test/rank_means": 1.0}
                    )
    document = {
        "experiment": "nearest_etf",
        "config": {"workdir": "x", "preset": "smoke", "optimizer": {"name": "sgd", "learning_rate": gain}},
        "environment": {
            "time": "2026-11-26T13:00:00+0000",
            "command": "/usr/bin/nc-jax run nearest_etf smoke",
            "commit": "abc123",
            "versions": {"nc_jax": "0.1.0", "jax": "0.10.2"},
            "device": {"platform": "cpu", "kind": "cpu", "count": 8},
            "cpu": {"model": "a <processor>", "cores": 2},
            "python": "3.11.7",
        },
    }
    document["config"] |= {"methods": list(METHODS), "seeds": SEEDS, "target_accuracy": 0.95}
    (directory / "config.json").write_text(json.dumps(document))
    ledger = Ledger(directory / "results.jsonl")
    for method in METHODS:
        for seed in range(seeds):
            key = {"case": "", "variant": "", "method": method, "seed": seed, "run": f"{method}-seed{seed}"}
            found = {"test/accuracy": accuracy(method, seed, gain), "confusion": CONFUSION.tolist(), "diverged": ""}
            found |= {"class_names": ["cat", "dog"]} if seed else {}  # as of a run that an older version began
            ledger.once(key, lambda f=found | {"class_accuracy": recall(method, seed)}: f)
    if finished:
        report = Report(directory, "nearest_etf, preset smoke")
        report.say(["nearest is <better>."])
        report.tables(
            [
                Table("Shares", ["", "fixed"], [["a|b", "0.1"]]),
                Table("Shares (continued)", ["", "nearest"], [["a|b", "0.2"]]),
            ]
        )
        PIL.Image.new("RGB", (1500, 300), "red").save(directory / "cosines.png")
        report.picture(directory / "cosines.png")
        report.write({})
    return directory


class Checked(html.parser.HTMLParser):
    """Reads a page: its tables, texts and pictures; tags must be closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.pictures: dict[str, str] = {}
        self.links: list[str] = []
        self.names: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names += [given["id"]] if "id" in given else []
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.pictures[given["alt"]] = given["src"]
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass  # a line of the legend, which closes itself

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif data.strip():
            self.texts.append(data.strip())

    def rows(self, *first: str) -> list[list[str]]:
        """The table whose head is this."""
        return next(table[1:] for table in self.tables if table[0] == list(first))


def page_about(*runs: Path, out: Path) -> Checked:
    main(["report", *map(str, runs), "--out", str(out)])
    return Checked(out.read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path):
    return make_run(tmp_path / "slow", 0.0), make_run(tmp_path / "quick", 0.2)


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_page_about_one_run(runs, tmp_path):
    before = files_of(runs[0])
    page = page_about(runs[0], out=tmp_path / "page.html")
    assert files_of(runs[0]) == before
    facts = dict(page.rows("", "slow"))
    assert facts["experiment"] == "nearest_etf"
    assert facts["state"] == "finished"
    assert facts["command"] == "nc-jax run nearest_etf smoke"
    assert facts["started"] == "2026-11-26 13:00:00+0000"
    assert facts["nc_jax"] == "0.1.0, commit abc123"
    assert facts["device"] == "8 x cpu"
    assert facts["processor"] == "2 cores, a <processor>"
    assert (
        "nearest_etf: Does the nearest simplex ETF train faster than a fixed one and a learned classifier?"
        in page.texts
    )
    assert any(text.startswith("Claim: Markou et al. (2024)") for text in page.texts)
    assert dict(page.rows("", "value"))["optimizer.learning_rate"] == "0.0"
    # What the run said itself, its table whole again.
    assert "nearest is <better>." in page.texts
    assert page.rows("", "fixed", "nearest") == [["a|b", "0.1", "0.2"]]
    # Curves, each in a picture of its own.
    assert {"loss (train)", "accuracy (test)", "1 - NC4: not the nearest centre (test)"} <= page.pictures.keys()
    assert {"fixed", "nearest"} <= set(page.texts), "the legend names every curve"
    assert "1 more curve" in page.texts


@pytest.mark.slow
def test_the_page_needs_nothing_beside_it(runs, tmp_path):
    page = page_about(*runs, out=tmp_path / "page.html")
    assert page.pictures
    for source in page.pictures.values():
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True).startswith(b"\x89PNG")
    assert {link.removeprefix("#") for link in page.links} <= set(page.names)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|@import|<script|<link", (tmp_path / "page.html").read_text())
    # The run's own picture is the one in its directory.
    _, _, content = page.pictures["slow: cosines"].partition(",")
    assert base64.b64decode(content) == (runs[0] / "cosines.png").read_bytes()


@pytest.mark.slow
def test_two_runs_are_compared_by_a_paired_test_of_scipy(runs, tmp_path):
    page = page_about(*runs, out=tmp_path / "page.html")
    settings = page.rows("", "slow", "quick")
    differ = next(table[1:] for table in page.tables if ["optimizer.learning_rate", "0.0", "0.2"] in table)
    assert differ == [["optimizer.learning_rate", "0.0", "0.2"]]
    assert settings[0][0] == "experiment"
    slow, quick = ([accuracy("nearest", seed, gain) for seed in range(SEEDS)] for gain in (0.0, 0.2))
    values = [row for table in page.tables for row in table if row[0] == "final test accuracy"]
    expected = [f"{np.mean(run):.4f} ± {np.std(run, ddof=1):.4f}" for run in (slow, quick)]
    assert ["final test accuracy", *expected] in values
    # A gain that is the same for every seed has no spread to test against; another draw has.
    assert any(row[1].startswith("-0.2000") for row in values)


@pytest.mark.slow
def test_differences_between_runs_have_the_p_value_of_scipy(tmp_path):
    make_run(tmp_path / "one", 0.0)
    make_run(tmp_path / "other", 0.0)
    lines = [json.loads(line) for line in (tmp_path / "other" / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["found"]["test/accuracy"] += 0.01 * (1 + line["key"]["seed"])
    (tmp_path / "other" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_about(tmp_path / "one", tmp_path / "other", out=tmp_path / "page.html")
    one = np.array([accuracy("nearest", seed, 0.0) for seed in range(SEEDS)])
    other = one + 0.01 * (1 + np.arange(SEEDS))
    wanted = f"{np.mean(one - other):+.4f} (p = {stats.ttest_rel(one, other).pvalue:.2g})"
    assert ["final test accuracy", wanted] in [row for table in page.tables for row in table]
    assert "No setting differs." in page.texts


@pytest.mark.slow
def test_recall_of_each_class_is_that_of_numpy(runs, tmp_path):
    page = page_about(runs[0], out=tmp_path / "page.html")
    found = {row[0]: row[1:] for row in page.rows("class", "fixed", "nearest")}
    for k, name in enumerate(("cat", "dog")):
        for place, method in enumerate(METHODS):
            values = [100 * recall(method, seed)[k] for seed in range(SEEDS)]
            assert found[name][place] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert "slow: which classes are taken for which on the test set, summed over seeds" in page.pictures


@pytest.mark.slow
def test_an_unfinished_run_says_what_it_lacks(runs, tmp_path):
    make_run(tmp_path / "half", 0.2, finished=False, seeds=3)
    page = page_about(tmp_path / "half", out=tmp_path / "page.html")
    assert dict(page.rows("", "half"))["state"] == "not finished: 6 of 8 trainings are done"
    assert f"to go on: nc-jax run nearest_etf --resume {tmp_path / 'half'}" in " ".join(page.texts)
    assert "Seeds that all rows have: 0, 1, 2." in page.texts
    fixed, nearest = (np.array([accuracy(method, seed, 0.2) for seed in range(3)]) for method in METHODS)
    cells = [cell for table in page.tables for row in table for cell in row]
    assert f"{fixed.mean():.4f} ± {fixed.std(ddof=1):.4f}" in cells
    p = stats.ttest_rel(fixed, nearest).pvalue
    assert f"{np.mean(fixed - nearest):+.4f} (p = {p:.2g})" in cells
    assert "accuracy (test)" in page.pictures


@pytest.mark.slow
def test_a_run_that_has_only_begun_has_a_page(runs, tmp_path):
    (tmp_path / "early").mkdir()
    shutil.copy(runs[0] / "config.json", tmp_path / "early")
    page = page_about(runs[0], tmp_path / "early", out=tmp_path / "page.html")
    assert "There are no results yet." in page.texts
    assert "Without results by method and seed, so not compared: early." in page.texts


def test_damaged_files_are_named_and_the_rest_is_shown(runs, tmp_path):
    run = runs[0]
    (run / "results.jsonl").write_text("no JSON\n{}\n")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "cosines.png").write_text("no picture")
    page = page_about(run, out=tmp_path / "page.html")
    said = " ".join(page.texts)
    assert (
        f"{run}/results.jsonl must hold one JSON object a line; line 1 is 'no JSON', so the page does without" in said
    )
    assert f'{run}/metrics.jsonl must hold lines with "run" and "step"; line 1 has step' in said
    assert f"{run}/cosines.png is no picture that a page can show (PNG or SVG)." in said
    assert "nearest is <better>." in page.texts
    assert not page.pictures
    (run / "cosines.png").unlink()
    (run / "summary.md").write_bytes(b"\xff| a |\n")
    page = page_about(run, out=tmp_path / "again.html")
    assert f"{run}/summary.md must hold the text and the tables of a run; got a damaged file" in " ".join(page.texts)


@pytest.mark.slow
def test_runs_of_other_experiments_stand_beside_each_other_uncompared(runs, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"experiment": "my_own", "config": {"rate": 3}}))
    report = Report(other, "my own")
    report.heading("a part")
    report.say(["It works."])
    report.write({})
    page = page_about(runs[0], other, out=tmp_path / "page.html")
    assert "Runs of different experiments are not compared with each other." in page.texts
    assert {"a part", "It works.", "Settings of my_own"} <= set(page.texts)
    assert ["rate", "3"] in page.rows("", "value") or any(["rate", "3"] in table for table in page.tables)


@pytest.mark.slow
def test_pictures_outside_a_run_are_not_shown(runs, tmp_path):
    PIL.Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    text = (runs[0] / "summary.md").read_text()
    (runs[0] / "summary.md").write_text(text.replace("cosines.png", "../secret.png"))
    page = page_about(runs[0], out=tmp_path / "page.html")
    assert not [title for title in page.pictures if "secret" in title]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "at least one run's directory is needed; got none"),
        (["nowhere"], "the directory of a run has a config.json; got nowhere, without"),
        (["."], "the directory of a run has a config.json; got ., below which are quick, slow"),
        (["slow", "slow/."], "the runs must be in different directories; got slow, slow"),
        (["slow", "damaged"], "damaged/config.json must hold the settings of a run in JSON; got a damaged file"),
        (["slow", "--out", "page.pdf"], "the name of the file must end in .html; got page.pdf"),
        (["slow", "--out", "there.html"], "a new file needs a name that does not exist yet; got there.html"),
        (["slow", "--width", "3"], "the command line must name settings that exist and values that fit"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(runs, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    if "damaged" in words:
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "config.json").write_text("{")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["report", *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert (tmp_path / "there.html").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_a_summary_is_read_back_as_it_was_written(tmp_path):
    wide = Table(
        "Wide", ["", *(f"column {place} of many" for place in range(9))], [["x", *"012345678"], ["y", *"abcdefghi"]]
    )
    report = Report(tmp_path, "a run")
    report.heading("digits")
    report.say(["First.", "Second."])
    report.tables([*fitted(wide), Table("", ["a"], [["1 | 2"]])])
    report.picture(tmp_path / "digits" / "a.png")
    report.write({})
    parts = read_summary((tmp_path / "summary.md").read_text())
    assert [tuple(part) for part in parts] == [
        ("heading", "digits"),
        ("sentence", "First."),
        ("sentence", "Second."),
        ("table", wide),
        ("table", Table("", ["a"], [["1 | 2"]])),
        ("picture", "digits/a.png"),
    ]
