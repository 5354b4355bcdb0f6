"""Accuracy under attack: the columns follow the radii, and the picture shows every attack."""

import json

import numpy as np
import pytest

from experiments import robustness
from nc_jax.study import Results, Scene, main, plan
from nc_jax.study.robustness import ATTACKS
from nc_jax.study.settings import expand


def test_there_is_a_column_for_every_attack_and_radius():
    keys = [column.key for column in robustness.columns_of((2.0, 0.5))]
    assert keys[1:3] == ["worst/2", "worst/0.5"]
    assert {f"{name}/{radius}" for name in ATTACKS for radius in ("2", "0.5")} < set(keys)
    assert set(robustness.TITLES) == {"worst", *ATTACKS}


@pytest.mark.slow
def test_the_picture_draws_each_attack_from_the_clean_accuracy_on(tmp_path, drawn):
    groups = expand(robustness.PRESETS["smoke"])
    falls = {"fgsm": 0.8, "pgd": 0.6, "margin": 0.5, "worst": 0.4}
    runs = [
        {
            "clean": clean,
            **{f"{name}/{r}": clean * fall ** (i + 1) for name, fall in falls.items() for i, r in enumerate((8, 24))},
        }
        for clean in (0.9, 1.0)
    ]
    first, second = (group.label for group in groups[""])
    rows = {first: runs, second: [{name: value + 0.05 for name, value in run.items()} for run in runs]}
    path = robustness.robustness(Scene("", Results({"": rows}, groups, {}), tmp_path, [], ()))
    assert path == tmp_path / "robustness.png"
    assert path.exists()
    panels = {axis.get_title(): axis for axis in drawn[0].axes}
    for name, title in robustness.TITLES.items():
        expected = 0.95 * falls[name] ** np.arange(3)
        for values, shift in zip(drawn_in(panels[title]), (0, 0.05), strict=True):
            np.testing.assert_allclose(values, expected + shift)
    (difference,) = drawn_in(panels[f"all attacks, less {first}"])
    np.testing.assert_allclose(difference, [0.05] * 3)


def drawn_in(axis):
    """The heights of each row in a panel, once they stand above their radii."""
    found = [container.lines[0] for container in axis.containers]
    for line in found:
        np.testing.assert_array_equal(np.asarray(line.get_xdata(), float), [0, 8, 24])
    return [np.asarray(line.get_ydata(), float) for line in found]


@pytest.mark.slow
def test_a_run_attacks_at_the_radii_that_it_was_given_and_keeps_them(tmp_path, digits_dir, capsys):
    directory = tmp_path / "run"
    flags = ["smoke", "--workdir", str(directory), "--data.data-dir", digits_dir, "--seeds", "1", "--methods", "linear"]
    flags += ["--attack.radii", "12", "40", "--attack.examples", "60"]
    main(robustness.run_comparison, robustness.PRESETS, flags, about=robustness.ABOUT, plan=plan)
    capsys.readouterr()
    main(robustness.run_comparison, robustness.PRESETS, ["--resume", str(directory)])
    said = capsys.readouterr().out
    assert "PGD, margin, 40/255" in said
    assert "PGD, margin, 24/255" not in said
    (found,) = json.loads((directory / "summary.json").read_text())["cases"][""].values()
    assert found["attacked"] == [60]
    assert found["clean"] >= found["worst/12"] > found["worst/40"]
    assert found["fgsm/12"] >= found["worst/12"]
