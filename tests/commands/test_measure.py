"""`nc-jax measure`: files in, the numbers of `nc_jax.metrics.report` out, on the terminal, as JSON and as a page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.commands import main
from nc_jax.extras import MissingExtraError
from nc_jax.frames import simplex_etf
from nc_jax.metrics import report

K, DIM, N = 5, 6, 24
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % K
MEANS = 3 * RNG.normal(size=(K, DIM))
FEATURES = (MEANS[LABELS] + RNG.normal(size=(N, DIM))).astype(np.float32)
WEIGHT, BIAS = (MEANS + 0.5 * RNG.normal(size=(K, DIM))).astype(np.float32), RNG.normal(size=K).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with features, labels and a classifier."""
    monkeypatch.chdir(tmp_path)
    np.save("features.npy", FEATURES)
    np.save("labels.npy", LABELS)
    np.savez("head.npz", weight=WEIGHT, bias=BIAS)
    return tmp_path


def measure(*words):
    main(["measure", *words])


def written(folder="out"):
    with open(f"{folder}/report.json") as file:
        return json.load(file)


def assert_same(metrics, expected):
    """Batches are cut differently, so sums differ in rounding."""
    assert set(metrics) == set(expected)
    for name, entry in expected.items():
        np.testing.assert_allclose(metrics[name]["value"], entry.value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_the_numbers_are_those_of_a_report(capsys):
    measure("features.npy", "labels.npy", "--weight", "head.npz", "--out", "out")
    found = written()
    assert_same(found["metrics"], report(FEATURES, LABELS, WEIGHT, BIAS, rows=True))
    assert found["notes"] == ["The classifier is head.npz:weight (5, 6), with the bias head.npz:bias (5,)."]
    assert found["environment"]["versions"]["jax"]
    out, err = capsys.readouterr()
    first = re.findall(r"^│ (\w+) +│ +([\d.e-]+) │ +([\d.e-]*)", out, re.M)
    assert first[0] == ("nc1_pinv", f"{found['metrics']['nc1_pinv']['value']:.4g}", "0")
    assert [name for name, _, best in first if best == "1"] == ["nearest_centre_accuracy", "nc4", "accuracy"]
    assert out.startswith(f"{N} examples of {K} classes, 4 to 5 of each that is there, in {DIM} dimensions.")
    assert f"0 of {2 * N} rows" in err


@pytest.mark.slow
def test_the_page_holds_everything_by_itself():
    measure("features.npy", "labels.npy", "--weight", "head.npz", "--out", "out")
    with open("out/report.html") as file:
        page = file.read()
    found = written()
    for name, entry in found["metrics"].items():
        assert f"<td>{name}</td><td>" in page
        assert entry["source"].split(";")[0].replace("&", "&amp;") in page
    assert page.count("<figure>") == 4
    assert not re.search(r'(src|href)="(?!data:image/|#)', page)


@pytest.mark.slow
def test_features_alone_are_printed_and_nothing_is_written(folder, capsys):
    before = sorted(folder.iterdir())
    measure("features.npy", "labels.npy")
    said = capsys.readouterr().out
    assert "The number of classes is taken to be 5, the largest label plus one." in said
    assert "nc4" not in said
    assert "--out FOLDER writes all numbers" in said
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_layers_are_measured_in_their_order(capsys):
    np.savez("layers.npz", conv2=FEATURES[:, :4], conv1=FEATURES[:, :4] + 9 * RNG.normal(size=(N, 4)), labels=LABELS)
    measure("features.npy", "labels.npy", "--layers", "input=layers.npz:conv1", "layers.npz", "--out", "out")
    found = written()["layers"]
    assert list(found) == ["input", "conv2", "conv1"]
    alone = report(FEATURES[:, :4], LABELS)
    assert_same(
        {name: entry for name, entry in found["conv2"]["metrics"].items()},
        {name: alone[name] for name in found["conv2"]["metrics"]},
    )
    assert {"nc1_pinv", "nc1_cdnv", "nearest_centre_accuracy"} < set(found["conv1"]["metrics"])
    assert found["input"] == found["conv1"]
    assert found["conv1"]["metrics"]["nc1_cdnv"]["value"] > found["conv2"]["metrics"]["nc1_cdnv"]["value"]
    said = capsys.readouterr().out
    assert "│ conv2    │ " in said
    errors = [1 - found[name]["metrics"]["nearest_centre_accuracy"]["value"] for name in found]
    errors.append(1 - report(FEATURES, LABELS)["nearest_centre_accuracy"].value)
    right = [number for number, error in enumerate(errors, start=1) if error == 0]
    assert f"for every example): {f'{right[0]} of 4' if right else 'none'}" in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize("features", ["collapsed", "dead"])
def test_features_without_any_spread_have_a_page(features):
    """Collapsed and dead networks: variances are zero, cosines equal or not defined, and pictures have no range."""
    vectors = np.asarray(simplex_etf(K, DIM)).T * (features == "collapsed")
    Path("out").mkdir()  # as a command leaves it that was killed
    measure(save("x.npy", vectors[LABELS]), "labels.npy", "--layers", "before=x.npy", "--out", "out")
    assert (written()["metrics"]["nc1_cdnv"]["value"] == 0) == (features == "collapsed")
    assert Path("out/report.html").read_text().count("<img") >= 4


@pytest.mark.slow
def test_a_class_without_examples_has_no_numbers_and_squares_do_not_overflow(capsys):
    measure(save("x.npy", FEATURES * 1e20), save("gap.npy", np.where(LABELS == 2, 1, LABELS)), "--weight", "head.npz")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 8}
    assert table["2"] == ["0", *["-"] * 6]
    variance = FEATURES[LABELS == 0].astype(float).var(axis=0).sum() * 1e40
    assert float(table["0"][2]) == pytest.approx(variance, rel=1e-3)


@pytest.mark.slow
def test_rows_that_do_not_count_are_said(capsys):
    broken, labels = FEATURES.astype(jnp.bfloat16), LABELS.astype(np.int16)
    broken[3, 2] = np.nan
    labels[5] = -1
    np.save("features.npy", broken)
    np.save("labels.npy", labels)
    measure("features.npy", "labels.npy", "--weight", "head.npz", "--out", "out")
    found = written()
    kept = np.delete(np.arange(N), [3, 5])
    assert_same(found["metrics"], report(broken[kept].astype(np.float32), LABELS[kept], WEIGHT, BIAS, rows=True))
    assert found["notes"][1:] == [
        "Rows that are left out because a feature is not finite: 1.",
        "Rows that are left out because their label is -1: 1.",
    ]
    assert "- Rows that are left out because a feature is not finite: 1." in capsys.readouterr().out


@pytest.mark.slow
def test_without_matplotlib_the_page_has_the_numbers(monkeypatch):
    def missing(*words):
        raise MissingExtraError("a picture needs matplotlib; install it by: pip install 'nc_jax[plots]'")

    monkeypatch.setattr("nc_jax.commands.measure_page.require", missing)
    measure("features.npy", "labels.npy", "--out", "out")
    with open("out/report.html") as file:
        page = file.read()
    assert "There are no pictures: a picture needs matplotlib; install it by" in page
    assert "<figure>" not in page
    assert "<td>nc1_pinv</td>" in page


def save(name, *arrays, **named):
    np.savez(name, *arrays, **named) if name.endswith(".npz") else np.save(name, *arrays)
    return name


CLASSIFIERS = {
    "rows and a bias beside it": lambda: ["--weight", "head.npz"],
    "rows in a file of its own": lambda: ["--weight", save("w.npy", WEIGHT), "--bias", save("b.npy", BIAS)],
    "columns": lambda: ["--weight", save("w.npy", WEIGHT.T), "--bias", "head.npz:bias"],
    "a name, and the bias of that name": lambda: [
        "--weight",
        save("model.npz", **{"fc.bias": BIAS, "conv.bias": BIAS[:3], "fc.weight": WEIGHT, "a": WEIGHT}) + ":fc.weight",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_is_found(kind):
    measure("features.npy", "labels.npy", *CLASSIFIERS[kind](), "--out", "out")
    assert_same(written()["metrics"], report(FEATURES, LABELS, WEIGHT.T, BIAS))


def test_a_state_dictionary_of_a_linear_layer_is_found():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(DIM, K)
    torch.save(layer.state_dict(), "head.pt")
    torch.save({"features": torch.tensor(FEATURES).half(), "labels": torch.tensor(LABELS)}, "dump.pt")
    measure("dump.pt:features", "dump.pt:labels", "--weight", "head.pt", "--out", "out")
    assert_same(
        written()["metrics"], report(torch.tensor(FEATURES).half(), LABELS, layer.weight, layer.bias, rows=True)
    )


def square(*words):
    """A square weight, whose orientation its shape does not tell."""
    return [save("square.npy", FEATURES[:, :K]), "labels.npy", "--weight", save("w.npy", WEIGHT[:, :K]), *words]


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--rows", "--columns"])
def test_a_square_weight_is_what_the_flag_says(flag):
    measure(*square(flag, "--out", "out"))
    weight = WEIGHT[:, :K]
    expected = report(FEATURES[:, :K], LABELS, weight, rows=flag == "--rows")
    assert_same(written()["metrics"], expected)


REFUSED = {
    "--out must name a folder that does not exist yet; got here": lambda: (
        __import__("os").makedirs("here/report.json") or ["features.npy", "labels.npy", "--out", "here"]
    ),
    "a square weight must come with --rows (each row is a class, as in PyTorch) or --columns (as in Flax)": square,
    "the weight must have class vectors as rows or as columns; got --rows and --columns": lambda: square(
        "--rows", "--columns"
    ),
    "the weight must have shape (classes, 6) or (6, classes) for features of 6 dimensions; got w.npy (5, 7)": lambda: [
        "features.npy", "labels.npy", "--weight", save("w.npy", np.zeros((5, 7)))
    ],
    "the weight must have shape (6, classes) for features of 6 dimensions; got head.npz:weight (5, 6)": lambda: [
        "features.npy", "labels.npy", "--weight", "head.npz", "--columns"
    ],
    "--weight must name one matrix of m.npz as m.npz:NAME; got m.npz:a (6, 6), m.npz:b (3, 6)": lambda: [
        "features.npy", "labels.npy", "--weight", save("m.npz", a=np.eye(6), b=np.eye(3, 6), c=np.eye(9))
    ],
    "head.npz must hold a matrix 'bias'; got head.npz:weight (5, 6)": lambda: [
        "features.npy", "labels.npy", "--weight", "head.npz:bias"
    ],
    "the bias must have shape (5,), one entry per class; got b.npy (6,)": lambda: [
        "features.npy", "labels.npy", "--weight", "head.npz", "--bias", save("b.npy", np.zeros(6))
    ],
    "--bias goes with --weight, which names the class vectors; got --bias head.npz:bias alone": lambda: [
        "features.npy", "labels.npy", "--bias", "head.npz:bias"
    ],
    "features must have shape (24, d), one row for each label; got short.npy (23, 6)": lambda: [
        save("short.npy", FEATURES[1:]), "labels.npy"
    ],
    "features must have shape (N, d); got maps.npy (24, 6, 2, 2): make one row of each example": lambda: [
        save("maps.npy", np.zeros((N, DIM, 2, 2))), "labels.npy"
    ],
    "labels must lie in 0..4 for num_classes=5, or be -1 for padding; got 5 at index 4 (4 such labels); subtract 1": (
        lambda: ["features.npy", save("one.npy", LABELS + 1), "--weight", "head.npz"]
    ),
    "labels must be integers of shape (batch,); got dtype float32": lambda: [
        "features.npy", save("float.npy", LABELS.astype(np.float32))
    ],
    "layers must have shape (24, dim), one row for each label; got head.npz:weight (5, 6)": lambda: [
        "features.npy", "labels.npy", "--layers", "head.npz"
    ],
    "layers must have names of their own; got 'features' for features.npy (24, 6), which is the name of": lambda: [
        "features.npy", "labels.npy", "--layers", "features.npy"
    ],
    "layers must have names of their own; got 'x' for copy.npy (24, 6), which is features.npy (24, 6), too": lambda: [
        "features.npy", "labels.npy", "--layers", "x=features.npy", f"x={save('copy.npy', FEATURES)}"
    ],
    "features of shape (N, d) come first and labels second; got labels.npy (24,) and features.npy (24, 6)": lambda: [
        "labels.npy", "features.npy"
    ],
    "--rows and --columns say what --weight holds; got no --weight": lambda: ["features.npy", "labels.npy", "--rows"],
    "the frame of a classifier must be finite; got a NaN or an infinity for class 3": lambda: [
        "features.npy", "labels.npy", "--weight", save("w.npy", np.where(np.arange(5)[:, None] == 3, np.nan, WEIGHT))
    ],
    "labels must name at most 100,000,000 classes; got a largest label of 4,000,000,000": lambda: [
        "features.npy", save("large.npy", LABELS.astype(np.int64) * 10**9)
    ],
    "arrays must be in a file or a folder that exists; got none.npy": lambda: ["none.npy", "labels.npy"],
    "the command line must name settings that exist and values that fit;": lambda: ["features.npy"],
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_measured_is_refused_in_a_sentence(sentence, folder, capsys):
    words = REFUSED[sentence]()
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        measure(*words, *([] if "--out" in words else ["--out", "out"]))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert sorted(folder.iterdir()) == before


def test_a_file_that_ends_early_leaves_no_folder(folder, capsys):
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:-4])
    with pytest.raises(SystemExit):
        measure("features.npy", "labels.npy", "--out", "out")
    assert "features.npy must have 24 rows; got a file that ends before row 24" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_help_says_what_a_command_takes(capsys):
    with pytest.raises(SystemExit) as stop:
        measure("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("Measure neural collapse of features that are stored in files")
    assert all(word in said for word in ("FEATURES", "LABELS", "--weight", "--rows", "--columns", "--layers", "--out"))


PEAK = """
import re, sys
from nc_jax.commands import main
from nc_jax.frames import simplex_etf
main(["measure", sys.argv[1], sys.argv[2]])
print("peak", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_examples(folder):
    """480 MB of features need no more memory than 60 MB, up to what two pieces take: the allocator keeps some."""
    peaks = []
    for number in (30_000, 240_000):
        with open("large.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (number, 512)})
            for _ in range(0, number, 10_000):
                file.write(RNG.random((10_000, 512), np.float32).tobytes())
        np.save("many.npy", np.arange(number) % 10)
        run = [sys.executable, "-c", PEAK, "large.npy", "many.npy"]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        peaks.append(int(re.search(r"peak (\d+)", done.stdout)[1]) / 1024)
    assert peaks[1] < peaks[0] + 128
    assert peaks[1] < 1024
