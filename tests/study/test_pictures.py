"""Pictures of made-up numbers: every kind is drawn, with the names and colours that were asked for."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from nc_jax.study import heat_maps, landscape_plots, plots

RNG = np.random.default_rng(0)
ROWS = [
    {"run": f"{name}-seed{seed}", "epoch": epoch, "a": 0.3 + 0.1 * epoch + RNG.uniform(0, 0.1), "b": 0.5**epoch}
    for name in ("learned", "nearest")
    for seed in (0, 1)
    for epoch in range(3)
]
GROUPS = {name: [f"{name}-seed0", f"{name}-seed1"] for name in ("learned", "nearest")}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: figures.append(self) or save(self, *args, **kw))
    return figures


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in (axis.title, *axis.get_xticklabels())]


def test_curves_have_a_panel_per_metric_and_a_colour_per_method(tmp_path, drawn):
    plots.curves(tmp_path / "a.png", ROWS, GROUPS, [("a", "accuracy", "linear"), ("b", "loss", "log")])
    axis = drawn[0].axes[0]
    assert [line.get_color() for line in axis.lines] == [plots.LEARNED, plots.NEAREST]
    mean = [
        np.mean([row["a"] for row in ROWS if row["run"] in GROUPS["learned"] and row["epoch"] == e]) for e in range(3)
    ]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), mean)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_every_method_has_a_colour_and_unknown_ones_differ():
    assert plots.colour_of("nearest", 5) == plots.NEAREST
    assert len({plots.colour_of(f"variant {place}", place) for place in range(10)}) == 10


def test_matrices_name_their_classes(tmp_path, drawn):
    counts = np.array([[8, 2], [1, 9]])
    heat_maps.confusion(tmp_path / "a.svg", {"nearest": counts, "fixed": counts.T}, ("cat", "dog"))
    assert "nearest: 85.0% right" in texts(drawn[0])
    assert "cat" in texts(drawn[0])
    heat_maps.cosine_matrices(tmp_path / "b.png", {"nearest": np.eye(3) * 1.5 - 0.5}, -0.5, ("a", "b", "c"))
    assert "nearest: -0.500 ± 0.000" in texts(drawn[1])
    heat_maps.wanted_cosines(tmp_path / "c.png", np.eye(3), {"ce": np.eye(3), "none": np.zeros((0, 0))})
    assert "ce: 0.000" in texts(drawn[2])
    heat_maps.heat_maps(tmp_path / "d.png", {"top-1": np.arange(4.0).reshape(2, 2)}, (1, 2), (3, 4), ("g", "a"))
    assert len(list(tmp_path.iterdir())) == 4


def test_the_others_are_drawn(tmp_path):
    plots.quantiles(tmp_path / "a.png", {"test": {"nearest-seed0": np.linspace(-1, 1, 101).tolist()}})
    plots.severity(tmp_path / "b.png", {"HAFrame": [[0.9, 0.05, 0.05]] * 2, "cross-entropy": [[0.8, 0.1, 0.1]] * 2})
    along = np.linspace(-1, 1, 5).tolist()
    gaps = np.abs(np.linspace(-1, 1, 5))[:, None] + np.linspace(0.1, 1, 5)
    landscape_plots.slice_of_a_landscape(tmp_path / "c.png", along, along, gaps.tolist())
    landscape_plots.minority_curves(tmp_path / "d.png", [0.1, 0.2], {"1": [90.0, None]}, {"1": [0.5, 0.0]})
    assert all(path.stat().st_size > 0 for path in tmp_path.iterdir())
