"""The counts are the published ones, the columns are separate, the frame is the released one."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from theory.catalogue import GOLDEN

from experiments import fixed_etf, harness
from nc_jax.metrics import etf_distance
from nc_jax.training import read_metrics

MODELS = GOLDEN["param_counts_and_memory"]["models"]


def config_of(*flags):
    return harness.parse(fixed_etf.PRESETS["smoke"], list(flags))


@pytest.mark.parametrize(("model", "stem"), fixed_etf.COUNTED)
def test_parameters_are_those_of_the_released_program(model, stem):
    found = fixed_etf.count_cells(10, model, stem)
    for cell, (head, dim) in fixed_etf.cells(fixed_etf.GRID, 10).items():
        fixed, narrow = int(head == "fixed"), 10 if dim else 0
        golden = MODELS[f"{model}_SOTA{int(stem == 'cifar')}_ETF{fixed}_fixdim{narrow}"]
        assert found[cell]["trainable"] == golden["trainable_params"]
        assert found[cell]["trainable"] + found[cell]["constant"] == golden["total_params"]
        assert found[cell]["optimizer_bytes"] == 4 * golden["trainable_params"]
        saved = fixed_etf._saved(found["learned, d = own"]["trainable"], found[cell]["trainable"])
        assert saved == f"{golden['trainable_saving_pct']:.3f} %"


def test_the_aligned_frame_is_a_simplex_that_non_negative_features_can_have():
    frame = np.asarray(fixed_etf.aligned_etf(4, 6))
    assert float(etf_distance(jnp.asarray(frame))) < 1e-6
    np.testing.assert_allclose(np.linalg.norm(frame, axis=0), 1, rtol=1e-6)
    assert not frame[4:].any()
    # e_k is non-negative, and a class vector up to a multiple of the direction of ones, which no logit sees.
    np.testing.assert_allclose(frame[:4].T @ np.eye(4), frame[:4], rtol=1e-6)
    with pytest.raises(ValueError, match="a simplex ETF on 4 coordinates needs dim >= 4; got dim=3"):
        fixed_etf.aligned_etf(4, 3)


def test_a_run_writes_what_its_header_promises_and_resumes(tmp_path):
    summary = fixed_etf.run(config_of("--workdir", str(tmp_path / "run")))
    for name in ("config.json", "summary.json", "summary.md", "metrics.jsonl", "convergence.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 * 2 * 2  # cells, seeds, epochs with the start
    costs = summary["costs"]
    assert set(costs) == {"fixed, d = own", "fixed, d = 10"}
    for values in costs.values():
        assert values["peak_bytes"] >= values["argument_bytes"] + values["temporary_bytes"]
        assert values["temporary_bytes"] > 0
        assert values["seconds"] > 0
    # Four bytes of parameter and four of momentum for each that a narrow network does without, and a smaller frame.
    counts = summary["counts"]["resnet18, cifar stem"]
    fewer = counts["fixed, d = own"]["trainable"] - counts["fixed, d = 10"]["trainable"]
    between = costs["fixed, d = own"]["argument_bytes"] - costs["fixed, d = 10"]["argument_bytes"]
    assert between == pytest.approx(8 * fewer, rel=1e-2)
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "| resnet18, imagenet stem | fixed, d = 10 | 8,867,442 | 20.696 % |" in text

    (tmp_path / "run" / "summary.md").unlink()
    again = fixed_etf.run(config_of("--resume", str(tmp_path / "run")))
    assert again["training"] == summary["training"]
    assert again["costs"] == json.loads((tmp_path / "run" / "costs.json").read_text())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--model", "vit"], "model must be a residual network, whose last block is narrowed; got 'vit'"),
        (["--heads", "turned"], "heads must have one of learned, fixed, whose steps are measured; got ('turned',)"),
        (["--seeds", "0"], "seeds must be at least 1; got 0"),
        (["--num-classes", "1"], "num_classes must be at least 2 and steps at least 0; got 1 and 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, flags, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        fixed_etf.run(config_of(*flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
