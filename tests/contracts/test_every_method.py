"""Properties of every method in the table: its head and its loss in one program. New rows are tested automatically."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nc_jax import collective
from nc_jax.data import Batch, hierarchies
from nc_jax.methods import METHODS, FederatedOptions, Setting
from nc_jax.training import Context

K, DIM, N, PADDING, DEVICES = 10, 16, 40, 8, 4
SETTING = Setting(
    num_classes=K,
    epochs=2,
    epoch_steps=3,
    num_examples=N,
    class_counts=(N // K,) * K,
    tree=hierarchies.load("digits"),
    federated=FederatedOptions(clients=2),
)
F32 = 2e-5  # sums in another order; the nearest head's derivative has a condition of about ten
# These heads have no parameters: their class vectors are part of the state.
WITHOUT_PARAMETERS = {"fixed", "nearest", "barz-denzler", "etf", "haframe-ce", "shuffled", "haframe", "nearest-haframe"}
WITHOUT_PARAMETERS |= {"er-nearest", "derpp-nearest", "er-scaled", "few-shot", "few-shot-etf"}
WITHOUT_PARAMETERS |= {"random", "fno", "fno-arc", "fno-arc-unmasked", "fno-arc-shuffled", "etf-mixup", "nearest-mixup"}
WITHOUT_PARAMETERS |= {"etf-dr", "etf-dr-counts", "etf-dr-plain", "nearest-counts", "nearest-effective"}
WITHOUT_PARAMETERS |= {"nearest-centred", "fed-etf", "fed-nearest"}
WITHOUT_PARAMETERS |= {"hug-random", "hug-optimised", "hug-nearest", "random-fixed", "energy-fixed", "energy-nearest"}
# Each method is a program, which takes about a second to compile. One of each family is quick, but none of HUG (5 s).
QUICK = ("learned", "fixed", "nearest", "haframe", "fno-arc", "etf-dr", "fed-nearest")


def with_a_new_head_or_loss() -> list[str]:
    """Return the methods whose pair of head and loss no method before them has: extensions and streams play no part."""
    return list({(id(method.head), id(method.loss)): name for name, method in reversed(METHODS.items())}.values())[::-1]


class Found:
    """One step of head and loss on a batch: as it is, followed by padding, and split between devices."""

    def __init__(self, name: str):
        self.method = METHODS[name]
        head, loss = self.method.head(SETTING), self.method.loss(SETTING)
        params, state = head.init(jax.random.key(0), DIM)
        labels = jnp.arange(N) % K
        centres = jax.random.normal(jax.random.key(1), (K, DIM))
        features = centres[labels] + jax.random.normal(jax.random.key(2), (N, DIM))

        def total(features, params, labels, mask):
            number, _ = collective.device()
            batch, places = Batch(features, labels, mask), number * len(labels) + jnp.arange(len(labels))
            context = Context(jnp.zeros((), jnp.int32), train=True, places=places, whole=batch)
            output, new = head.apply(params, state, features, labels, train=True, mask=mask)
            each = loss(output, batch, context)
            return jnp.sum(jnp.where(mask, each, 0)), (each, output, new)

        step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

        def on_a_device(*shares):
            with collective.over("devices"):
                (value, (each, _, new)), (by_features, by_params) = step(*shares)
                return collective.all_sum((value, by_params)), each, new, by_features

        @jax.jit
        def run(features, params):
            mask = jnp.ones(N, bool)
            whole = step(features, params, labels, mask)
            # Padding with large features, which would change the result, and with a label that is not a class.
            longer = jnp.concatenate([features, jnp.full((PADDING, DIM), 50.0)])
            more_labels = jnp.concatenate([labels, jnp.full(PADDING, -1)])
            padded = step(longer, params, more_labels, jnp.arange(N + PADDING) < N)
            share = lambda array: array.reshape(DEVICES, -1, *array.shape[1:])  # noqa: E731
            shared = jax.vmap(on_a_device, in_axes=(0, None, 0, 0), axis_name="devices")(
                share(features), params, share(labels), share(mask)
            )
            return whole, padded, shared, head.apply(params, state, features)

        (self.whole, self.padded, self.shared, self.evaluated) = run(features, params)
        self.state, self.params = state, params


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in with_a_new_head_or_loss()],
)
def found(request):
    return request.param, Found(request.param)


def test_its_loss_and_gradients_are_finite_and_not_zero(found):
    name, here = found
    (value, (each, output, _)), (by_features, by_params) = here.whole
    assert each.shape == (N,)
    assert output.logits.shape == (N, K)
    assert np.isfinite(value)
    assert (not here.params) == (name in WITHOUT_PARAMETERS)
    if "second" in here.params:  # the classifier of the second stage, which this step does not reach
        by_params = by_params["first"]
    for gradient in (by_features, *jax.tree.leaves(by_params)):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_padding_changes_nothing(found):
    _, here = found
    (value, (each, _, new)), (by_features, by_params) = here.whole
    (value_p, (each_p, _, new_p)), (by_features_p, by_params_p) = here.padded
    np.testing.assert_allclose(value_p, value, rtol=F32)
    np.testing.assert_allclose(each_p[:N], each, rtol=F32, atol=F32)
    np.testing.assert_allclose(by_features_p[:N], by_features, atol=F32)
    np.testing.assert_array_equal(by_features_p[N:], 0)
    for ours, theirs in zip(jax.tree.leaves((new, by_params)), jax.tree.leaves((new_p, by_params_p)), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=10 * F32)


def test_devices_together_equal_one(found):
    _, here = found
    (value, (_, _, new)), (by_features, by_params) = here.whole
    (value_s, by_params_s), _, new_s, by_features_s = here.shared
    np.testing.assert_allclose(value_s, np.broadcast_to(value, DEVICES), rtol=F32)
    np.testing.assert_allclose(by_features_s.reshape(N, DIM), by_features, atol=10 * F32)
    for ours, theirs in zip(jax.tree.leaves((new, by_params)), jax.tree.leaves((new_s, by_params_s)), strict=True):
        np.testing.assert_allclose(theirs, np.broadcast_to(ours, theirs.shape), atol=10 * F32)


def test_evaluation_leaves_the_state_alone(found):
    _, here = found
    output, after = here.evaluated
    assert np.isfinite(output.logits).all()
    for ours, theirs in zip(jax.tree.leaves(here.state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_has_a_title_of_its_own():
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)
