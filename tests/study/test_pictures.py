"""Pictures of made-up numbers: every kind is drawn, with the names and colours that were asked for."""

import numpy as np
import pytest

from nc_jax.methods import METHODS
from nc_jax.study import colours, heat_maps, landscape_plots, plots

RNG = np.random.default_rng(0)
ROWS = [
    {"run": f"{name}-seed{seed}", "epoch": epoch, "a": 0.3 + 0.1 * epoch + RNG.uniform(0, 0.1), "b": 0.5**epoch}
    for name in ("learned", "nearest")
    for seed in (0, 1)
    for epoch in range(3)
]
GROUPS = {name: [f"{name}-seed0", f"{name}-seed1"] for name in ("learned", "nearest")}


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in (axis.title, *axis.get_xticklabels())]


def test_curves_have_a_panel_per_metric_and_a_colour_per_method(tmp_path, drawn):
    plots.curves(tmp_path / "a.png", ROWS, GROUPS, [("a", "accuracy", "linear"), ("b", "loss", "log")])
    axis = drawn[0].axes[0]
    assert [line.get_color() for line in axis.lines] == [colours.LEARNED, colours.NEAREST]
    mean = [
        np.mean([row["a"] for row in ROWS if row["run"] in GROUPS["learned"] and row["epoch"] == e]) for e in range(3)
    ]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), mean)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_every_method_has_a_colour_of_its_own():
    titles = [method.title for method in METHODS.values()]
    assert set(titles) <= colours.COLOURS.keys()
    assert len(set(colours.COLOURS.values())) == len(colours.COLOURS)


def test_variants_are_shades_of_one_method_and_dashes_of_several():
    one = plots.looks({"weight 1": ("weight 1", "nearest"), "weight 2": ("weight 2", "nearest")})
    assert one["weight 1"] == plots.Look("#000000")
    assert one["weight 2"].colour not in colours.COLOURS.values()
    several = plots.looks({f"{v}, {m}": (v, m) for v in ("d = K", "d = 64") for m in ("fixed", "nearest")})
    assert several["d = 64, nearest"] == plots.Look(colours.NEAREST, "--")
    assert several["d = K, nearest"] == plots.Look(colours.NEAREST, "-")


def test_an_axis_of_few_decades_has_plain_numbers(tmp_path, drawn):
    plots.curves(tmp_path / "a.png", ROWS, GROUPS, [("b", "loss", "log")])
    axis = drawn[0].axes[0]
    low, high = axis.get_ylim()
    labels = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert "0.5" in labels
    assert not any("10" in label for label in labels)


def test_a_state_far_from_the_others_is_left_out_of_a_linear_axis(tmp_path, drawn):
    rows = [row | {"a": 0.9 + 0.01 * row["epoch"] if row["epoch"] else 0.1} for row in ROWS]
    plots.curves(tmp_path / "a.png", rows, GROUPS, [("a", "accuracy", "linear")])
    assert [line.get_xdata().tolist() for line in drawn[0].axes[0].lines] == [[1, 2], [1, 2]]


@pytest.mark.slow
def test_matrices_name_their_classes(tmp_path, drawn):
    counts = np.array([[8, 2], [1, 9]])
    heat_maps.confusion(tmp_path / "a.svg", {"nearest": counts, "fixed": counts.T}, ("cat", "dog"))
    assert "nearest: 85.0% right" in texts(drawn[0])
    assert "cat" in texts(drawn[0])
    heat_maps.cosine_matrices(tmp_path / "b.png", {"nearest": np.eye(3) * 1.5 - 0.5}, -0.5, ("a", "b", "c"))
    assert "nearest: -0.500 ± 0.000" in texts(drawn[1])
    found = {"ce": np.eye(3), "none": np.zeros((0, 0))}
    heat_maps.wanted_cosines(tmp_path / "c.png", np.eye(3), found, {"ce": 0.25}, ("a", "b", "c"))
    assert "ce\nmean error 0.250" in texts(drawn[2])
    assert "none" not in " ".join(texts(drawn[2]))
    assert {"a", "b", "c"} <= set(texts(drawn[2]))
    heat_maps.heat_maps(tmp_path / "d.png", {"top-1": np.arange(4.0).reshape(2, 2)}, (1, 2), (3, 4), ("g", "a"))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("count", [2, 3, 4, 10, 31, 100])
def test_ticks_are_classes(tmp_path, drawn, count):
    names = [rf"$\a{{{number}$" for number in range(count)] if count <= 30 else ()  # no formula
    matrix = np.eye(count) + 0.1
    heat_maps.confusion(tmp_path / "a.png", {"nearest": matrix}, names)
    heat_maps.confusion(tmp_path / "b.png", {"nearest": matrix})
    for figure in drawn:
        low, high = figure.axes[0].get_xlim()
        ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
        assert set(ticks) <= set(range(count))
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    if names:
        assert labels == names


def test_long_names_leave_room_for_the_matrix(tmp_path, drawn):
    heat_maps.confusion(tmp_path / "a.png", {"nearest": np.eye(2)}, ("a" * 24, "b" * 200))
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["a" * 24, "b" * 23 + "…"]


def test_points_have_a_row_per_name_and_an_interval_of_the_mean(tmp_path, drawn):
    values = {"HAFrame": [1.0, 2.0, 3.0], "cross-entropy": [float("nan"), 4.0, 5.0]}
    look = plots.looks({name: ("", name) for name in values})
    plots.points(tmp_path / "a.png", {"severity": values}, look=look)
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(values)
    faint, mean = axis.lines[0], axis.lines[1]
    assert faint.get_xdata().tolist() == [1, 2, 3]
    assert (mean.get_xdata()[0], mean.get_color()) == (2, colours.HAFRAME)
    (bar,) = axis.collections[0].get_segments()
    np.testing.assert_allclose(bar[:, 0], [2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6)


def test_margins_are_named_by_their_set(tmp_path, drawn):
    look = plots.looks({"nearest": ("", "nearest")})
    percentiles = {"nearest": np.linspace(-1, 1, 101).tolist()}
    plots.quantiles(tmp_path / "a.png", {"training": percentiles, "test": percentiles}, look)
    assert [axis.get_title() for axis in drawn[0].axes] == ["training set", "test set"]


def test_the_others_are_drawn(tmp_path):
    along = np.linspace(-1, 1, 5).tolist()
    gaps = np.abs(np.linspace(-1, 1, 5))[:, None] + np.linspace(0.1, 1, 5)
    landscape_plots.slice_of_a_landscape(tmp_path / "c.png", along, along, gaps.tolist())
    landscape_plots.minority_curves(tmp_path / "d.png", [0.1, 0.2], {"1": [90.0, None]}, {"1": [0.5, 0.0]})
    assert all(path.stat().st_size > 0 for path in tmp_path.iterdir())
