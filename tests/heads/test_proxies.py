"""Class vectors with no simplex: learned on the sphere, and frames that depend on the feature dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nc_jax import heads
from nc_jax.frames import random_unit
from nc_jax.optim import on_manifold

K = 10
KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.slow
def test_learned_columns_stay_on_the_sphere():
    head = heads.learned(K, radius=1.0, on_sphere=True, use_bias=False)
    params, state = head.init(KEYS[0], dim=4)
    np.testing.assert_allclose(jnp.linalg.norm(params["kernel"], axis=0), 1, atol=1e-6)
    features, labels = jax.random.normal(KEYS[1], (30, 4)), jnp.arange(30) % K
    optimizer = on_manifold(optax.sgd(5.0, momentum=0.9), {"kernel": head.manifolds["kernel"](4)})
    memory = optimizer.init(params)

    def cost(params):
        output, _ = head.apply(params, state, features)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(output.logits, labels))

    first = cost(params)
    for _ in range(10):
        updates, memory = optimizer.update(jax.grad(cost)(params), memory, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(jnp.linalg.norm(params["kernel"], axis=0), 1, atol=1e-6)
    assert cost(params) < first


HEADS = {
    "nearest": heads.nearest,
    "rotated": heads.rotated,
    "cayley": lambda *args, **kwargs: heads.rotated(*args, parametrisation="cayley", **kwargs),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_template_may_depend_on_the_dimension(kind):
    """The rule is called once for each dimension, and what it computes is no part of a trace."""
    asked = []

    def rule(dim):
        asked.append(dim)
        found = random_unit(K, dim, key=KEYS[2])
        assert not isinstance(found, jax.core.Tracer)
        return found

    head, features = HEADS[kind](K, template=rule), jax.random.normal(KEYS[1], (20, 3))

    @jax.jit
    def logits(key):
        params, state = head.init(key, dim=3)
        output, _ = head.apply(params, state, features, jnp.arange(20) % K, train=True)
        return output.frame

    frame = logits(KEYS[0])
    template = random_unit(K, 3, key=KEYS[2])
    np.testing.assert_allclose(frame.T @ frame, template.T @ template, atol=1e-5)
    assert asked == [3]


def test_a_template_that_does_not_fit():
    for make in (heads.nearest, heads.rotated):
        with pytest.raises(ValueError, match=r"a template needs 10 columns; got shape \(3, 9\)"):
            make(K, template=lambda dim: jnp.eye(dim, 9)).init(KEYS[0], dim=3)
        with pytest.raises(ValueError, match=r"a template of 4 rows needs features of dim >= 4; got dim=3"):
            make(K, template=lambda dim: jnp.eye(dim + 1, K)).init(KEYS[0], dim=3)
