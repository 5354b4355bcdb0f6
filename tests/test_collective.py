"""Sums over the axes that `over` has bound: under every map, within clients, and in separately compiled functions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nc_jax import collective, heads
from nc_jax.collective import all_rows, all_sum, over
from nc_jax.losses import cross_entropy

DEVICES, ROWS = 8, 3
VALUES = jnp.arange(1.0, DEVICES + 1)
SPLIT = PartitionSpec("devices")


def mesh():
    return Mesh(np.array(jax.devices()), ("devices",))


def shard_mapped(function):
    """As `jax.vmap`: the first axis is that of the devices."""

    def one(*arrays):
        return jax.tree.map(lambda array: array[None], function(*(array[0] for array in arrays)))

    return jax.jit(jax.shard_map(one, mesh=mesh(), in_specs=SPLIT, out_specs=SPLIT))


MAPS = {
    "vmap": partial(jax.vmap, axis_name="devices"),
    "pmap": partial(jax.pmap, axis_name="devices"),
    "shard_map": shard_mapped,
}
under_every_map = pytest.mark.parametrize("mapped", MAPS.values(), ids=MAPS)


def test_alone_nothing_is_to_be_done():
    tree = {"a": VALUES}
    assert all_sum(tree) is tree
    assert all_rows(VALUES, jnp.arange(DEVICES)) is VALUES
    assert collective.device() == (0, 1)
    assert collective.axes() == ()


@under_every_map
def test_sums_are_those_of_all_devices(mapped):
    def bound(value):
        with over("devices"):
            return all_sum({"sum": value, "square": value**2}), jnp.stack(collective.device())

    sums, places = mapped(bound)(VALUES)
    np.testing.assert_array_equal(sums["sum"], np.full(DEVICES, 36))
    np.testing.assert_array_equal(sums["square"], np.full(DEVICES, 204))
    np.testing.assert_array_equal(places, [[device, DEVICES] for device in range(DEVICES)])


@under_every_map
def test_an_axis_may_be_named_in_the_call(mapped):
    np.testing.assert_array_equal(mapped(lambda value: all_sum(value, "devices"))(VALUES), np.full(DEVICES, 36))


@under_every_map
def test_rows_come_in_the_order_of_the_whole_batch(mapped):
    places = np.random.default_rng(0).permutation(DEVICES * ROWS)
    rows = np.stack([places, 10 * places], axis=1).astype(np.float32)

    def bound(rows, places):
        with over("devices"):
            return all_rows(rows, places)

    found = mapped(bound)(rows.reshape(DEVICES, ROWS, 2), places.reshape(DEVICES, ROWS))
    everyone = np.stack([np.arange(24), 10 * np.arange(24)], axis=1)
    np.testing.assert_array_equal(found, np.broadcast_to(everyone, (DEVICES, 24, 2)))


def test_gradients_pass_through_the_rows_of_others():
    """Each device weighs all rows by its own weights: a row's slope is the sum over the devices."""
    places = np.arange(DEVICES * ROWS).reshape(DEVICES, ROWS)[::-1]
    weights = np.random.default_rng(0).normal(size=(DEVICES, DEVICES * ROWS)).astype(np.float32)

    def slope(rows, places, weights):
        with over("devices"):
            return jax.grad(lambda rows: jnp.vdot(weights, all_rows(rows, places)))(rows)

    found = jax.pmap(slope, axis_name="devices")(np.zeros((DEVICES, ROWS), np.float32), places, weights)
    np.testing.assert_allclose(found, weights.sum(axis=0)[places], atol=1e-5)


@under_every_map
def test_a_client_among_many_sums_over_nobody(mapped):
    """A step of one client, vmapped over clients, on devices that then share what the clients found."""

    def step(value):
        with over():
            return all_sum(value), jnp.stack(collective.device())

    def round_of(clients):
        with over("devices"):
            found, places = jax.vmap(step)(clients)
            return found, places, all_sum(jnp.sum(found))

    clients = jnp.arange(2.0 * DEVICES).reshape(DEVICES, 2)
    found, places, total = mapped(round_of)(clients)
    np.testing.assert_array_equal(found, clients)
    np.testing.assert_array_equal(places, np.broadcast_to([0, 1], (DEVICES, 2, 2)))
    np.testing.assert_array_equal(total, np.full(DEVICES, 120))


# Compiled loops, gradients and inner functions are parts of the split program, too.
SPLIT_PROGRAMS = {
    "pmap": jax.pmap(lambda value: all_sum(value), axis_name="devices"),
    "pmap, jit, scan": jax.pmap(lambda value: jax.jit(jax.grad(lambda v: jax.lax.scan(body, v, v[None])[0]))(value)),
    "shard_map": shard_mapped(all_sum),
}


@pytest.mark.parametrize("name", SPLIT_PROGRAMS)
def test_a_forgotten_binding_is_no_secret(name):
    with pytest.warns(UserWarning, match=r"over\('.*'\), or over\(\) if each device has a batch of its own"):
        SPLIT_PROGRAMS[name](VALUES)


@pytest.mark.parametrize("name", ["pmap", "shard_map"])
def test_devices_may_work_for_themselves(name):
    def alone(value):
        with over():
            return all_sum(value)

    np.testing.assert_array_equal(MAPS[name](alone)(VALUES), VALUES)
    with over():
        np.testing.assert_array_equal(MAPS[name](lambda value: all_sum(value))(VALUES), VALUES)


def test_the_binding_ends_with_its_block():
    with over("devices"):
        with over():
            assert collective.axes() == ()
        assert collective.axes() == ("devices",)
    assert collective.axes() == ()
    assert collective.axes("rows") == ("rows",)
    assert collective.axes(("rows", "columns")) == ("rows", "columns")


# --- Functions that JAX traces once and keeps. ---


@jax.custom_vjp
def differentiated_by_hand(value):
    return all_sum(value)


differentiated_by_hand.defvjp(lambda value: (all_sum(value), None), lambda _, slope: (slope,))


def body(carry, value):
    return carry + all_sum(value), None


def summed(value):
    return all_sum(value)


jitted, remembered = jax.jit(summed), jax.checkpoint(summed)
KEPT = {
    "jit": jitted,
    "jit in jit": jax.jit(lambda value: jitted(value)),
    "scan": lambda value: jax.lax.scan(body, 0.0, value[None])[0],
    "map": lambda value: jax.lax.map(summed, value[None])[0],
    "cond": lambda value: jax.lax.cond(value > 0, summed, summed, value),
    "checkpoint": remembered,
    "custom derivative": differentiated_by_hand,
    "gradient": jax.grad(lambda value: summed(value) ** 2 / 2),
}


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_a_function_that_is_kept_is_traced_anew_under_another_binding(function):
    """If the binding were not part of JAX's cache keys, the second call would return the result of the first."""

    def bound(*names):
        def call(value):
            with over(*names):
                return function(value)

        return jax.vmap(call, axis_name="devices")(VALUES)

    alone, together = VALUES, jnp.full(DEVICES, 36.0)
    if function is KEPT["gradient"]:  # the cotangents of all devices' sums come back
        together = DEVICES * together
    for names, expected in [((), alone), (("devices",), together), ((), alone)]:
        np.testing.assert_array_equal(bound(*names), expected)
    np.testing.assert_array_equal(jnp.stack([function(value) for value in VALUES[:2]]), VALUES[:2])


# --- A head in programs of one's own. ---

K, DIM, N = 4, 6, 24


@pytest.fixture(scope="module")
def problem():
    """A nearest head, weights of a layer below it, a batch sorted by class, and the step on one device."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) // (N // K)  # no device has seen more than two classes
    inputs = rng.normal(size=(K, DIM))[labels] + 0.5 * rng.normal(size=(N, DIM))
    head = heads.nearest(K)
    params, state = head.init(jax.random.key(0), DIM)

    def step(weights, state, inputs, labels, axis_name=None):
        def loss(weights):
            output, after = head.apply(params, state, inputs @ weights, labels, train=True, axis_name=axis_name)
            picked = jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], axis=1)
            return -jnp.sum(picked), after

        return jax.grad(loss, has_aux=True)(weights)

    weights = rng.normal(size=(DIM, DIM)).astype(np.float32)
    batch = inputs.astype(np.float32), labels.astype(np.int32)
    return step, weights, state, batch, jax.jit(step)(weights, state, *batch)


def assert_same(found, expected):
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4), found, expected)


@pytest.mark.slow
def test_a_head_takes_the_axis_of_a_pmap_of_ones_own(problem):
    step, weights, state, batch, expected = problem

    def on_device(weights, state, inputs, labels):
        gradient, after = step(weights, state, inputs, labels, "rows")
        return jax.lax.psum(gradient, "rows"), after

    split = [array.reshape(DEVICES, -1, *array.shape[1:]) for array in batch]
    mapped = jax.pmap(on_device, axis_name="rows", in_axes=(None, None, 0, 0), out_axes=None)
    assert_same(mapped(weights, state, *split), expected)


@pytest.mark.slow
def test_a_head_needs_no_axis_in_a_jit_over_sharded_arrays(problem):
    step, weights, state, batch, expected = problem
    inputs, labels = jax.device_put(batch, NamedSharding(mesh(), SPLIT))
    everywhere = jax.device_put((weights, state), NamedSharding(mesh(), PartitionSpec()))
    found = jax.jit(step)(*everywhere, inputs, labels)
    assert len(inputs.sharding.device_set) == DEVICES
    assert_same(found, expected)


# --- The recipe of the module's docstring, as written there. ---


def written_step(head):
    """The step of the docstring, for a linear layer below a head."""

    def step(params, state, batch):
        inputs, labels = batch

        def loss(params):
            output, after = head.apply({}, state, inputs @ params, labels, train=True)
            losses = cross_entropy(output.logits, labels)
            return jax.lax.pmean(jnp.mean(losses), "devices"), after

        with collective.over("devices"):
            gradients, state_after = jax.grad(loss, has_aux=True)(params)
        return jax.lax.pmean(gradients, "devices"), state_after

    return step


RECIPES = {
    "pmap": lambda step: jax.pmap(step, axis_name="devices", in_axes=(None, None, 0), out_axes=None),
    **{
        f"shard_map, check_vma={check}": lambda step, check=check: jax.jit(
            jax.shard_map(
                step,
                mesh=mesh(),
                in_specs=(PartitionSpec(), PartitionSpec(), SPLIT),
                out_specs=PartitionSpec(),
                check_vma=check,
            )
        )
        for check in (True, False)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_loop_of_ones_own_finds_the_gradient_of_the_whole_batch(problem, name):
    _, weights, state, (inputs, labels), _ = problem
    head = heads.nearest(K)

    def loss(weights):
        output, after = head.apply({}, state, inputs @ weights, labels, train=True)
        return jnp.mean(cross_entropy(output.logits, labels)), after

    expected = jax.jit(jax.grad(loss, has_aux=True))(weights)
    batch = inputs, labels
    if name == "pmap":
        batch = jax.tree.map(lambda array: array.reshape(DEVICES, -1, *array.shape[1:]), batch)
    assert_same(RECIPES[name](written_step(head))(weights, state, batch), expected)


@pytest.mark.parametrize("check", [True, False])
def test_own_makes_gradients_those_of_one_device(check):
    """Under the replication check JAX would add them up over the devices."""

    def slope(weight, value):
        with over("devices"):
            return jax.grad(lambda weight: jnp.sum(weight * value))(collective.own(weight))[None]

    mapped = jax.shard_map(slope, mesh=mesh(), in_specs=(PartitionSpec(), SPLIT), out_specs=SPLIT, check_vma=check)
    np.testing.assert_array_equal(jax.jit(mapped)(1.0, VALUES), VALUES)


def test_own_changes_nothing_elsewhere():
    assert collective.own(VALUES) is VALUES
    with over():
        assert collective.own(VALUES) is VALUES
    found = jax.vmap(lambda value: _bound_own(value), axis_name="devices")(VALUES)
    np.testing.assert_array_equal(found, VALUES)


def _bound_own(value):
    with over("devices"):
        return collective.own(value)
