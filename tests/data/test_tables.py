"""Tables of numbers: what becomes of each kind of column, the parts, and the door of all data sets."""

import re
import sys

import numpy as np
import pandas as pd
import pytest
import rdata

from experiments import nearest_etf
from nc_jax.data import sources, tables
from nc_jax.extras import MissingExtraError
from nc_jax.study import main
from nc_jax.study.data import DataOptions, load
from nc_jax.training import read_metrics

SPLITS = ("train", "test")
SIZES = {"rare": 1, "often": 40, "pair": 2, "some": 9}


def written(path, **columns):
    """Write a file of R with one data frame."""
    rdata.write_rda(path, {path.stem: pd.DataFrame(columns)})
    return f"rda:{path}"


def levels(names, order):
    return pd.Categorical(names, categories=order)


@pytest.fixture
def frame(tmp_path):
    """52 rows of four classes, with columns of every kind."""
    names = np.repeat(list(SIZES), list(SIZES.values()))
    rng = np.random.default_rng(0)
    return {
        "path": tmp_path / "frame.rda",
        "x": rng.normal(5, 3, 52),
        "count": rng.integers(0, 9, 52).astype(np.int32),
        "Class": levels(names, ["often", "pair", "never", "some", "rare"]),
        "constant": np.full(52, 0.1),
        "speaker": levels(np.array(list("abd"))[np.arange(52) % 3], list("abcd")),
    }


def parts(name, root=None, **options):
    return [sources.load(name, split, root, **options) for split in ("train", "test")]


def test_every_class_is_shared_and_the_training_part_is_standardised(frame):
    train, test = parts(written(**frame))
    assert train.class_names == test.class_names == ("often", "pair", "some", "rare")  # a level without rows is none
    assert (train.class_counts().tolist(), test.class_counts().tolist()) == ([30, 1, 7, 1], [10, 1, 2, 0])
    assert (train.inputs.shape, train.inputs.dtype) == ((39, 6), np.float32)  # x, count, constant, three speakers
    np.testing.assert_allclose(train.inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.inputs.std(axis=0), [1, 1, 0, 1, 1, 1], atol=1e-6)
    assert not test.inputs[:, 2].any()
    # The rows keep their order by x, which tells which of the raw numbers are the training part's.
    both = np.concatenate([train.inputs[:, 0], test.inputs[:, 0]])
    raw = np.sort(frame["x"])[np.argsort(np.argsort(both))]
    np.testing.assert_allclose(both, (raw - raw[:39].mean()) / raw[:39].std(), atol=1e-6)


def test_the_parts_depend_on_the_file_and_the_share_alone(frame):
    name = written(**frame)
    for one, again in zip(parts(name), parts(name), strict=True):
        np.testing.assert_array_equal(one.inputs, again.inputs)
    assert [len(part) for part in parts(name, test_share=0.5)] == [52 - 25, 25]  # 20 + 1 + 4
    assert sources.splits(name) == ("train", "test")


def test_factors_become_numbers_or_indicators():
    ordered = pd.Series(pd.Categorical(["low", "high", None], categories=["low", "mid", "high"], ordered=True))
    numbered = pd.Series(pd.Categorical(["3", "10"], categories=["1", "3", "10"], ordered=True))
    plain = pd.Series(pd.Categorical(["b", "a", None], categories=["a", "b", "c"]))
    np.testing.assert_array_equal(tables._features(ordered), [[0], [2], [np.nan]])
    np.testing.assert_array_equal(tables._features(numbered), [[3], [10]])
    np.testing.assert_array_equal(tables._features(plain), [[0, 1], [1, 0], [np.nan] * 2])
    np.testing.assert_array_equal(tables._features(pd.Series([True, None], dtype="boolean")), [[1], [np.nan]])
    assert tables._features(pd.Series(["a", "b"])) is None


def test_the_classes_are_the_last_factor_where_none_is_called_class(frame):
    frame["kind"] = frame.pop("Class")
    assert parts(written(**frame))[0].class_names == ("often", "pair", "some", "rare")


def test_what_is_left_out_is_said_once(frame, caplog):
    frame["x"][:3] = np.nan  # the row of "rare" and two of "often"
    train, test = parts(written(**frame, note=pd.Series(["text"] * 52, dtype=object)))
    assert (train.num_classes, len(train) + len(test)) == (3, 49)
    path = frame["path"]
    assert caplog.messages == [f"49 examples of {path}: left out: 1 columns of text, 3 rows with a missing value"]


def test_names_of_mlbench_are_found_below_the_data(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MLBENCH", tmp_path / "nowhere")
    sentence = re.escape(f"shuttle must lie in {tmp_path}/Shuttle.rda or in {tmp_path}/nowhere/Shuttle.rda (apt-get ")
    with pytest.raises(FileNotFoundError, match=f"^{sentence}install r-cran-mlbench puts it into the latter"):
        sources.load("shuttle", "train", tmp_path)
    written(**(frame | {"path": tmp_path / "Shuttle.rda"}))
    assert len(sources.load("shuttle", "train", tmp_path)) == 39


def test_a_table_comes_ready_for_the_mlp(frame):
    data = load(DataOptions(written(**frame), per_class=1, test_share=0.5), flat=True)
    assert (data.size, data.preprocess, data.augment) == (6, None, None)
    assert (len(data.train), len(data.test)) == (4, 25)


@pytest.mark.slow
def test_an_experiment_trains_on_a_table(tmp_path):
    labels = np.arange(96) % 4
    numbers = {f"x{column}": np.random.default_rng(column).normal(3.0 * (labels == column)) for column in range(4)}
    name = written(tmp_path / "rows.rda", **numbers, Class=levels([f"kind {label}" for label in labels], None))
    flags = ["smoke", "--data.name", name, "--methods", "nearest", "--seeds", "1", "--loop.epochs", "8"]
    flags += ["--loop.devices", "1", "--loop.batch-size", "32", "--workdir", str(tmp_path / "run")]
    main(nearest_etf.run_comparison, nearest_etf.PRESETS, flags)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["test/accuracy"] > 0.8


@pytest.mark.parametrize("kind", ["factor", "numbers", "text"])
def test_groups_are_clients_and_no_feature(frame, kind):
    numbers = np.arange(52) % 3
    groups = {
        "factor": frame.pop("speaker"),
        "numbers": numbers * 2.5,
        "text": pd.Series([f"s{n}" for n in numbers], dtype=object),
    }
    name = written(**frame, speaker=groups[kind])
    train, test = (tables.load_clients(name, split, frame["path"].parent, groups="speaker") for split in SPLITS)
    plain = [tables.load(written(**frame), split, frame["path"].parent) for split in SPLITS]
    assert train.inputs.shape[1] == test.inputs.shape[1] == 3  # x, count, constant
    assert (train.num_clients, len(train) + len(test)) == (3, sum(map(len, plain)))
    # The groups have 13, 14 and 13 rows of "often", 1, 0 and 1 of "pair", three each of "some", and one of "rare".
    assert train.client_counts().tolist() == [[10, 1, 2, 1], [10, 0, 2, 0], [10, 1, 2, 0]]
    assert test.client_counts().tolist() == [[3, 0, 1, 0], [4, 0, 1, 0], [3, 0, 1, 0]]
    # Standard deviation and mean put x in order, so its rank tells the row, and with it the group.
    x = np.concatenate([train.inputs[:, 0], test.inputs[:, 0]])
    rows = np.argsort(frame["x"])[np.argsort(np.argsort(x))]
    np.testing.assert_array_equal(np.concatenate([train.clients, test.clients]), numbers[rows])


def test_a_row_without_a_group_is_left_out(frame, caplog):
    frame["speaker"] = np.array([np.nan, np.nan, *np.arange(50) % 3])
    train = tables.load_clients(written(**frame), "train", frame["path"].parent, groups="speaker")
    assert "2 rows with a missing value" in caplog.text
    assert train.num_clients == 3


def test_groups_are_a_column_besides_the_classes(frame):
    for column in ("writer", "Class"):
        sentence = f"groups must be a column of {frame['path']}, one of x, count, constant, speaker; got {column!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            tables.load_clients(written(**frame), "train", frame["path"].parent, groups=column)
    sentence = f"{frame['path']} must have columns of numbers or factors besides 'Class' and 'x'; got none"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        tables.load_clients(
            written(frame["path"], Class=frame["Class"], x=frame["x"]), "train", frame["path"].parent, groups="x"
        )


@pytest.mark.skipif(not (tables.MLBENCH / "Vowel.rda").exists(), reason="r-cran-mlbench is not installed")
def test_the_speakers_of_vowel_are_clients(tmp_path):
    train, test = (tables.load_clients("vowel", split, tmp_path, groups="V1") for split in SPLITS)
    assert repr(train) == "ClientArrays(660 examples of shape (9,) float32, 11 classes, 15 clients)"
    assert (train.client_counts() == 4).all()  # of six recordings of each vowel by each speaker
    assert (test.client_counts() == 2).all()


def no_factor(frame):
    return written(frame["path"], x=frame["x"])


def no_feature(frame):
    return written(frame["path"], Class=frame["Class"])


def one_class(frame):
    return written(frame["path"], Class=levels(["a"] * 52, ["a"]), x=frame["x"])


def infinite(frame):
    frame["x"][7] = np.inf
    return written(**frame)


def damaged(frame):
    written(**frame)
    frame["path"].write_bytes(frame["path"].read_bytes()[:60])
    return f"rda:{frame['path']}"


def no_frame(frame):
    rdata.write_rda(frame["path"], {"numbers": np.zeros(3)})
    return f"rda:{frame['path']}"


def missing(frame):
    return written(**(frame | {"x": np.full(52, np.nan)}))


REFUSED = [
    (no_factor, {}, "{path} must have a factor, whose levels are the classes; got x"),
    (no_feature, {}, "{path} must have columns of numbers or factors besides 'Class'; got none"),
    (one_class, {}, "{path} must have examples of two classes at least in 'Class'; got 1"),
    (missing, {}, "{path} must have examples of two classes at least in 'Class'; got 0"),
    (infinite, {}, "numbers of {path} must be finite; got an infinity in row 8"),
    (damaged, {}, "file of R {path} must be readable; got "),
    (no_frame, {}, "{path} must hold one data frame; got none"),
    (lambda frame: written(**frame), {"test_share": 1.0}, "test_share must lie between 0 and 1; got 1.0"),
    (lambda frame: written(**frame), {"image_size": 8}, "image_size is for folders of images and for"),
    (lambda frame: written(**frame), {"in_memory": False}, "a table is read into memory; got in_memory=False for rda:"),
]


@pytest.mark.parametrize(("make", "options", "sentence"), REFUSED, ids=[sentence for _, _, sentence in REFUSED])
def test_refuses_with_one_sentence(frame, make, options, sentence):
    name = make(frame)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence.format(path=frame['path']))}"):
        sources.load(name, "train", **options)


def test_other_mistakes_are_sentences_too(frame, tmp_path, monkeypatch):
    name = written(**frame)
    with pytest.raises(ValueError, match=r"must be one of 'train', 'test'; got 'val'$"):
        sources.load(name, "val")
    with pytest.raises(FileNotFoundError, match=r"^a file of R must exist here or in .*; got 'none\.rda'$"):
        sources.load("rda:none.rda", "train", tmp_path)
    with pytest.raises(ValueError, match=r"^a table has vectors for the MLP \(--backbone.name mlp, flat=True\)"):
        load(DataOptions(name))
    with pytest.raises(ValueError, match=r"^tables have no augmentation: they are vectors; got 'shift' for rda:"):
        load(DataOptions(name, augmentation="shift"), flat=True)
    monkeypatch.setitem(sys.modules, "rdata", None)
    tables._numbers.cache_clear()
    with pytest.raises(MissingExtraError, match=r"^a table of R needs rdata; .* 'nc_jax\[tables\]'$"):
        sources.load(name, "train")
