"""Does a classifier frame that follows a label tree make milder mistakes, and when?

Claim     Liang and Davis, Inducing Neural Collapse to a Fixed Hierarchy-Aware Frame (2023), section 5: lower mistake
          severity and average hierarchical distance than cross-entropy, CRM, Flamingo and HAFeature at equal accuracy.
Command   python -m experiments.haframe        (10 seeds of 11 methods on two data sets)
Expected  on glyphs, HAFrame less cross-entropy: severity -0.14, AHD@1 -0.029, top-1 +0.001 (docs/findings/hierarchy.md)
Writes    runs/haframe/<time>-<preset>/: config.json, results.jsonl, summary.md, summary.json, and for each data set the
          log and checkpoints of its runs, dendrogram.png, severity.png, cosines.png
Data      100 rendered characters with 20 training images each and the tree of their shapes; handwritten digits and
          the tree of their strokes. The presets named paper-... hold the paper's settings, for data that you bring.

Two controls are in every table. A frozen simplex ETF with the same loss tells what the frozen frame and the cosine loss
do without a hierarchy; HAFrame on the same tree with its classes shuffled, what a meaningless hierarchy does.
How well the tree agrees with what cross-entropy confuses is printed before any method that uses the tree is trained.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance
from jaxtyping import Array

from experiments import haframe_plots, harness, setups
from experiments.haframe_methods import FRAMES, TITLES, MethodName, MethodOptions, make
from experiments.setups import Task
from nc_jax import hierarchy
from nc_jax.data import LabelledArrays, hierarchies, steps_per_epoch
from nc_jax.hierarchy import LabelTree, similarity
from nc_jax.losses import conditional_risk_scores
from nc_jax.losses.alignment import ScheduleName
from nc_jax.metrics import HierarchyStatistics, similarity_errors
from nc_jax.models import BatchNorm, Bottleneck, Classifier, Projection, Transformation, WithNeck
from nc_jax.training import (
    AXIS,
    Checkpoints,
    LoopOptions,
    MetricsLog,
    OptimizerOptions,
    ResidentSet,
    Trainer,
    TrainState,
    forward,
    make_optimizer,
    scaled_rate,
)
from nc_jax.training.logging import write_atomically
from nc_jax.training.optimizers import ScheduleName as RateSchedule


@dataclasses.dataclass(frozen=True)
class Config(harness.RunOptions):
    """Settings of the experiment.

    Attributes:
        datasets: as `experiments.setups.load` names them.
        trees: of each data set, as `nc_jax.data.hierarchies.load` names them, or a file; "confusion" clusters what
            cross-entropy confuses on held-out halves of the training set.
        methods: see `experiments.haframe_methods`. CRM comes with cross-entropy and HAFrame, at no training.
        seeds: how many; a seed sets the initial state, the order of examples, the frame's rotation and the shuffling.
        epochs: passes over the training set.
        batch_size: examples per step.
        gamma: of the hierarchy-aware frame.
        alpha: weight of the alignment, a number or a schedule of `nc_jax.losses.mixing_schedule`.
        mapping: of distances to cosines.
        hardness: of soft labels.
        hxe_alpha: of HXE.
        learning_rate: of SGD, its highest.
        frame_learning_rate: the same, of methods whose class vectors are not learned; None is `learning_rate`.
        momentum: of SGD.
        weight_decay: of SGD.
        clip_norm: gradients longer than this are scaled to it; None leaves them.
        schedule: of the learning rate.
        backbone_rate: learning rate of the backbone, as a share of the rest's.
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
        augmentation: as in `experiments.setups.load`.
        data_dir: where TFDS keeps prepared data.
        devices: use only so many of the local devices; None uses all.
    """

    datasets: tuple[str, ...] = ("glyphs/low-data", "digits")
    trees: tuple[str, ...] = ("glyphs/shape", "digits")
    methods: tuple[MethodName, ...] = (
        "ce",
        "soft-labels",
        "hxe",
        "yolo",
        "barz-denzler",
        "flamingo",
        "hafeature",
        "etf",
        "shuffled",
        "haframe",
        "nearest",
    )
    seeds: int = 10  # issue 7: at least
    epochs: int = 20  # the prototype of issue 7
    batch_size: int = 64  # Liang and Davis (2023), CIFAR-100 and FGVC-Aircraft
    gamma: float = 3.0  # the prototype of issue 7
    alpha: float | ScheduleName = 0.5  # Liang and Davis (2023), FGVC-Aircraft and tieredImageNet-H
    mapping: Literal["exponential", "linear"] = "exponential"
    hardness: float = 10.0
    hxe_alpha: float = 0.4
    learning_rate: float = 0.4  # the prototype of issue 7; with 0.8 cross-entropy diverges
    frame_learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # without, one in ten runs of cross-entropy on glyphs diverged
    schedule: RateSchedule = "cosine"  # Liang and Davis (2023)
    backbone_rate: float = 1.0
    backbone_checkpoint: Path | None = None
    model: str = "mlp"
    width_multiplier: float = 1.0
    hidden: tuple[int, ...] = (256, 256)
    dim: int = 128
    # Without it an MLP's features keep a large common part, orthogonal to the frame, which the cosine loss, whose
    # gradient falls with their length, does not take away: mean error of the cosines 0.62 on glyphs, and 0.05 with it.
    neck: Literal["none", "norm", "type1", "type2", "transformation"] = "norm"
    neck_dim: int = 600  # Garg et al. (2022)
    augmentation: str = "none"
    data_dir: str | None = None
    devices: int | None = None


# Liang and Davis (2023), section 5 and released scripts. Data and trees of three of the four are yours to bring: TFDS
# has no loader for them, and their trees come under a licence that does not allow to ship them.
PAPER = Config(
    methods=("ce", "flamingo", "hafeature", "etf", "shuffled", "haframe"),
    seeds=5,
    epochs=100,
    learning_rate=0.1,
    frame_learning_rate=None,
    momentum=0.9,
    weight_decay=5e-4,
    clip_norm=None,
    backbone_rate=0.1,
    neck="type2",
    model="resnet50",
)


def _paper(name: str, dataset: str, tree: str, **changes: Any) -> Config:
    return dataclasses.replace(PAPER, preset=name, datasets=(dataset,), trees=(tree,), **changes)


PRESETS = {
    "default": Config(),
    # For the tests: every part of the program, in seconds.
    "smoke": Config(
        preset="smoke",
        datasets=("digits",),
        trees=("digits",),
        methods=("ce", "haframe"),
        seeds=2,
        epochs=2,
        hidden=(32,),
        dim=16,
    ),
    "confusion": Config(preset="confusion", datasets=("digits",), trees=("confusion",)),
    "script": Config(preset="script", datasets=("glyphs/low-data",), trees=("glyphs/script",)),
    "full-data": Config(preset="full-data", datasets=("glyphs",), trees=("glyphs/shape",), gamma=5.0),
    # WideResNet-28-8 from scratch.
    "paper-cifar100": _paper(
        "paper-cifar100",
        "cifar100",
        "cifar100",
        model="wide-resnet28",
        width_multiplier=0.8,
        gamma=2.0,
        alpha=0.4,
        augmentation="cifar",
    ),
    "paper-fgvc-aircraft": _paper("paper-fgvc-aircraft", "fgvc_aircraft", "fgvc_aircraft.json", gamma=1.0, alpha=0.5),
    "paper-inaturalist19": _paper(
        "paper-inaturalist19", "inaturalist19", "inaturalist19.parent_child.txt", gamma=5.0, alpha=0.4, batch_size=256
    ),
    "paper-tiered-imagenet": _paper(
        "paper-tiered-imagenet", "tiered_imagenet", "tiered_imagenet.parent_child.txt", gamma=3.0, batch_size=256
    ),
}
# Metric, title, digits, whether less is better.
METRICS = [
    ("top1", "top-1", 4),
    ("mistake_severity", "severity", 3),
    ("ahd@1", "AHD@1", 3),
    ("ahd@5", "AHD@5", 3),
    ("ahd@20", "AHD@20", 3),
    ("hp@5", "precision@5", 3),
    ("rank_severity", "rank-aware", 3),
    ("cosine_error", "error of cosines", 3),
]


def run(config: Config) -> dict[str, Any]:
    """Train every method with every seed on every data set; write and show the comparison.

    Returns:
        What summary.json holds: per data set and method the metrics of each seed, the alignment, and the directory.

    Raises:
        ValueError: if a setting is out of its range.
        FileExistsError: if the run directory exists.
        NonFiniteError: if training diverges.
    """
    if config.resume is None:
        check(config)
    directory, config = harness.open_run("haframe", config)
    summary: dict[str, Any] = {"directory": str(directory), "tasks": {}}
    text = f"# haframe, preset {config.preset}\n"
    for dataset, tree_name in zip(config.datasets, config.trees, strict=True):
        found, table = compare(config, dataset, tree_name, directory)
        summary["tasks"][f"{dataset}, {tree_name}"] = found
        text += table
    write_atomically(directory / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(directory / "summary.md", text)
    print(f"written to {directory}")
    return summary


def check(config: Config) -> None:
    """Raise a ValueError, before anything is written, if a setting cannot work."""
    if len(config.datasets) != len(config.trees) or not config.datasets:
        raise ValueError(f"every data set needs a tree; got {config.datasets} and {config.trees}")
    if config.seeds < 1 or not config.methods:
        raise ValueError(f"a seed and a method are needed; got seeds={config.seeds}, methods={config.methods}")
    for dataset, tree_name in zip(config.datasets, config.trees, strict=True):
        task = load(config, dataset)
        if tree_name == "confusion":
            continue
        tree = hierarchies.load(tree_name, task.train.class_names)
        for method in config.methods:
            trainer = make_trainer(config, method, task, tree)
            jax.eval_shape(lambda trainer=trainer, task=task: trainer.init(task.train, 0))


def load(config: Config, dataset: str) -> Task:
    """Return a data set."""
    return setups.load(dataset, config.data_dir, flat=config.model == "mlp", augmentation=config.augmentation)


def compare(config: Config, dataset: str, tree_name: str, directory: Path) -> tuple[dict[str, Any], str]:
    """Train all methods on one data set; return its part of summary.json and of summary.md."""
    task, slug = load(config, dataset), f"{dataset}-{Path(tree_name).stem}".replace("/", "-")
    (directory / slug).mkdir(exist_ok=True)
    tree = confusion_tree(config, task) if tree_name == "confusion" else None
    tree = tree or hierarchies.load(tree_name, task.train.class_names)
    hierarchy.draw_dendrogram(tree, directory / slug / "dendrogram.png", title=f"{dataset}: {tree_name}")
    results = _Results(directory / "results.jsonl")
    trainers: dict[str, Trainer] = {}
    # Cross-entropy first, for the alignment; then seed by seed, so that an unfinished run has complete seeds.
    runs = [(method, seed) for seed in range(config.seeds) for method in config.methods]
    runs.sort(key=lambda run: run[0] != "ce")
    told = "ce" not in config.methods
    with MetricsLog(directory / slug) as log:
        for method, seed in runs:
            name = f"{slug}/{method}-seed{seed}"
            if method != "ce" and not told:
                _tell_alignment(config, dataset, tree_name, slug, results.rows)
                told = True
            if name not in results.rows:
                if method not in trainers:
                    trainers[method] = make_trainer(config, method, task, tree)
                results.add(name, train(config, trainers[method], method, task, tree, directory / slug, log, seed))
    if not told:
        _tell_alignment(config, dataset, tree_name, slug, results.rows)
    last = {method: results.rows[f"{slug}/{method}-seed{config.seeds - 1}"] for method in config.methods}
    means = {TITLES[method]: np.array(row["mean_cosines"]) for method, row in last.items()}
    found = collect(config, results.rows, slug)
    wanted = similarity(tree.distances(), config.gamma, mapping=config.mapping)
    haframe_plots.severity(
        directory / slug / "severity.png", {TITLES[name]: v["histogram"] for name, v in found.items()}
    )
    haframe_plots.cosines(directory / slug / "cosines.png", wanted, means)
    part = {"methods": found, "num_classes": len(tree.classes), "height": tree.height}
    return part, table(config, dataset, tree_name, slug, found)


def _tell_alignment(config: Config, dataset: str, tree_name: str, slug: str, rows: dict[str, dict]) -> None:
    values = [rows[f"{slug}/ce-seed{seed}"]["ce"]["alignment"] for seed in range(config.seeds)]
    print(f"{dataset}: {alignment_sentence(tree_name, values)}", flush=True)


def alignment_sentence(tree_name: str, values: list[float]) -> str:
    """Say how well the tree agrees with what cross-entropy confuses."""
    middle = float(np.nanmean(values))
    if middle > 0.9:
        verdict = "the tree has little to do with the confusions, so expect no gain"
    else:
        verdict = "confusions follow the tree, so it may help"
    distance = f"at {middle:.2f} of the distance of random ones in the tree {tree_name}"
    return f"mistakes of cross-entropy lie {distance}; {verdict}"


def confusion_tree(config: Config, task: Task) -> LabelTree:
    """Cluster the classes by what cross-entropy confuses on one half of the training set after learning the other.

    Average linkage of 1 - (C + C^T) / 2, C the mean predicted probabilities per class; the test set plays no part.
    """
    train_set: LabelledArrays = task.train
    flat = hierarchy.from_nested({"root": list(train_set.class_names)}).ordered(train_set.class_names)
    count = train_set.num_classes
    confusion = np.zeros((count, count))
    halves = np.random.default_rng(0).permutation(len(train_set)) % 2
    for half in (0, 1):
        part = task._replace(train=train_set.subset(halves == half), test=train_set.subset(halves != half))
        trainer = make_trainer(config, "ce", part, flat)
        state = trainer.init(part.train, seed=1000)
        source = ResidentSet(part.train, config.batch_size, devices=trainer.devices)
        for epoch in range(config.epochs):
            state = trainer.epoch(state, None, source.content, source.shuffled(1000, epoch, stratified=False))
        for logits, labels in _logits(trainer, state, part.test, config.batch_size):
            np.add.at(confusion, labels, np.asarray(jax.nn.softmax(logits)))
    confusion /= confusion.sum(axis=1, keepdims=True)
    distances = 1 - (confusion + confusion.T) / 2
    np.fill_diagonal(distances, 0)
    linkage = scipy.cluster.hierarchy.average(scipy.spatial.distance.squareform(distances, checks=False))
    cuts = [cut for cut in (max(count // 10, 2), max(count // 3, 3)) if cut < count]
    return hierarchy.from_linkage(linkage, train_set.class_names, cuts=[*cuts, count]).ordered(train_set.class_names)


def make_trainer(config: Config, method: Any, task: Task, tree: LabelTree) -> Trainer:
    """Return the compiled steps of a method; what differs between them is the head and the loss."""
    count = task.train.num_classes
    epoch_steps = steps_per_epoch(len(task.train), config.batch_size)
    fields = {field.name for field in dataclasses.fields(MethodOptions)} & {f.name for f in dataclasses.fields(Config)}
    options = MethodOptions(**{name: getattr(config, name) for name in fields})
    head, loss = make(method, options, tree, epochs=config.epochs, epoch_steps=epoch_steps)
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
    learning_rate = config.frame_learning_rate if method in FRAMES else None
    rate = OptimizerOptions(
        learning_rate=learning_rate or config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        schedule=config.schedule,
    )
    optimizer = make_optimizer(rate, epochs=config.epochs, epoch_steps=epoch_steps)
    if config.backbone_rate != 1:
        optimizer = scaled_rate(optimizer, path, config.backbone_rate)
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
        devices=None if config.devices is None else jax.local_devices()[: config.devices],
        initialise=None if config.backbone_checkpoint is None else _loader(config.backbone_checkpoint, path),
    )


def train(
    config: Config,
    trainer: Trainer,
    method: str,
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

    @jax.jit
    def statistics(logits: Array, labels: Array) -> tuple[HierarchyStatistics, HierarchyStatistics]:
        rank = lambda scores: HierarchyStatistics.from_batch(scores, labels, distances, max_distance=tree.height)  # noqa: E731
        return rank(logits), rank(conditional_risk_scores(logits, distances))

    sums = HierarchyStatistics.init(tree.height), HierarchyStatistics.init(tree.height)
    for logits, labels in _logits(trainer, trained.state, task.test, config.batch_size):
        sums = tuple(one.merge(other) for one, other in zip(sums, statistics(logits, labels), strict=True))
    found: dict[str, Any] = {}
    names = [method] if method not in ("ce", "haframe") else [method, {"ce": "crm", "haframe": "haframe+crm"}[method]]
    wanted = jnp.asarray(similarity(tree.distances(), config.gamma, mapping=config.mapping), jnp.float32)
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


def collect(config: Config, rows: dict[str, dict], slug: str) -> dict[str, dict[str, list]]:
    """Gather the metrics of each seed, per method and rule."""
    found: dict[str, dict[str, list]] = {}
    for method in config.methods:
        for seed in range(config.seeds):
            for title, metrics in rows[f"{slug}/{method}-seed{seed}"].items():
                if title == "mean_cosines":
                    continue
                for key, value in metrics.items():
                    found.setdefault(title, {}).setdefault(key, []).append(value)
    return {title: found[title] for title in TITLES if title in found}


def table(config: Config, dataset: str, tree_name: str, slug: str, found: dict[str, dict[str, list]]) -> str:
    """Show a data set's tables; return them as Markdown."""
    title = f"{dataset}, tree {tree_name}: {config.seeds} seeds, mean ± standard deviation"
    columns = ["", *(name for _, name, _ in METRICS)]
    rows = [
        [TITLES[method], *(harness.mean_and_sd(values[metric], digits) for metric, _, digits in METRICS)]
        for method, values in found.items()
    ]
    harness.show_table(title, columns, rows)
    text = f"\n## {dataset}, tree {tree_name}\n\n{title}\n\n{harness.markdown_table(columns, rows)}\n"
    if "haframe" in found:
        head = "HAFrame less the other: difference (p of the paired t test, of Wilcoxon's)"
        chosen = METRICS[:4]
        tests = []
        for other in found:
            differences = [_test(found["haframe"], found[other], metric, digits) for metric, _, digits in chosen]
            tests += [[TITLES[other], *differences]] if other != "haframe" else []
        harness.show_table(head, ["", *(name for _, name, _ in chosen)], tests)
        text += f"{head}\n\n{harness.markdown_table(['', *(name for _, name, _ in chosen)], tests)}\n"
    if "ce" in found:
        text += f"{alignment_sentence(tree_name, found['ce']['alignment']).capitalize()}.\n"
    gammas = found.get("nearest-gamma", {}).get("gamma")
    if gammas:
        text += f"\nLearned gamma: {harness.mean_and_sd(gammas, 2)}.\n"
    return text + "".join(f"\n![{name}]({slug}/{name}.png)\n" for name in ("severity", "cosines", "dendrogram"))


class _Results:
    """What finished runs reached, a JSON line each, so that a resumed experiment trains none again."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[row["run"]] = row["found"]

    def add(self, name: str, found: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"run": name, "found": found}) + "\n")
        self.rows[name] = found


def _test(ours: dict[str, list], theirs: dict[str, list], metric: str, digits: int) -> str:
    tests = harness.paired_tests(ours[metric], theirs[metric])
    if math.isnan(tests["t"]):
        return f"{tests['difference']:+.{digits}f}"
    return f"{tests['difference']:+.{digits}f} ({tests['t']:.2g}, {tests['wilcoxon']:.2g})"


def _logits(trainer: Trainer, state: TrainState, examples: Any, batch_size: int) -> Any:
    """Yield (logits, labels) over a set, every example once, in batches of at most 16 of training's."""
    preprocess = trainer.options.step.preprocess

    @jax.jit
    def logits_of(state: TrainState, features: Array) -> Array:
        features = features if preprocess is None else preprocess(features)
        return forward(trainer.model, state.evaluated_params, state.variables, {"features": features}, train=False)[0][
            0
        ]

    size = 16 * batch_size
    for start in range(0, len(examples), size):
        batch = examples.take(np.arange(start, min(start + size, len(examples))))
        yield logits_of(state, jnp.asarray(batch["features"])), jnp.asarray(batch["labels"])


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


if __name__ == "__main__":
    harness.main(run, PRESETS)
