"""From settings to compiled steps: what every comparison trains with."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nc_jax.data import LabelledArrays
from nc_jax.heads import Head
from nc_jax.manifolds import Stiefel
from nc_jax.methods import Setting, method
from nc_jax.models import Classifier, HeadModule
from nc_jax.optim import on_manifold
from nc_jax.streams import Stream, steps_per_epoch
from nc_jax.study.backbones import BackboneOptions, loader, make_backbone, slower_parts
from nc_jax.study.data import Data, DataOptions, load
from nc_jax.study.planning import Plan
from nc_jax.study.settings import Comparison, Group, expand
from nc_jax.training import StepOptions, Trainer, agd_init, make_optimizer, scaled_rate

SPLITS = 2  # of the training set, on which a learning rate is judged


def make_trainer(group: Group, data: Data) -> tuple[Trainer, Stream]:
    """Return the compiled steps of a group, and its stream.

    Args:
        group: the group (row of the table) to train.
        data: the data set to train on.

    Raises:
        ValueError: if a setting cannot work.
    """
    settings, chosen = group.settings, method(group.method)
    loop, options = settings.loop, settings.optimizer
    epoch_steps = steps_per_epoch(len(data.train), loop.batch_size)
    setting = Setting(
        num_classes=data.num_classes,
        epochs=loop.epochs,
        epoch_steps=epoch_steps,
        num_examples=len(data.train),
        class_counts=tuple(data.train.class_counts().tolist()) if isinstance(data.train, LabelledArrays) else None,
        tree=data.tree,
        head=settings.head,
        hierarchy=settings.hierarchy,
    )
    head = chosen.head(setting)
    agd = options.name == "agd"
    backbone = make_backbone(settings.backbone, size=data.size, num_classes=data.num_classes, only_matrices=agd)
    optimizer = make_optimizer(options, epochs=loop.epochs, epoch_steps=epoch_steps)
    for part in slower_parts(settings.backbone):
        optimizer = scaled_rate(optimizer, part, settings.backbone.rate_factor)
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
    trainer = Trainer(
        model,
        optimizer,
        loop,
        step=step,
        initialise=agd_init if agd else _loader(settings.backbone),
    )
    return trainer, chosen.stream(setting, trainer.stream(data.train))


@functools.cache
def _loader(options: BackboneOptions) -> Callable[[Any, Any], Any] | None:
    return loader(options)


@functools.lru_cache(maxsize=2)  # a data set may be large
def _load(options: DataOptions, flat: bool) -> Data:
    return load(options, flat=flat)


def data_of(settings: Comparison) -> Data:
    """Return the data set of some settings: as vectors for an MLP."""
    return _load(settings.data, settings.backbone.name == "mlp")


def check(config: Comparison) -> None:
    """Build every group, without computing anything, so that a mistake is found before anything is written.

    Raises:
        ValueError: if a setting cannot work.
    """
    for group in itertools.chain(*expand(config).values()):
        data = data_of(group.settings)
        trainer, _ = make_trainer(group, data)
        jax.eval_shape(lambda trainer=trainer, data=data: trainer.init(data.train, 0))
        if group.settings.rates and not isinstance(data.train, LabelledArrays):
            raise ValueError(
                f"learning rates are chosen on sets in memory; for {group.settings.data.name} give one, and --rates "
                "without a value"
            )


def plan(config: Comparison) -> Plan:
    """Say how many runs and steps a comparison takes."""
    groups = [group for case in expand(config).values() for group in case]
    runs = sum(group.settings.seeds for group in groups)
    judged = sum(len(group.settings.rates) * SPLITS for group in groups)

    def steps() -> float:
        total = 0.0
        for group in groups:
            epoch_steps = steps_per_epoch(len(data_of(group.settings).train), group.settings.loop.batch_size)
            # A learning rate is judged after training on three quarters of the training set.
            count = group.settings.seeds + len(group.settings.rates) * SPLITS * 3 / 4
            total += count * epoch_steps * group.settings.loop.epochs
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
    on = {name: Stiefel(*params["head"][name].shape) for name in head.manifolds}
    heads = {name: on.get(name) for name in params["head"]}
    return on_manifold(optimizer, {**dict.fromkeys(params), "head": heads})
