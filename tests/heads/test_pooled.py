"""The pooled head: class sums of clients give the frame that all their features together would give."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_federated import LOCAL_BATCH, after_rounds, batches_of, small_model, spread, trainer_of

from nc_jax import heads
from nc_jax.federated import Federation
from nc_jax.frames import LearnedTemplate, simplex_template
from nc_jax.models import HeadModule
from nc_jax.solvers import Status, TrustRegionOptions
from nc_jax.streams import Clients

K, DIM = 4, 6
ETF = (K * np.eye(K) - 1) / (K - 1)
SOLVED = 1e-5  # float32: the inner problem's condition times rounding
F32 = 1e-6


def features_of(count, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, K, count)
    centres = np.random.default_rng(9).normal(size=(K, DIM))
    return jnp.asarray(centres[labels] + 0.3 * generator.normal(size=(count, DIM)), jnp.float32), jnp.asarray(labels)


def changes_of(head, params, server, parts):
    """Return the sum over clients of what their steps change in the head's state."""
    total = None
    for batches in parts:
        state = server
        for features, labels in batches:
            _, state = head.apply(params, state, features, labels, train=True)
        change = jax.tree.map(jnp.subtract, state, server)
        total = change if total is None else jax.tree.map(jnp.add, total, change)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"radius": 2.0}, {"centre": "classes", "radius": 1.0}], ids=str)
def test_the_pool_of_clients_is_the_nearest_heads_own_update_on_all_their_features(options):
    head, whole = heads.pooled(K, **options), heads.nearest(K, **options)
    params, server = head.init(jax.random.key(0), DIM)
    _, expected = whole.init(jax.random.key(0), DIM)
    for round_number in range(3):
        features, labels = features_of(60, seed=round_number)
        # Three clients of unequal size; the first one makes two steps.
        parts = [
            [(features[:8], labels[:8]), (features[8:13], labels[8:13])],
            [(features[13:20], labels[13:20])],
            [(features[20:], labels[20:])],
        ]
        server, solution = head.pool(server, changes_of(head, params, server, parts))
        _, expected = whole.apply({}, expected, features, labels, train=True)
        assert int(solution.status) == Status.CONVERGED
        for name, value in expected.items():
            np.testing.assert_allclose(server[name], value, atol=SOLVED, err_msg=name)
        assert not server["sums"].any()
        assert not server["seen"].any()
        np.testing.assert_allclose(server["frame"].T @ server["frame"], ETF, atol=SOLVED)


@pytest.mark.slow
def test_a_class_that_no_client_saw_keeps_its_mean():
    head = heads.pooled(K)
    params, server = head.init(jax.random.key(0), DIM)
    features, labels = features_of(60)
    server, _ = head.pool(server, changes_of(head, params, server, [[(features, labels)]]))
    seen = labels != 2
    found, solution = head.pool(server, changes_of(head, params, server, [[(features[seen] + 1, labels[seen])]]))
    assert int(solution.status) == Status.CONVERGED
    np.testing.assert_array_equal(found["class_means"][:, 2], server["class_means"][:, 2])
    assert bool((found["class_means"][:, 1] != server["class_means"][:, 1]).any())
    np.testing.assert_allclose(found["frame"].T @ found["frame"], ETF, atol=SOLVED)


@pytest.mark.slow
def test_a_round_without_features_leaves_the_means_alone():
    head = heads.pooled(K)
    params, server = head.init(jax.random.key(0), DIM)
    features, labels = features_of(60)
    server, _ = head.pool(server, changes_of(head, params, server, [[(features, labels)]]))
    found, _ = head.pool(server, jax.tree.map(jnp.zeros_like, server))
    for name in ("class_means", "global_mean", "updates", "counts", "steps"):
        np.testing.assert_array_equal(found[name], server[name])


@pytest.mark.slow
def test_padding_is_not_in_the_sums_and_the_frame_rests_in_a_step():
    head = heads.pooled(K, radius=2.0)
    params, server = head.init(jax.random.key(0), DIM)
    features, labels = features_of(12)
    mask = jnp.arange(12) < 9
    _, found = head.apply(params, server, features.at[9:].set(1e3), labels, train=True, mask=mask)
    unit = 2 * features[:9] / jnp.linalg.norm(features[:9], axis=1, keepdims=True)
    sums = jnp.stack([unit[labels[:9] == k].sum(axis=0) for k in range(K)], axis=1)
    np.testing.assert_allclose(found["sums"], sums, atol=10 * F32)
    assert found["seen"].tolist() == np.bincount(labels[:9], minlength=K).tolist()
    for name in set(server) - {"sums", "seen"}:
        np.testing.assert_array_equal(found[name], server[name])
    output, same = head.apply(params, server, features, train=False)
    assert same is server or all(bool((same[name] == server[name]).all()) for name in server)
    np.testing.assert_array_equal(output.frame, server["frame"])


@pytest.mark.slow
def test_gradients_reach_features_through_the_logits_only():
    head = heads.pooled(K)
    params, server = head.init(jax.random.key(0), DIM)
    features, labels = features_of(12)

    def of_state(features):
        return jnp.sum(head.apply(params, server, features, labels, train=True)[1]["sums"])

    assert not jax.grad(of_state)(features).any()
    weight = jax.random.normal(jax.random.key(1), (12, K))
    found = jax.grad(lambda one: jnp.sum(weight * head.apply(params, server, one, labels, train=True)[0].logits))(
        features
    )
    by_frame = jax.grad(lambda one: jnp.sum(weight * head.apply(params, server, one, train=False)[0].logits))(features)
    np.testing.assert_allclose(found, by_frame, atol=F32)


@pytest.mark.slow
def test_rounds_pool_the_features_of_all_clients_but_of_those_that_failed():
    """The head alone is checked above; here, that rounds hand it the right sums."""
    head = heads.pooled(K, radius=1.0)
    model = small_model(HeadModule(head))
    stream = Clients(spread(), LOCAL_BATCH, rounds=1)
    # The learning rate is 0, so all features are those of the initial model.
    trainer = trainer_of(stream, optax.sgd(0.0), model=model, pool=head, at_once=2)

    def spoil(batch):
        return batch._replace(labels=np.where((batch.client == 1) & batch.mask, K, batch.labels))

    for change, lost in ((lambda batch: batch, ()), (spoil, (1,))):
        initial = trainer.init(stream.source, seed=0)
        state, (report,) = after_rounds(trainer, stream, change=change)
        rows = [batch for number, own in batches_of(stream, 0).items() if number not in lost for batch in own]
        inputs = jnp.concatenate([batch.inputs[batch.mask] for batch in rows])
        labels = jnp.concatenate([batch.labels[batch.mask] for batch in rows])
        output = model.apply({"params": initial.params, **initial.variables}, inputs)
        server = initial.variables["nearest"]["head"]
        _, applied = head.apply({}, server, output.raw_features, labels, train=True)
        expected, solution = head.pool(server, jax.tree.map(jnp.subtract, applied, server))
        for name, value in expected.items():
            np.testing.assert_allclose(state.variables["nearest"]["head"][name], value, atol=SOLVED, err_msg=name)
        assert int(report.solve_status) == int(solution.status)
        assert float(report.solve_grad_norm) < 1e-3
        assert state.clients.dropped.tolist() == [int(number in lost) for number in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("of", ["server", "clients"])
def test_the_worst_status_of_inner_problems_is_reported(of):
    """Those of the server, and those of clients that have nearest heads of their own."""
    few = {"solver": "trust_region", "trust_region": TrustRegionOptions(max_iterations=1)}
    head = heads.pooled(K, **few) if of == "server" else heads.nearest(K, **few)
    rounds = {"pool": head} if of == "server" else {"federation": Federation(personal=("head",))}
    stream = Clients(spread((3, 5)), LOCAL_BATCH, rounds=1)
    trainer = trainer_of(stream, optax.sgd(0.1), model=small_model(HeadModule(head)), **rounds)
    _, (report,) = after_rounds(trainer, stream)
    assert int(report.solve_status) == Status.ITERATION_LIMIT
    assert float(report.solve_grad_norm) > 1e-3


def test_a_template_to_train_and_missing_labels_are_refused():
    head = heads.pooled(K)
    params, server = head.init(jax.random.key(0), DIM)
    with pytest.raises(ValueError, match="a pooled head needs labels in training; got None"):
        head.apply(params, server, jnp.zeros((2, DIM)), train=True)
    learned = LearnedTemplate(lambda: {"scale": jnp.ones(())}, lambda params: simplex_template(K), (K - 1, K))
    with pytest.raises(ValueError, match="must have no parameters to train; got a LearnedTemplate"):
        heads.pooled(K, template=learned).init(jax.random.key(0), DIM)
