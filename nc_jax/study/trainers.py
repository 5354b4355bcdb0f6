"""From settings to compiled steps: what every comparison trains with."""

from nc_jax.extras import require

require("optax", "train", __name__)

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nc_jax.data import LabelledArrays, labels_of
from nc_jax.data.clients import ClientArrays
from nc_jax.data.parts import share_of_each_class
from nc_jax.federated import Federation, Rounds
from nc_jax.federated.round import HEAD
from nc_jax.heads import Head
from nc_jax.methods import Setting, method
from nc_jax.models import Classifier, HeadModule
from nc_jax.optim import on_manifold
from nc_jax.streams import Clients, Epochs, Stream, Tasks, steps_per_epoch
from nc_jax.study.backbones import BackboneOptions, loader, make_backbone, slower_parts
from nc_jax.study.clients import spread
from nc_jax.study.data import Data, DataOptions, load
from nc_jax.study.planning import Plan
from nc_jax.study.settings import Comparison, Group, expand
from nc_jax.study.tails import tailed
from nc_jax.study.tasks import arranged, tasks_of_classes
from nc_jax.training import StepOptions, Trainer, agd_init, make_optimizer, scaled_rate

SPLITS = 2  # of the training set, on which a learning rate is judged
# A draw from all examples may leave a small class without one on either side: of two, neither is held out with a
# probability of about (3/4)^2. Classes within this factor of each other are drawn from together.
UNEQUAL = 2


def of_run(data: Data, settings: Comparison, seed: int) -> Data:
    """Return what a run trains and tests on, which may depend on its seed: a long tail, tasks, clients.

    Args:
        data: the data set.
        settings: the settings of the run's group.
        seed: seed of the run.

    Raises:
        ValueError: if the set cannot have such a tail, such tasks or such clients.
    """
    data = arranged(tailed(data, settings.tail, seed), settings.continual, seed)
    return spread(data, settings.federated, seed)


def setting_of(settings: Comparison, data: Data) -> Setting:
    """Return what methods know before training.

    Args:
        settings: the settings of a group.
        data: the data set of one run, as `of_run` returns it.
    """
    loop, options = settings.loop, settings.continual
    by_class = options.tasks > 1 and options.scenario != "domain"
    # Tasks may be in an order that depends on the seed; a long tail has the same class sizes for every seed.
    sizes = None if by_class and options.order == "seed" else data.class_sizes
    return Setting(
        num_classes=data.num_classes,
        epochs=loop.epochs,
        epoch_steps=_epoch_steps(settings, data),
        num_examples=len(data.train),
        class_counts=None if sizes is None else tuple(sizes.tolist()),
        tree=data.tree,
        head=settings.head,
        hierarchy=settings.hierarchy,
        continual=options,
        tail=settings.tail,
        uniformity=settings.uniformity,
        federated=settings.federated,
        task_of_class=tuple(tasks_of_classes(data.num_classes, options).tolist()) if by_class else None,
        task_steps=_task_steps(settings, data),
    )


def _epoch_steps(settings: Comparison, data: Data) -> int:
    """Return the optimiser steps per epoch, or per round of a client."""
    if settings.federated.clients is not None and isinstance(data.train, ClientArrays):
        return clients_stream(settings, data.train).steps
    return steps_per_epoch(-(-len(data.train) // settings.continual.tasks), settings.loop.batch_size)


def clients_stream(settings: Comparison, source: ClientArrays) -> Clients:
    """Return the rounds in which clients train apart, whatever the method makes of them.

    Args:
        settings: the settings of a group.
        source: the training examples of one run.

    Raises:
        ValueError: if a setting cannot work.
    """
    loop, options = settings.loop, settings.federated
    names = ("per_round", "local_epochs", "local_steps", "dropouts", "stragglers")
    return Clients(source, loop.batch_size, loop.epochs, **{name: getattr(options, name) for name in names})


def _task_steps(settings: Comparison, data: Data) -> tuple[int, ...] | None:
    """Return the number of steps of each task; None if there is one task, or if it may depend on the seed."""
    if data.tasks is None:
        return None
    if settings.continual.scenario != "domain" and settings.continual.order == "seed":
        # With another order, a task has other classes. It has as many examples if all classes of a task are alike, and
        # so are all tasks but a larger first one.
        sizes = data.class_sizes
        assert sizes is not None, "tasks are cut in memory"
        tasks = tasks_of_classes(data.num_classes, settings.continual)
        parts = (tasks == 0, tasks > 0) if settings.continual.shots else (tasks >= 0,)
        if any(len(set(sizes[part].tolist())) > 1 for part in parts):
            return None
    loop = settings.loop
    return _by_task(Tasks(data.train, data.tasks[0], loop.batch_size, loop.epochs), loop.epochs)


def _by_task(stream: Stream, epochs: int) -> tuple[int, ...]:
    """Return the number of steps of each task, of a stream that has some epochs of each."""
    ends = np.asarray(stream.ends)[epochs - 1 :: epochs]
    return tuple(np.diff(ends, prepend=0).tolist())


def make_stream(group: Group, data: Data) -> Stream:
    """Return which examples of a group make up which step.

    Args:
        group: the group (row of the table) to train.
        data: the data set of one run, as `of_run` returns it.

    Raises:
        ValueError: if a setting cannot work.
    """
    loop = group.settings.loop
    stream: Stream = Epochs(data.train, loop.batch_size, loop.epochs, loop.stratified)
    if data.tasks is not None:
        stream = Tasks(data.train, data.tasks[0], loop.batch_size, loop.epochs)
    if group.settings.federated.clients is not None:
        if data.tasks is not None:
            raise ValueError("clients learn one task; got --continual.tasks and --federated.clients")
        assert isinstance(data.train, ClientArrays), "spread over clients"
        stream = clients_stream(group.settings, data.train)
    found = method(group.method).stream(setting_of(group.settings, data), stream)
    if isinstance(stream, Clients) and not isinstance(found, Clients):
        raise ValueError(
            f"clients visit their examples by themselves (--federated.clients); got the method {group.method}, which "
            "chooses the examples of all steps"
        )
    return found


def make_trainer(group: Group, data: Data) -> Trainer:
    """Return the compiled steps of a group, for runs with any seed.

    With several tasks, the schedule of the learning rate begins anew with each task, in the order of the classes of
    seed 0. Where the numbers of steps depend on the order, it begins some steps early or late for other seeds.

    Args:
        group: the group (row of the table) to train.
        data: the data set to train on.

    Raises:
        ValueError: if a setting cannot work.
    """
    settings, chosen = group.settings, method(group.method)
    data = of_run(data, settings, seed=0)
    loop, options, setting = settings.loop, settings.optimizer, setting_of(settings, data)
    head = chosen.head(setting)
    agd = options.name == "agd"
    backbone = make_backbone(settings.backbone, size=data.size, num_classes=data.num_classes, only_matrices=agd)
    stream = make_stream(group, data)
    if isinstance(stream, Clients):
        epoch_steps = stream.steps
    else:
        epoch_steps = tuple(-(-steps // loop.epochs) for steps in _by_task(stream, loop.epochs))
    optimizer = make_optimizer(options, epochs=loop.epochs, epoch_steps=epoch_steps)
    for part in slower_parts(settings.backbone):
        optimizer = scaled_rate(optimizer, part, settings.backbone.rate_factor)
    optimizer = chosen.optimizer(setting, optimizer)
    step = StepOptions(
        augment=data.augment,
        preprocess=data.preprocess,
        loss=chosen.loss(setting),
        extensions=chosen.extensions(setting),
    )
    model = Classifier(backbone, HeadModule(head))
    if head.manifolds:
        example = data.train.take(np.zeros(1, np.int64)).inputs
        inputs = example if data.preprocess is None else data.preprocess(jnp.asarray(example))
        optimizer = on_heads(optimizer, head, jax.eval_shape(model.init, jax.random.key(0), inputs)["params"])
    initialise = agd_init if agd else _loader(settings.backbone)
    rounds = _rounds(settings, chosen.federation(setting), head, stream) if isinstance(stream, Clients) else None
    return Trainer(model, optimizer, loop, step=step, initialise=initialise, rounds=rounds)


def _rounds(settings: Comparison, federation: Federation, head: Head, stream: Clients) -> Rounds:
    options = settings.federated
    if head.manifolds and HEAD not in federation.personal:
        raise ValueError(
            f"the mean of clients' models must be a model; got the head {head.name!r}, "
            f"whose {', '.join(head.manifolds)} must stay on a manifold"
        )
    return Rounds(
        federation,
        clients=stream.clients_per_round,
        local_batch=stream.local_batch,
        keep_optimizer=options.keep_optimizer,
        schedule_steps=stream.steps,  # of seed 0, as the schedule itself; with other seeds, clients have other sizes
        at_once=options.at_once,
        pool=None if head.pool is None else head,
    )


def stream_of(group: Group) -> Stream:
    """Return the stream of a group's first seed, from which the epochs and steps of its runs are counted."""
    return make_stream(group, of_run(data_of(group.settings), group.settings, seed=0))


def epochs_of(group: Group) -> int:
    """Return the number of epochs of a run, those of all tasks together. Only tasks need the data set to be counted."""
    settings = group.settings
    return settings.loop.epochs if settings.continual.tasks == 1 else len(stream_of(group).ends)


@functools.cache
def _loader(options: BackboneOptions) -> Callable[[Any, Any], Any] | None:
    return loader(options)


@functools.lru_cache(maxsize=2)  # a data set may be large
def _load(options: DataOptions, flat: bool) -> Data:
    return load(options, flat=flat)


def data_of(settings: Comparison) -> Data:
    """Return the data set of some settings: as vectors for an MLP."""
    return _load(settings.data, settings.backbone.name == "mlp")


def held_out_parts(data: Data, settings: Comparison) -> list[Data]:
    """Return `SPLITS` draws of a quarter of the training set to test on, each with the rest to train on.

    It is a quarter of every class (at least one of its examples, but not its only one) where the draws need the same
    class sizes: for a long tail and for a base session, and where one class has more than `UNEQUAL` times as many
    examples as another.

    Args:
        data: the data set.
        settings: the settings of a group.

    Raises:
        ValueError: if the training set is not in memory.
    """
    labels = labels_of(data.train)
    counts = np.ones(1) if labels is None else np.unique(labels, return_counts=True)[1]
    alike = settings.continual.base is not None or settings.tail.ratio is not None
    if labels is not None and (alike or counts.max() > UNEQUAL * counts.min()):
        draws = [share_of_each_class(labels, 1 / 4, seed=split) for split in range(SPLITS)]
    else:
        draws = [np.random.default_rng(split).permutation(len(data.train)) % 4 == 0 for split in range(SPLITS)]
    return [data.held_out(mask) for mask in draws]


def check(config: Comparison) -> None:
    """Build every group, without computing anything, so that a mistake is found before anything is written.

    Raises:
        ValueError: if a setting cannot work.
    """
    for group in itertools.chain(*expand(config).values()):
        data = data_of(group.settings)
        trainer = make_trainer(group, data)
        trainer.check_stream(stream_of(group))
        train_set = of_run(data, group.settings, seed=0).train
        jax.eval_shape(lambda trainer=trainer, train_set=train_set: trainer.init(train_set, 0))
        chooses = bool(group.settings.candidates())
        if chooses and not isinstance(data.train, LabelledArrays):
            raise ValueError(
                f"learning rates are chosen on sets in memory; for {group.settings.data.name} give one, and --rates "
                "without a value"
            )
        if chooses:
            part = of_run(held_out_parts(data, group.settings)[0], group.settings, seed=0)
            trainer.check_stream(make_stream(group, part))


def plan(config: Comparison) -> Plan:
    """Say how many runs and steps a comparison takes."""
    groups = [group for case in expand(config).values() for group in case]
    runs = sum(group.settings.seeds for group in groups)
    judged = sum(len(group.settings.candidates()) * SPLITS for group in groups)

    def steps() -> float:
        total = 0.0
        for group in groups:
            # A learning rate is judged after training on three quarters of the training set.
            runs = group.settings.seeds + len(group.settings.candidates()) * SPLITS * 3 / 4
            stream = stream_of(group)
            steps = stream.clients_per_round * stream.steps if isinstance(stream, Clients) else 1
            total += runs * stream.ends[-1] * steps
        return float(round(total))

    rates = f" and {judged} short ones to choose learning rates" if judged else ""
    return Plan(f"{runs} runs{rates}", steps, "training steps")


def on_heads(optimizer: optax.GradientTransformation, head: Head, params: Any) -> optax.GradientTransformation:
    """Keep parameters of a head that live on a manifold there, whatever the optimiser does.

    Args:
        optimizer: optimiser of all parameters of a `Classifier`.
        head: head of the classifier.
        params: parameters of the classifier, or their shapes.
    """
    if not head.manifolds:
        return optimizer
    on = {name: manifold(len(params["head"][name])) for name, manifold in head.manifolds.items()}
    heads = {name: on.get(name) for name in params["head"]}
    return on_manifold(optimizer, {**dict.fromkeys(params), "head": heads})
