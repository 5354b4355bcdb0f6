"""Long tails: what a run of the command measures, compares, draws and warns of."""

import json

import numpy as np
import pytest

from experiments import long_tail
from nc_jax.methods import METHODS
from nc_jax.methods import long_tail as family
from nc_jax.study import main, plan
from nc_jax.training import read_metrics


def test_every_method_of_the_family_is_in_some_preset():
    """Left out is balanced-softmax, which is the method adjusted as long as tau is 1."""
    compared = {
        name
        for preset in long_tail.PRESETS.values()
        for variants in preset.grid.values()
        for changes in variants.values()
        for name in changes.get("methods", preset.methods)
    }
    assert set(family.METHODS) - compared == {"balanced-softmax"}


def test_pairs_are_against_cross_entropy_and_logit_adjustment():
    names = {name for pair in long_tail.EXPERIMENT.pairs for name in pair}
    assert names <= METHODS.keys()
    assert {other for _, other in long_tail.EXPERIMENT.pairs} == {"linear", "mixup-adjusted"}


@pytest.mark.slow
def test_a_run_groups_classes_by_their_sizes_and_warns(tmp_path, digits_dir, capsys):
    directory = tmp_path / "run"
    flags = ["smoke", "--workdir", str(directory), "--data.data-dir", digits_dir, "--seeds", "2"]
    flags += ["--methods", "linear", "fno-arc-shuffled"]
    main(long_tail.run_comparison, long_tail.PRESETS, flags, about=long_tail.ABOUT, plan=plan)
    caution = METHODS["fno-arc-shuffled"].caution
    assert caution in capsys.readouterr().err.replace("\n", " ")
    summary = json.loads((directory / "summary.json").read_text())
    assert any(caution in note for note in summary["notes"][""])
    found = summary["cases"][""]["ratio 20, linear"]
    groups = [found[name] for name in ("many", "medium", "few")]
    # Of ten classes, three are frequent and three are rare; the test set has 36 examples of about every class.
    shares = np.average(groups, axis=0, weights=[3, 4, 3])
    np.testing.assert_allclose(found["balanced_accuracy"], shares, rtol=1e-6)
    rows = [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]
    sizes = {tuple(row["found"]["class_sizes"]) for row in rows if row["key"]["variant"] == "ratio 20"}
    assert len(sizes) == 1
    (counts,) = sizes
    assert counts[0] // counts[-1] in range(15, 25)
    last = {row["run"]: row for row in read_metrics(directory / "metrics.jsonl") if row["epoch"] == 2}
    for seed, value in enumerate(found["angle/few"]):
        assert last[f"ratio-20-linear-seed{seed}"]["angle/few"] == pytest.approx(value)
    assert {path.stem for path in directory.glob("*.png")} >= {"summary", "bars", "recall", "ratios", "alignment"}
