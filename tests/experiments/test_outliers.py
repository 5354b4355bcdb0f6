"""Outliers: there is a column for every set and score, unknown sets are refused, and the picture shows every score."""

import dataclasses

import pytest

from experiments import outliers
from nc_jax.study import Results, Scene
from nc_jax.study.outliers import OUTLIERS, SCORES
from nc_jax.study.settings import expand


def test_there_is_a_column_for_every_set_and_score():
    keys = {column.key for column in outliers.COLUMNS}
    assert {f"{kind}/{name}/{score}" for kind in ("auroc", "fpr95") for name in OUTLIERS for score in SCORES} < keys
    assert {f"nc5/{name}" for name in OUTLIERS} < keys


@pytest.mark.parametrize(("names", "given"), [(("noise", "digits"), "noise"), ((), "none")])
def test_unknown_sets_are_refused_before_training(names, given):
    config = dataclasses.replace(outliers.PRESETS["smoke"], outliers=names)
    with pytest.raises(ValueError, match=f"^outliers must be among characters, digits, scrambled; got {given}$"):
        outliers.check_sets(config)


def test_the_picture_has_a_panel_for_each_set(tmp_path, drawn):
    groups = expand(outliers.PRESETS["smoke"])
    labels = [group.label for group in groups[""]]
    numbers = {f"auroc/{name}/{score}": 0.9 for name in ("digits", "scrambled") for score in SCORES}
    rows = {label: [numbers, {name: 0.8 for name in numbers}] for label in labels}
    path = outliers.scores(Scene("", Results({"": rows}, groups, {}), tmp_path, [], ()))
    assert path.exists()
    panels = {axis.get_title(): axis for axis in drawn[0].axes if axis.get_title()}
    assert panels.keys() == {"digits", "scrambled"}
    for axis in panels.values():
        assert [tick.get_text() for tick in axis.get_xticklabels()] == list(SCORES.values())
        for container in axis.containers:
            assert container.lines[0].get_ydata() == pytest.approx([0.85] * len(SCORES))
