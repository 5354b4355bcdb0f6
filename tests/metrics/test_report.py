"""Reports: entries beside plain NumPy in float64, chunks and padding, notes, values at collapse, what is refused."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_oracle import oracle, unit

import nc_jax.energies
from nc_jax import metrics
from nc_jax.metrics import Measurement, measurement, report
from nc_jax.metrics.entries import KINDS, Entry

PAIRS = {"few": {"sizes": (7, 3, 0, 6, 5), "dim": 6}, "many": {"sizes": (4, 3, 5, 4, 2, 6), "dim": 3}}


def data(sizes, dim, seed=0):
    """Features of classes with different widths, shuffled, labels, a classifier (d, K) and its bias."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    means = 3 * rng.normal(size=(len(sizes), dim)) + 1
    features = means[labels] + (0.3 + 0.2 * labels[:, None]) * rng.normal(size=(len(labels), dim))
    frame = (means - means.mean(axis=0)).T + 0.7 * rng.normal(size=(dim, len(sizes)))
    return features, labels, frame, rng.normal(size=len(sizes))


@pytest.fixture(scope="module", params=PAIRS)
def case(request):
    """Data, and their report in float64, read in pieces of 8 rows, with rows in between that do not count."""
    features, labels, frame, bias = data(**PAIRS[request.param])
    broken = np.insert(features, [2, 9, 9], np.nan, axis=0)
    marked = np.insert(labels, [2, 9, 9], [1, -1, 0])
    broken[10] = 5.0  # the row with the label -1
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(measurement, "CHUNK_BYTES", 4 * 8 * features.shape[1])
        found = report(broken, marked, frame, bias)
    return found, (features, labels, frame, bias)


# --- The numbers. ---


@pytest.mark.slow
def test_every_entry_is_that_of_numpy(case):
    found, arrays = case
    expected = oracle(*arrays)
    assert set(found) == set(expected)
    for name, value in expected.items():
        # The distance from a hull comes from a penalty in the oracle, and its square root near 0 loses half the digits.
        tolerance = 1e-4 if name.startswith("one_vs_rest") else 1e-8
        np.testing.assert_allclose(found[name].value, value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_the_table_of_classes_is_that_of_loops(case):
    found, (features, labels, frame, bias) = case
    classes, number = found.classes, frame.shape[1]
    means = {k: features[labels == k].mean(axis=0) for k in np.unique(labels)}
    middle = np.mean(list(means.values()), axis=0)
    right = np.argmax(features @ frame + bias, axis=1) == labels
    nearest = [min(means, key=lambda k, h=h: np.sum((h - means[k]) ** 2)) for h in features]
    for k in range(number):
        assert classes.count[k] == np.sum(labels == k)
        if k not in means:
            assert classes.nearest[k] == -1
            assert np.isnan(
                [classes.mean_length[k], classes.variance[k], classes.distance[k], classes.accuracy[k]]
            ).all()
            continue
        others = {j: np.linalg.norm(means[k] - mean) for j, mean in means.items() if j != k}
        assert classes.nearest[k] == min(others, key=others.get)
        expected = [
            np.linalg.norm(means[k] - middle),
            np.mean(np.sum((features[labels == k] - means[k]) ** 2, axis=1)),
            min(others.values()),
            np.mean(right[labels == k]),
            np.mean(np.array(nearest)[labels == k] == k),
        ]
        columns = ("mean_length", "variance", "distance", "accuracy", "nearest_centre_accuracy")
        np.testing.assert_allclose([getattr(classes, name)[k] for name in columns], expected, rtol=1e-9)


@pytest.mark.slow
def test_what_does_not_count_is_said(case):
    found, (features, labels, _, _) = case
    assert found.notes[:2] == (
        "Rows that are left out because a feature is not finite: 2.",
        "Rows that are left out because their label is -1: 1.",
    )
    assert found.classes.count.sum() == found.margins.sum() == len(labels)
    said = " ".join(found.notes)
    assert ("Classes without examples, which have no mean: 1 of 5 (2)." in said) == (features.shape[1] == 6)
    assert ("No simplex of 6 classes fits into 3 dimensions" in said) == (features.shape[1] == 3)


@pytest.mark.slow
def test_json_holds_everything_and_text_names_everything(case):
    found, _ = case
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(content["metrics"]) == set(found)
    assert content["metrics"]["nc4"]["value"] == found["nc4"].value
    assert content["metrics"]["nc4"]["source"] == "Papyan, Han and Donoho (2020)"
    assert content["examples"] == sum(content["per_class"]["count"]) == sum(content["cosine_margins"]["counts"])
    assert all(f"{name} " in str(found) for name in found)
    assert all(note in str(found) for note in found.notes)


def test_values_that_json_lacks_become_null_or_a_word():
    kind = ("", "NC1", "", "", "", "")
    assert Entry(math.nan, None, *kind).to_json()["value"] is None
    assert Entry(math.inf, None, *kind).to_json()["value"] == "inf"


def test_every_entry_names_a_function():
    for name, kind in KINDS.items():
        module = nc_jax.energies if kind.function.startswith("nc_jax.energies.") else metrics
        assert hasattr(module, kind.function.rpartition(".")[2]), name


def test_the_page_lists_every_entry():
    page = (Path(__file__).parents[2] / "docs" / "measuring.md").read_text(encoding="utf-8")
    for name in KINDS:
        either = re.sub("_(means|classifier)$", "_*", name)
        assert f"`{name}`" in page or f"`{either}`" in page, name


def simplex(number, dim):
    return np.pad(np.linalg.svd(np.eye(number) - 1 / number)[0][:, : number - 1].T, ((0, dim - number + 1), (0, 0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "vectors"),
    [("few", simplex(5, 6)), ("many", np.hstack([np.eye(3), -np.eye(3)]))],
    ids=["simplex", "cross"],
)
def test_at_collapse_the_values_are_those_at_collapse(x64, name, vectors):
    """The octahedron is the configuration of least energy of 6 directions in 3 dimensions."""
    labels = np.arange(5 * vectors.shape[1]) % vectors.shape[1]
    found = report(5 * vectors.T[labels] + 7, labels, 2 * vectors, -2 * 7 * vectors.sum(axis=0))
    wanted = {key: entry for key, entry in found.items() if entry.group != "zero mean"}
    known = [key for key, entry in wanted.items() if entry.at_collapse is not None]
    assert len(known) > 30
    for key in known:
        value, best = wanted[key].value, wanted[key].at_collapse
        if wanted[key].bound == "":
            assert value == pytest.approx(best, abs=2e-6), key
        else:
            assert (value - best) * (1 if wanted[key].bound == "at least" else -1) > -1e-9, key
    if name == "many":  # the octahedron is tight and sums to zero, so it reaches these floors
        for key in ("nc2_etf_means", "nc2_etf_classifier", "nc3_product"):
            assert found[key].value == pytest.approx(found[key].at_collapse, abs=1e-9)


# --- Streams and doors. ---


def small():
    features, labels, frame, bias = data(**PAIRS["few"])
    return features.astype(np.float32), labels, frame.astype(np.float32), bias.astype(np.float32)


def numbers(found):
    return {name: entry.value for name, entry in found.items()}


def assert_same(found, expected, tolerance=2e-5):
    assert set(found) == set(expected)
    for name, value in numbers(expected).items():
        np.testing.assert_allclose(found[name].value, value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def whole():
    return report(*small())


@pytest.mark.slow
def test_batches_of_any_size_and_order_give_the_same(whole):
    features, labels, frame, bias = small()
    stream = Measurement(5, 6, frame.T, bias, rows=True)
    for start, stop in ((0, 9), (9, 18), (18, 18), (18, 21)):
        stream.first_pass(features[start:stop], labels[start:stop])
    for start, stop in ((12, 21), (0, 9), (9, 12)):
        stream.second_pass(features[start:stop], labels[start:stop])
    assert_same(stream.report(), whole)


@pytest.mark.slow
def test_other_dtypes_give_the_same(whole):
    features, labels, frame, bias = small()
    for dtype in (np.float16, jnp.bfloat16):
        narrow = features.astype(dtype)
        found = report(narrow, labels.astype(np.int8), frame, bias)
        assert_same(found, report(narrow.astype(np.float32), labels, frame, bias))
    assert_same(report(jnp.asarray(features), jnp.asarray(labels), jnp.asarray(frame), bias.tolist()), whole)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_unsigned_labels_are_counted(bits):
    assert measurement.number_of_classes(np.array([0, 2, 1], f"uint{bits}")) == 3


@pytest.mark.slow
def test_a_memory_map_is_read_in_pieces(whole, tmp_path, monkeypatch):
    features, labels, frame, bias = small()
    np.save(tmp_path / "features.npy", features)
    monkeypatch.setattr(measurement, "CHUNK_BYTES", 4 * 9 * 6)
    assert_same(report(np.load(tmp_path / "features.npy", mmap_mode="r"), labels, frame, bias), whole)


@pytest.mark.slow
@pytest.mark.parametrize("with_classifier", [False, True])
def test_far_from_the_origin_every_example_is_compared_as_nearby(with_classifier):
    """The class means are rounded to 0.06 there."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    centres = rng.normal(size=(5, 6))
    features = np.float32(1e6 + centres[labels] + 0.8 * rng.normal(size=(300, 6)))
    frame = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32) if with_classifier else None
    found = report(features, labels, frame)
    near = features.astype(np.float64) - 1e6
    means = np.stack([near[labels == k].mean(axis=0) for k in range(5)], axis=1)
    nearest = np.argmin(np.sum((near[:, :, None] - means[None]) ** 2, axis=1), axis=1)
    assert 0.5 < np.mean(nearest == labels) < 1
    np.testing.assert_allclose(found["nearest_centre_accuracy"].value, np.mean(nearest == labels), atol=1e-6)
    # A cosine margin looks from a middle that is rounded, too, so it is another one by 0.06 of a distance of about 1.
    middle = np.float64(np.float32((near.mean(axis=0) if with_classifier else means.mean(axis=1)) + 1e6)) - 1e6
    vectors = means - middle[:, None]
    if frame is not None:
        vectors = np.asarray(frame, np.float64)
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
    cosines = unit((near - middle).T).T @ unit(vectors)
    own = np.eye(5, dtype=bool)[labels]
    margins = cosines[own] - np.max(np.where(own, -np.inf, cosines), axis=1)
    np.testing.assert_allclose(found["margin_cosine_mean"].value, margins.mean(), atol=0.02)


@pytest.mark.slow
def test_features_alone_have_all_but_the_classifier(whole):
    features, labels, _, _ = small()
    found = report(features, labels)
    assert found.notes[0] == "num_classes was not given: 5, the largest label plus one."
    groups = {"NC1", "NC2", "generalized", "geometry"}
    assert set(found) == {
        name for name, entry in whole.items() if entry.group in groups and not name.endswith("classifier")
    } | {f"margin_cosine_{part}" for part in ("mean", "sd", "min")}
    assert found.classes.accuracy is None
    for name in found:
        if not name.startswith("margin"):
            assert found[name].value == pytest.approx(whole[name].value, rel=1e-5)
    # The margins are to centred class means, of the classes that are there.
    there = np.unique(labels)
    means = np.stack([features[labels == k].mean(axis=0) for k in there], axis=1)
    middle = means.mean(axis=1)
    scores = unit((features - middle).T).T @ unit(means - middle[:, None])
    places = np.searchsorted(there, labels)
    margins = [row[y] - np.delete(row, y).max() for row, y in zip(scores, places, strict=True)]
    assert found["margin_cosine_mean"].value == pytest.approx(np.mean(margins), rel=1e-5)
    assert found["margin_cosine_min"].value == pytest.approx(np.min(margins), rel=1e-4)


@pytest.mark.slow
def test_many_dimensions_need_no_scatter(whole, monkeypatch):
    monkeypatch.setattr(measurement, "MOST_DIMENSIONS", 5)
    found = report(*small())
    assert set(whole) - set(found) == {"nc1_pinv", "nc1_pinv_sample", "vci"} | {n for n in whole if "zero_mean" in n}
    assert "nc1_pinv and vci, which need a matrix of 6 x 6, are left out (from 6 dimensions on)." in found.notes


def test_the_first_pass_alone_gives_what_it_can(whole):
    features, labels, frame, bias = small()
    stream = Measurement(5, 6, frame, bias)
    stream.first_pass(features, labels)
    found = stream.report()
    lacking = {"nc4", "accuracy", "nearest_centre_accuracy"} | {name for name in whole if name.startswith("margin")}
    assert set(whole) - set(found) == lacking
    assert np.isnan(found.classes.nearest_centre_accuracy).all()
    assert set(stream.report(geometry=False)) == {name for name in found if found[name].group == "NC1"}


@pytest.mark.slow
def test_labels_that_begin_at_one_are_told(whole):
    features, labels, _, _ = small()
    assert "(0, 3; subtract 1 from labels that begin at 1)" in " ".join(report(features, labels + 1).notes)


FEATURES, LABELS = np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])
REFUSED = {
    "features must have shape (batch, dim) with dim >= 1; got (3,)": lambda: report(np.ones(3), LABELS),
    "labels must have shape (4,), one label for each row of features; got shape (2,)": lambda: report(
        FEATURES, LABELS[:2]
    ),
    "labels must be integers of shape (batch,); got dtype float64": lambda: report(FEATURES, LABELS / 1),
    "labels must name at least 2 classes; got a largest label of 0": lambda: report(FEATURES, LABELS * 0),
    "a report needs finite features of at least 2 classes; got those of 1": lambda: report(
        FEATURES, LABELS * 0, num_classes=2
    ),
    "a report needs finite features of at least 2 classes; got those of 0": lambda: report(FEATURES * np.nan, LABELS),
    "labels must lie in 0..1 for num_classes=2": lambda: report(FEATURES, LABELS + 1, np.ones((3, 2))),
    "frame must have shape (3, 2) like the class means; got (2, 3): transpose it": lambda: report(
        FEATURES, LABELS, np.ones((2, 3)), num_classes=2
    ),
    "frame must have shape (2, 3), one row per class; got (3, 2)": lambda: report(
        FEATURES, LABELS, np.ones((3, 2)), num_classes=2, rows=True
    ),
    "a bias needs the frame of its classifier; got bias without frame": lambda: report(FEATURES, LABELS, bias=LABELS),
    "bias must have shape (2,), one entry per class; got (3,)": lambda: report(
        FEATURES, LABELS, np.ones((3, 2)), np.ones(3)
    ),
    "a report needs num_classes of at least 2; got 1": lambda: Measurement(1, 3),
    "features must have shape (batch, 2); got (4, 3)": lambda: Measurement(2, 2).first_pass(FEATURES, LABELS),
    "a report needs finite features of at least 2 classes; got those of 0 in": lambda: Measurement(2, 3).report(),
    "a report needs known features and labels; got traced ones": lambda: jax.jit(report)(FEATURES, LABELS),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_measured_is_refused(sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        REFUSED[sentence]()


def test_passes_over_different_examples_are_refused():
    features, labels, _, _ = small()
    stream = Measurement(5, 6)
    stream.first_pass(features, labels)
    stream.second_pass(features[:9], labels[:9])
    with pytest.raises(
        ValueError, match="both passes must see the same examples; got 21 in the first and 9 in the second"
    ):
        stream.report()
