"""The transformation layer against the released program's numbers, and the other necks."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax.models import MLP, Bottleneck, PReLU, Projection, Transformation, WithNeck

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "hierarchy.json").read_text())["haf_transformation_layer"]
KEY = jax.random.key(0)


def from_torch(state):
    """Torch's state dict as our variables: Linear weights are transposed, running statistics are a collection."""
    params, statistics = {}, {}

    def norm(ours, theirs):
        params[ours] = {"scale": jnp.asarray(state[f"{theirs}.weight"]), "bias": jnp.asarray(state[f"{theirs}.bias"])}
        running = (jnp.asarray(state[f"{theirs}.running_{name}"]) for name in ("mean", "var"))
        statistics[ours] = dict(zip(("mean", "var"), running, strict=True))

    norm("norm", "0")
    for block in (1, 2):
        for layer in (1, 2):
            theirs, ours = f"1.residual_layer{block}", f"block{block}"
            kernel = jnp.asarray(state[f"{theirs}.linear{layer}.weight"]).T
            params[f"{ours}_linear{layer}"] = {"kernel": kernel}
            params[f"{ours}_prelu{layer}"] = {"slope": jnp.asarray(state[f"{theirs}.act_func{layer}.weight"])}
            norm(f"{ours}_norm{layer}", f"{theirs}.bn{layer}")
    return {"params": params, "batch_stats": statistics}


@pytest.mark.slow
def test_the_released_programs_layer():
    variables, inputs = from_torch(GOLDEN["state_dict"]), jnp.asarray(GOLDEN["X"])
    layer = Transformation()
    np.testing.assert_allclose(layer.apply(variables, inputs), GOLDEN["Y_eval"], rtol=2e-5, atol=2e-6)
    found, updated = layer.apply(variables, inputs, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, GOLDEN["Y_train"], rtol=2e-5, atol=2e-5)
    running = GOLDEN["running_after_train"]
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["mean"], running["0.running_mean"], rtol=1e-5)
    # Torch keeps the unbiased variance of the batch, n / (n - 1) times ours.
    old, count = jnp.asarray(GOLDEN["state_dict"]["0.running_var"]), len(inputs)
    new = (updated["batch_stats"]["norm"]["var"] - 0.9 * old) * count / (count - 1) + 0.9 * old
    np.testing.assert_allclose(new, running["0.running_var"], rtol=1e-5)


def test_the_number_of_parameters():
    params = jax.eval_shape(Transformation().init, KEY, jnp.zeros((2, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == GOLDEN["param_count_K3"]


@pytest.mark.slow
def test_padding_does_not_enter_the_statistics():
    layer, inputs = Transformation(), jax.random.normal(KEY, (5, 3))
    variables = layer.init(KEY, inputs)
    mask = jnp.array([True, True, True, True, False])
    found, _ = layer.apply(variables, inputs.at[4].set(1e3), train=True, mask=mask, mutable=["batch_stats"])
    expected, _ = layer.apply(variables, inputs[:4], train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5, atol=1e-5)


def test_a_rectifier_with_slopes():
    found = PReLU().apply({"params": {"slope": jnp.array([0.25, -1.0])}}, jnp.array([[-4.0, -4.0], [2.0, 2.0]]))
    np.testing.assert_array_equal(found, [[-1.0, 4.0], [2.0, 2.0]])


@pytest.mark.slow
def test_an_average_commutes_with_a_convolution_of_one_pixel():
    maps = jax.random.normal(KEY, (2, 4, 4, 6))
    layer = Projection(3)
    variables = layer.init(KEY, maps)
    pooled = layer.apply(variables, jnp.mean(maps, axis=(1, 2)))
    np.testing.assert_allclose(layer.apply(variables, maps), pooled, rtol=1e-5, atol=1e-6)
    highest = Projection(3, pool="max")
    kernel = variables["params"]["convolution"]["kernel"]
    np.testing.assert_allclose(highest.apply(variables, maps), (maps @ kernel).max(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="taken of feature maps"):
        highest.apply(variables, jnp.zeros((2, 6)))


@pytest.mark.slow
def test_necks_follow_the_backbone():
    model = WithNeck(MLP((8,), 6), (Projection(4), Transformation()))
    found, variables = model.init_with_output(KEY, jnp.zeros((2, 5)))
    assert found.shape == (2, 4)
    assert set(variables["params"]) == {"backbone", "necks_0", "necks_1"}
    older = WithNeck(MLP((8,), 6), (Bottleneck(7),))
    assert older.init_with_output(KEY, jnp.zeros((2, 5)))[0].shape == (2, 7)
