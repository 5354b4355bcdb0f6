"""Pictures of made-up federated runs: what is drawn of whom, on which axes, and when nothing is."""

import math

import numpy as np
import pytest

from nc_jax.methods import METHODS
from nc_jax.study import Comparison, colours, federated_plots, plots
from nc_jax.study.comparison import Results
from nc_jax.study.experiment import Scene
from nc_jax.study.settings import Group

ROUNDS = 4
BYTES = {"linear": 2e6, "fixed": 3e6}  # "nearest" communicates nothing


def counts_of(clients, classes, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (clients, classes)) * 7


@pytest.fixture
def scene(tmp_path):
    def made(methods=("linear", "fixed", "nearest"), variants=("",), clients=6, classes=4, seeds=2):
        settings = Comparison(methods=tuple(methods), seeds=seeds)
        groups = [Group("", variant, name, settings) for variant in variants for name in methods]
        rows, log = {}, []
        for group in groups:
            place = methods.index(group.method)
            counts = counts_of(clients, classes, variants.index(group.variant))
            rows[group.label] = [
                {
                    "partition": counts.tolist(),
                    "personal_by_client": [None, *np.linspace(0, 1, clients - 1)],
                    "personal_masked_by_client": [1.0] * clients,
                }
                | ({"bytes_per_round": BYTES[group.method]} if group.method in BYTES else {})
                for _ in range(seeds)
            ]
            log += [
                {"run": group.run(seed), "epoch": number, "test/accuracy": 0.1 * number + 0.02 * seed + 0.1 * place}
                | {"angle_existing": 100.0 + seed, "angle_missing": 90.0 / (1 + number)}
                for seed in range(seeds)
                for number in range(ROUNDS + 1)
            ]
        return Scene("", Results({"": rows}, {"": groups}, {}), tmp_path, log, ())

    return made


def title_of(name):
    return METHODS[name].title


def curves_of(axis):
    """Lines by colour, without those that span the whole axis."""
    return {line.get_color(): line for line in axis.lines if len(line.get_xdata()) > 2}


@pytest.mark.parametrize(("clients", "classes"), [(2, 2), (10, 10), (100, 10), (30, 100)])
def test_a_partition_has_clients_in_rows_and_whole_ticks(scene, drawn, clients, classes):
    assert federated_plots.partition_picture(scene(clients=clients, classes=classes)).stat().st_size > 0
    axis = drawn[0].axes[0]
    shown, counts = axis.images[0].get_array(), counts_of(clients, classes)
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(shown)), counts == 0)
    np.testing.assert_array_equal(shown[counts > 0], counts[counts > 0])
    for side, number in ((axis.xaxis, classes), (axis.yaxis, clients)):
        ticks = [tick for tick in side.get_majorticklocs() if -0.5 <= tick <= number - 0.5]
        assert len(ticks) >= 2
        assert set(ticks) <= set(range(number))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("class", "client")
    written = [text.get_text() for text in axis.texts]
    assert written == ([str(count) for count in counts[counts > 0]] if max(clients, classes) <= 10 else [])


@pytest.mark.slow
def test_a_partition_is_drawn_once_for_all_methods_and_once_for_each_variant(scene, drawn):
    federated_plots.partition_picture(scene(variants=("even", "skewed")))
    assert [axis.get_title() for axis in drawn[0].axes[:2]] == ["even", "skewed"]
    assert len(drawn[0].axes) == 3  # with the colours


def test_a_partition_without_any_example_is_drawn(scene, drawn):
    made = scene(methods=("fixed",))
    made.rows["fixed"][0]["partition"] = np.zeros((3, 4), int).tolist()
    assert federated_plots.partition_picture(made) is not None


def test_accuracy_is_drawn_by_rounds_and_by_bytes(scene, drawn):
    assert federated_plots.accuracy_by_bytes(scene()).stat().st_size > 0
    by_rounds, by_bytes = drawn[0].axes
    colours = {name: plots.colour_of(title_of(name)) for name in ("linear", "fixed", "nearest")}
    assert curves_of(by_rounds).keys() == set(colours.values())
    for place, (name, sent) in enumerate(BYTES.items()):
        of_rounds, of_bytes = curves_of(by_rounds)[colours[name]], curves_of(by_bytes)[colours[name]]
        assert of_rounds.get_xdata().tolist() == [*range(ROUNDS + 1)]
        np.testing.assert_allclose(of_bytes.get_xdata(), np.arange(ROUNDS + 1) * sent / 1e6)
        wanted = 0.1 * np.arange(ROUNDS + 1) + 0.01 + 0.1 * place
        np.testing.assert_allclose(of_rounds.get_ydata(), wanted)
        np.testing.assert_allclose(of_bytes.get_ydata(), wanted)
    # What does not communicate is a bound at its last accuracy.
    (bound,) = [line for line in by_bytes.lines if line.get_color() == colours["nearest"]]
    assert bound.get_linestyle() == ":"
    np.testing.assert_allclose(bound.get_ydata(), 0.1 * ROUNDS + 0.01 + 0.2)
    assert "dotted" in drawn[0].get_suptitle()
    assert (by_rounds.get_xlabel(), by_bytes.get_xlabel()) == ("round", "communicated megabytes")
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [title_of(name) for name in ("linear", "fixed", "nearest")]


def test_many_bytes_are_gigabytes(scene, drawn):
    made = scene(methods=("linear", "fixed"))
    for run in made.rows[title_of("fixed")]:
        run["bytes_per_round"] = 5e9
    federated_plots.accuracy_by_bytes(made)
    assert drawn[0].axes[1].get_xlabel() == "communicated gigabytes"
    assert max(curves_of(drawn[0].axes[1])[colours.FIXED].get_xdata()) == 5 * ROUNDS
    assert "dotted" not in drawn[0].get_suptitle()


@pytest.mark.slow
def test_variants_of_several_methods_have_panels_of_their_own(scene, drawn):
    federated_plots.accuracy_by_bytes(scene(variants=("even", "skewed")))
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == ["even: by rounds", "even: by bytes", "skewed: by rounds", "skewed: by bytes"]
    assert len(drawn[0].legends[0].get_texts()) == 3
    made = scene(methods=("fixed",), variants=("1 epoch", "5 epochs"))
    federated_plots.accuracy_by_bytes(made)
    assert [axis.get_title() for axis in drawn[1].axes] == ["by rounds", "by bytes"]
    assert [text.get_text() for text in drawn[1].legends[0].get_texts()] == ["1 epoch", "5 epochs"]


def test_angles_have_the_angle_of_the_simplex_as_a_line(scene, drawn):
    federated_plots.angles_picture(scene(classes=4))
    assert [axis.get_title() for axis in drawn[0].axes] == ["existing classes", "missing classes"]
    for axis, wanted in zip(drawn[0].axes, (np.full(ROUNDS + 1, 100.5), 90 / np.arange(1, ROUNDS + 2)), strict=True):
        np.testing.assert_allclose(curves_of(axis)[colours.FIXED].get_ydata(), wanted)
        (line,) = [line for line in axis.lines if line.get_label() == "simplex ETF"]
        np.testing.assert_allclose(line.get_ydata(), math.degrees(math.acos(-1 / 3)))


def test_clients_are_points_in_order_without_those_that_have_no_test_example(scene, drawn):
    made = scene(methods=("linear", "fixed"), clients=6, seeds=2)
    federated_plots.clients_picture(made)
    of_all, masked = drawn[0].axes
    assert [label.get_text() for label in of_all.get_yticklabels()] == [title_of("linear"), title_of("fixed")]
    points = [line for line in of_all.lines if line.get_marker() == "."]
    wanted = np.sort(np.tile(np.linspace(0, 1, 5), 2))
    for place, line in enumerate(points):
        np.testing.assert_allclose(line.get_xdata(), wanted)
        assert np.all(np.abs(line.get_ydata() - place) < 0.5)
    means = [line.get_xdata()[0] for line in of_all.lines if line.get_marker() == "o"]
    assert means == pytest.approx([0.5, 0.5])
    assert [len(line.get_xdata()) for line in masked.lines if line.get_marker() == "."] == [12, 12]


def test_what_was_not_found_is_not_drawn(scene, drawn):
    made = scene()
    rows = {label: [{} for _ in runs] for label, runs in made.rows.items()}
    empty = made._replace(results=made.results._replace(rows={"": rows}), log=[])
    for picture in (
        federated_plots.partition_picture,
        federated_plots.accuracy_by_bytes,
        federated_plots.angles_picture,
        federated_plots.clients_picture,
    ):
        assert picture(empty) is None
    assert not drawn
