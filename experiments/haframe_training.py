"""Training and testing of one method on one task, for `experiments.haframe`."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Array

from experiments import setups
from experiments.haframe_methods import MethodName, MethodOptions, make, wanted_cosines
from experiments.setups import Task
from nc_jax import hierarchy
from nc_jax.data import LabelledArrays, steps_per_epoch
from nc_jax.hierarchy import LabelTree
from nc_jax.losses import conditional_risk_scores
from nc_jax.metrics import HierarchyStatistics, similarity_errors
from nc_jax.models import BatchNorm, Bottleneck, Classifier, Projection, Transformation, WithNeck
from nc_jax.training import (
    AXIS,
    Checkpoints,
    LoopOptions,
    MetricsLog,
    NonFiniteError,
    OptimizerOptions,
    ResidentSet,
    Trainer,
    make_optimizer,
    scaled_rate,
)
from nc_jax.training.optimizers import ScheduleName as RateSchedule

SPLITS = 2  # of the training set, on which a learning rate is judged


@dataclasses.dataclass(frozen=True)
class TrainingOptions(MethodOptions):
    """Settings of the network and its training.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples per step.
        learning_rate: of SGD, its highest; where learning rates to choose from are given, it plays no part.
        momentum: of SGD.
        weight_decay: of SGD.
        clip_norm: gradients longer than this are scaled to it; None leaves them.
        schedule: of the learning rate.
        backbone_rate: learning rate of what is `slow`, as a share of the rest's.
        slow: "backbone", with the projection of "type2" if there is one, or "all" but the classifier.
        backbone_checkpoint: folder of Orbax checkpoints of `nc_jax.training`, from whose newest one the backbone's
            parameters are taken; batch statistics are estimated anew.
        model: "mlp", or a network of `experiments.setups`.
        width_multiplier: of networks other than the MLP.
        hidden: of the MLP.
        dim: the MLP's feature dimension; K - 1 is enough.
        neck: what stands between backbone and head: "none"; "norm", batch normalisation; "type1", batch normalisation,
            Linear, again and ELU; "type2", a projection on K channels and the transformation layer; "transformation",
            the latter alone.
        neck_dim: width of "type1".
        per_class: training images to keep of each class; None keeps all.
        augmentation: as in `experiments.setups.load`.
        train_crop: as there.
        test_crop: as there.
        data_dir: where TFDS keeps prepared data, and folders of images are looked for.
        devices: use only so many of the local devices; None uses all.
    """

    epochs: int = 20  # the prototype of issue 7
    batch_size: int = 64  # Liang and Davis (2023), CIFAR-100 and FGVC-Aircraft
    learning_rate: float = 1.6  # what cross-entropy chooses on glyphs
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # without, one in ten runs of cross-entropy on glyphs diverged
    schedule: RateSchedule = "cosine"  # Liang and Davis (2023)
    backbone_rate: float = 1.0
    slow: Literal["backbone", "all"] = "backbone"
    backbone_checkpoint: Path | None = None
    model: str = "mlp"
    width_multiplier: float = 1.0
    hidden: tuple[int, ...] = (256, 256)
    dim: int = 128
    # Without it an MLP's features keep a large common part, orthogonal to the frame, which the cosine loss, whose
    # gradient falls with their length, does not take away: mean error of the cosines 0.45 on glyphs, and 0.10 with it.
    neck: Literal["none", "norm", "type1", "type2", "transformation"] = "norm"
    neck_dim: int = 600  # Garg et al. (2022)
    per_class: int | None = None
    augmentation: str = "none"
    train_crop: setups.TrainCrop = "random"
    test_crop: setups.TestCrop = "centre"
    data_dir: str | None = None
    devices: int | None = None


class Results:
    """What finished runs reached, a JSON line each, so that a resumed experiment trains none again.

    Attributes:
        path: of the file.
        rows: by the name of the run.
    """

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[row["run"]] = row["found"]

    def add(self, name: str, found: dict[str, Any]) -> None:
        """Write one more."""
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"run": name, "found": found}) + "\n")
        self.rows[name] = found


def load(config: TrainingOptions, dataset: str) -> Task:
    """Return a data set."""
    return setups.load(
        dataset,
        config.data_dir,
        flat=config.model == "mlp",
        per_class=config.per_class,
        augmentation=config.augmentation,
        train_crop=config.train_crop,
        test_crop=config.test_crop,
    )


def make_trainer(config: TrainingOptions, method: MethodName, task: Task, tree: LabelTree) -> Trainer:
    """Return the compiled steps of a method; what differs between them is the head and the loss."""
    count = task.train.num_classes
    epoch_steps = steps_per_epoch(len(task.train), config.batch_size)
    head, loss = make(method, config, tree, epochs=config.epochs, epoch_steps=epoch_steps)
    backbone = setups.make_backbone(
        config.model, size=task.size, hidden=config.hidden, dim=config.dim, width_multiplier=config.width_multiplier
    )
    necks: dict[str, tuple[Any, ...]] = {
        "none": (),
        "norm": (BatchNorm(axis_name=AXIS),),
        "type1": (Bottleneck(config.neck_dim, axis_name=AXIS),),
        "type2": (Projection(count), Transformation(axis_name=AXIS)),
        "transformation": (Transformation(axis_name=AXIS),),
    }
    path = "backbone/backbone" if necks[config.neck] else "backbone"
    model = Classifier(WithNeck(backbone, necks[config.neck]) if necks[config.neck] else backbone, head)
    rate = OptimizerOptions(
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        schedule=config.schedule,
    )
    optimizer = make_optimizer(rate, epochs=config.epochs, epoch_steps=epoch_steps)
    if config.backbone_rate != 1:
        slow = [path, "backbone/necks_0"] if config.neck == "type2" else [path]
        for part in ["backbone"] if config.slow == "all" else slow:
            optimizer = scaled_rate(optimizer, part, config.backbone_rate)
    loop = LoopOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        evaluate_every=config.epochs,
        checkpoint_every=max(config.epochs // 2, 1),
        keep_checkpoints=1,
        step=dataclasses.replace(task.step, loss=loss),
    )
    return Trainer(
        model,
        optimizer,
        loop,
        devices=jax.local_devices()[: config.devices],
        initialise=None if config.backbone_checkpoint is None else _loader(config.backbone_checkpoint, path),
    )


def train(
    config: TrainingOptions,
    trainer: Trainer,
    method: MethodName,
    task: Task,
    tree: LabelTree,
    directory: Path,
    log: MetricsLog,
    seed: int,
) -> dict[str, Any]:
    """Train one method with one seed; return what it reached, over the whole test set."""
    name = f"{method}-seed{seed}"
    trained = trainer.fit(task.train, task.test, seed=seed, run=name, directory=directory, log=log)
    distances = jnp.asarray(tree.distances())
    sums = HierarchyStatistics.init(tree.height), HierarchyStatistics.init(tree.height)
    for output, labels in trainer.outputs(trained.state, task.test):
        batch = _statistics(output.logits, labels, distances, tree.height)
        sums = tuple(one.merge(other) for one, other in zip(sums, batch, strict=True))
    found: dict[str, Any] = {}
    names = [method] if method not in ("ce", "haframe") else [method, {"ce": "crm", "haframe": "haframe+crm"}[method]]
    wanted = jnp.asarray(wanted_cosines(config, tree.distances()), jnp.float32)
    errors = similarity_errors(trained.statistics.means, wanted, trained.statistics.present)
    for title, part in zip(names, sums, strict=False):
        metrics = {key: float(value) for key, value in part.compute().items()}
        shares = (part.histogram / jnp.sum(part.histogram)).tolist()
        found[title] = metrics | {"cosine_error": float(errors["mean"]), "histogram": shares}
    vectors = np.asarray(trained.statistics.means)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
    gamma = trained.state.params.get("head", {}).get("template", {}).get("log_gamma")
    if gamma is not None:
        found[method]["gamma"] = float(jnp.exp(gamma))
    return found | {"mean_cosines": np.round(units.T @ units, 3).tolist() if len(units.T) <= 200 else []}


@partial(jax.jit, static_argnames="height")
def _statistics(
    logits: Array, labels: Array, distances: Array, height: int
) -> tuple[HierarchyStatistics, HierarchyStatistics]:
    """By the logits, and by the conditional risk."""
    rank = lambda scores: HierarchyStatistics.from_batch(scores, labels, distances, max_distance=height)  # noqa: E731
    return rank(logits), rank(conditional_risk_scores(logits, distances))


def choose_rate(
    config: TrainingOptions,
    rates: tuple[float, ...],
    method: MethodName,
    task: Task,
    tree: LabelTree,
    directory: Path,
    results: Results,
) -> float:
    """Return the learning rate whose predictions lie nearest to the truth on images held out of the training set.

    Each rate trains on three quarters of the training set and is judged on the last, for `SPLITS` draws of it. A rate
    at which training diverges is the worst.

    Args:
        config: of the training; its learning rate plays no part.
        rates: to choose from.
        method: as elsewhere.
        task: its test set plays no part.
        tree: as elsewhere.
        directory: of the logs and checkpoints.
        results: where results are looked up and added, so that a resumed experiment trains none again.

    Raises:
        NonFiniteError: if training diverges at every rate.
    """
    draws = [np.random.default_rng(split).permutation(len(task.train)) % 4 == 0 for split in range(SPLITS)]
    parts = [task._replace(train=task.train.subset(~held_out), test=task.train.subset(held_out)) for held_out in draws]
    scores: dict[float, float] = {}
    for rate in rates:
        trainer = make_trainer(dataclasses.replace(config, learning_rate=rate), method, parts[0], tree)
        names = [f"{directory.name}/{method}-rate{rate:g}-split{split}" for split in range(SPLITS)]
        for split, (name, part) in enumerate(zip(names, parts, strict=True)):
            if name not in results.rows:
                below = directory / "rates" / f"{rate:g}"
                results.add(name, _judge(config, trainer, method, part, tree, below, split))
        distances = [results.rows[name]["ahd@1"] for name in names]
        scores[rate] = float(np.mean([np.inf if distance is None else distance for distance in distances]))
        # A process cannot hold the programs of all rates of all methods: LLVM runs out of memory maps.
        jax.clear_caches()
    best = min(rates, key=lambda rate: scores[rate])
    if not np.isfinite(scores[best]):
        raise NonFiniteError(f"training of {method} must converge at one of the learning rates {rates}; got none")
    return best


def _judge(
    config: TrainingOptions,
    trainer: Trainer,
    method: MethodName,
    part: Task,
    tree: LabelTree,
    directory: Path,
    split: int,
) -> dict[str, float | None]:
    """Train once on a part of the training set; return what it reached on the rest, None if it diverged."""
    keys = ("top1", "ahd@1")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with MetricsLog(directory) as log:
            found = train(config, trainer, method, part, tree, directory, log, split)[method]
    except NonFiniteError:
        return dict.fromkeys(keys)
    return {key: found[key] for key in keys}


def flat_tree(task: Task) -> LabelTree:
    """Return the tree in which all classes are equally far apart."""
    names = task.train.class_names
    return hierarchy.from_nested({"root": list(names)}).ordered(names)


def confusion_tree(config: TrainingOptions, task: Task) -> LabelTree:
    """Cluster the classes by what cross-entropy confuses on one half of the training set after learning the other.

    Complete linkage of 1 - (C + C^T) / 2, C the mean predicted probabilities per class; the test set plays no part.
    (Average linkage makes one large cluster of the digits and two of one class: all these distances are close to 1.)
    """
    train_set: LabelledArrays = task.train
    count = train_set.num_classes
    confusion = np.zeros((count, count))
    halves = np.random.default_rng(0).permutation(len(train_set)) % 2
    for half in (0, 1):
        part = task._replace(train=train_set.subset(halves == half), test=train_set.subset(halves != half))
        trainer = make_trainer(config, "ce", part, flat_tree(task))
        state = trainer.init(part.train, seed=1000)
        source = ResidentSet(part.train, config.batch_size, devices=trainer.devices)
        for epoch in range(config.epochs):
            state = trainer.epoch(state, None, source.content, source.shuffled(1000, epoch, stratified=False))
        for output, labels in trainer.outputs(state, part.test):
            used = np.asarray(labels) >= 0  # the rest is padding
            np.add.at(confusion, labels[used], np.asarray(jax.nn.softmax(output.logits))[used])
    confusion /= confusion.sum(axis=1, keepdims=True)
    distances = 1 - (confusion + confusion.T) / 2
    np.fill_diagonal(distances, 0)
    linkage = scipy.cluster.hierarchy.complete(scipy.spatial.distance.squareform(distances, checks=False))
    cuts = [cut for cut in (max(count // 10, 2), max(count // 3, 3)) if cut < count]
    return hierarchy.from_linkage(linkage, train_set.class_names, cuts=[*cuts, count]).ordered(train_set.class_names)


def _loader(checkpoint: Path, path: str) -> Any:
    """Return an `initialise` that puts a checkpoint's backbone in the place of the drawn one."""

    def initialise(params: Any, key: Array) -> Any:
        del key
        with Checkpoints(checkpoint) as checkpoints:
            loaded = checkpoints.read()["params"]["backbone"]
        loaded = loaded.get("backbone", loaded)  # of a network with a neck
        place = params
        for name in path.split("/")[:-1]:
            place = place[name]
        last = path.split("/")[-1]
        here, there = jax.tree.map(jnp.shape, place[last]), jax.tree.map(jnp.shape, loaded)
        if here != there:
            raise ValueError(f"the checkpoint in {checkpoint} has another backbone: {there} where {here} is needed")
        place[last] = jax.tree.map(jnp.asarray, loaded)
        return params

    return initialise
