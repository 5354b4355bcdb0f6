"""All starts arrive, all saddles are certified, and mistakes are refused."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory.catalogue import GOLDEN

from experiments import landscape
from nc_jax.study import Ledger, cli
from nc_jax.study.descent import gradient_descent, lbfgs, stable_rate
from nc_jax.study.landscape import MinorityOptions, minority_collapse

SMOKE = landscape.PRESETS["smoke"]


def config_of(*flags):
    return cli.parse(SMOKE, list(flags))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("landscape") / "run"
    return directory, landscape.run(config_of("--workdir", str(directory)))


@pytest.mark.slow
def test_every_start_reaches_the_closed_form_and_no_saddle_is_called_a_minimum(finished):
    _, summary = finished
    (found,) = summary["descents"].values()
    for optimizer in SMOKE.optimizers:
        assert found[optimizer]["reached"] == found[optimizer]["certified"] == SMOKE.starts
        assert found[optimizer]["duality_gap"] < 1e-6
    (saddles,) = summary["saddles"].values()
    assert set(saddles) == {"0", "1"}
    for saddle in saddles.values():
        assert saddle["critical"] == saddle["strict"] == saddle["fallen"] == saddle["reached"] == saddle["points"] == 4
        assert saddle["called_global"] == 0
        assert saddle["prediction_error"] < 1e-5
        assert saddle["least_eigenvalue"] < 0
        assert min(saddle["values"]) > found["value"] + 1e-3


@pytest.mark.slow
def test_the_slice_has_a_saddle_and_two_minima_where_it_says(finished):
    directory, _ = finished
    (sliced,) = (found for key, found in Ledger(directory / "results.jsonl").items() if key["what"] == "slice")
    gaps, along, across = (np.array(sliced[name]) for name in ("gaps", "along", "across"))
    assert gaps.min() > -1e-12
    low = gaps < 2e-3 * gaps.max()
    places = np.argwhere(low)
    assert {round(across[row]) for row, _ in places} == {-1, 1}
    assert np.allclose(along[places[:, 1]], 1, atol=0.3)
    np.testing.assert_allclose(gaps, gaps[::-1], atol=1e-10)  # mirror images
    middle, start = np.abs(across).argmin(), np.abs(along).argmin()
    column, row = gaps[:, start], gaps[middle]
    assert column[middle] > column[middle + 8]  # down across
    assert row[start] < min(row[start - 8], row[start + 8])  # up along


@pytest.mark.slow
def test_minorities_collapse_as_in_the_golden_values():
    options = MinorityOptions(minority=(2,), decays=3, least_decay=0.01, greatest_decay=0.09)
    with jax.enable_x64(True):
        found = minority_collapse(options)
    golden = [GOLDEN["ufm_imbalanced"][f"n[20,20,2,2]_lz{decay}"] for decay in (0.01, 0.03)]
    np.testing.assert_allclose(found["decays"], [0.01, 0.03, 0.09])
    cosines = [case["cos_W_minority"] for case in golden]
    np.testing.assert_allclose(np.cos(np.radians(found["angles"]["2"][:2])), cosines, atol=1e-5)
    norms = [case["w_norms"][2] / case["w_norms"][0] for case in golden]
    np.testing.assert_allclose(found["norms"]["2"], [*norms, 0], atol=1e-5)
    assert found["angles"]["2"][2] is None
    assert found["vanishes"]["2"] == pytest.approx(0.09)
    assert found["duality_gaps"]["2"] < 1e-7


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_descent_within_a_saddle_s_dimensions_stays_there_unless_it_is_kicked():
    def cost(point):  # minima at x = +-1, y = 0; a saddle at the origin
        return (point[0] ** 2 - 1) ** 2 / 4 + point[1] ** 2 / 2

    starts = jnp.array([[0.0, 2.0], [0.0, -1.0]])
    rate = stable_rate(cost, jnp.array([[1.5, 0.0]]))
    assert rate == pytest.approx(1 / (3 * 1.5**2 - 1))
    options = {"rate": rate, "steps": 5000, "tolerance": 1e-9}
    stayed = gradient_descent(cost, starts, **options)
    np.testing.assert_allclose(stayed.value, 0.25)
    kicked = gradient_descent(cost, starts, seed=0, **options)
    np.testing.assert_allclose(kicked.value, 0, atol=1e-15)
    assert np.all(kicked.grad_norm <= 1e-9)
    assert np.all(kicked.steps < 5000)
    arrived = lbfgs(cost, starts + 0.1, steps=200, tolerance=1e-9)
    np.testing.assert_allclose(arrived.value, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--cases", "hinge:4:5:6"], "a case is \"loss:K:n:d\" with the loss ce or mse; got 'hinge:4:5:6'"),
        (["--cases", "ce:4:5"], "a case is \"loss:K:n:d\" with the loss ce or mse; got 'ce:4:5'"),
        (["--cases", "ce:4:5:2"], "a simplex ETF of 4 classes needs dim >= 3; got dim=2"),
        (["--cases", "ce:2:5:2"], "the slice needs a first case of at least 3 classes; got 'ce:2:5:2'"),
        (["--weight-decay", "-1"], "weight_decay must be positive and finite"),
        (["--starts", "0"], "starts must be at least 1; got 0"),
        (["--cases", "ce:3:2:3", "ce:3:2:3"], "cases must differ, in lower case too, and none may be empty; got"),
        (["--optimizers", "gd", "gd"], "optimizers must differ, in lower case too, and none may be empty; got"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        landscape.run(config_of(*flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_decays_and_counts_of_minorities_are_checked():
    with pytest.raises(ValueError, match=r"least_decay below greatest_decay; got 0\.001, 0\.0001"):
        MinorityOptions(greatest_decay=0.0001)
    with pytest.raises(ValueError, match="every class needs at least one example"):
        MinorityOptions(minority=(-2,))
