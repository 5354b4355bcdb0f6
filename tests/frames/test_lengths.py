"""Lengths of FedGELA: the released program's, of balanced and of empty clients, traced, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.frames import local_lengths

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fedgela.json").read_text())["Phi_K4"]
COUNTS = np.array([np.bincount(labels, minlength=4) for labels in GOLDEN["client_labels"]])


def test_lengths_are_those_of_the_released_program():
    for counts, wanted in zip(COUNTS, GOLDEN["Phi=C*n_kc/n_k"], strict=True):
        np.testing.assert_array_equal(local_lengths(counts), wanted)


def test_all_clients_at_once():
    found = jax.jit(jax.vmap(local_lengths))(COUNTS)
    np.testing.assert_array_equal(found, GOLDEN["Phi=C*n_kc/n_k"])


@pytest.mark.parametrize("counts", [np.full(7, 3), np.full(100, 12345), np.zeros(5, int), np.full(3, 0.1, np.float32)])
def test_a_balanced_client_and_one_without_examples_keep_the_frame(counts):
    np.testing.assert_array_equal(local_lengths(counts), np.ones(len(counts)))


def test_their_mean_is_one(x64):
    counts = np.random.default_rng(0).integers(0, 1000, 37)
    found = local_lengths(counts)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, 37 * counts / counts.sum(), rtol=1e-15)
    assert float(jnp.mean(found)) == pytest.approx(1, abs=1e-14)


def test_counts_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"counts must hold one number for each class; got shape \(2, 4\)"):
        local_lengths(COUNTS[:2])
    with pytest.raises(ValueError, match=r"counts must be finite and at least 0 for every class; got -1 for class 1"):
        local_lengths([3, -1])
