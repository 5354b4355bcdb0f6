"""Settings of the families of methods. Each acts only on the methods that its description names."""

import math
from dataclasses import dataclass
from typing import Literal

from nc_jax.checks import check_at_least
from nc_jax.data.class_counts import Profile
from nc_jax.data.tasks import Change
from nc_jax.losses.alignment import MixingName

MappingName = Literal["exponential", "linear", "reciprocal", "gaussian", "cosine"]


@dataclass(frozen=True)
class HierarchyOptions:
    """Settings of the methods that use a label tree. Each setting acts only on the methods that its description names.

    Attributes:
        gamma: number > 0: how fast the cosines between the class vectors of the hierarchy-aware frame decay with the
            distance in the tree. The mappings "linear" and "cosine" ignore it. The method nearest-gamma starts from it.
        alpha: weight of the alignment loss, mixed with cross-entropy, in the methods haframe, nearest-haframe,
            nearest-gamma, shuffled and etf: a number in [0, 1] gives cross-entropy the weight 1 - alpha, a number > 1
            gives it the weight 1, and a name chooses a schedule over the epochs (`nc_jax.losses.mixing_schedule`).
        mapping: how the hierarchy-aware frame maps u, the tree distance over the largest one, to cosines,
            up to an affine rescaling. "exponential": exp(-gamma u), the only one for the method nearest-gamma.
            "linear": 1 - u. "reciprocal": one over (1 + gamma u). "gaussian": exp(-gamma u^2). "cosine": cos(pi u / 2).
        hardness: beta > 0 of the method soft-labels: the target probability of a class is proportional to
            exp(-beta u), with u its tree distance from the label over the largest distance. Larger is closer to
            one-hot.
        hxe_alpha: alpha of the method hxe (hierarchical cross-entropy): the edge from level l - 1 to level l of the
            tree has a weight proportional to exp(-alpha l). 0 weights all levels alike.
        spread: how the method flamingo divides the d features among the levels of the tree, if d is not a multiple of
            the number of levels. True gives each of the last levels one more; False gives the last level the whole
            remainder.
    """

    gamma: float = 3.0  # Liang and Davis (2023), tieredImageNet-H
    alpha: float | MixingName = 0.5  # Liang and Davis (2023), FGVC-Aircraft and tieredImageNet-H
    mapping: MappingName = "exponential"
    hardness: float = 10.0  # Bertinetto et al. (2020), between 4 and 30
    hxe_alpha: float = 0.4  # Bertinetto et al. (2020), between 0.1 and 0.6
    spread: bool = False


@dataclass(frozen=True)
class ContinualOptions:
    """Settings of continual learning: how a data set comes as a sequence of tasks, and what is remembered of old ones.

    Attributes:
        tasks: number of tasks T. 1 trains on everything at once.
        base: number of classes of the first task, the base session of few-shot class-incremental learning; all later
            tasks have equally many of the others. None: all tasks have equally many classes.
        shots: number of training examples to keep of each class of all tasks but the first, drawn with the seed of the
            run. None keeps all.
        scenario: what a task is. "class": a part of the classes, and the model has to tell all classes apart. "task":
            the same, but the model is told the task of each example, in training and in testing. "domain": all classes,
            with other inputs in each task.
        order: order of the classes over the tasks of the scenarios "class" and "task": drawn with the "seed" of the
            run, or as "given" by the data set.
        change: how the scenario "domain" changes the inputs of all tasks but the first: "permute" reorders the numbers
            of an input at random, "rotate" rotates images.
        mask: in training, the softmax of a new example is over the classes of its task alone, which keeps it from
            pushing down the logits of old classes. Replayed examples have the softmax over all classes.
        memory: number of examples in the replay memory of the methods er, der, derpp, er-ace and gdumb. The few-shot
            methods remember this number over K of each class.
        draw_size: number of examples in each draw from the replay memory.
        alpha: weight > 0 of the squared differences from stored logits in the methods der and derpp.
        beta: weight > 0 of the cross-entropy of replayed examples in the method derpp.

    Raises:
        ValueError: if a number is out of its range.
    """

    tasks: int = 1
    base: int | None = None
    shots: int | None = None
    scenario: Literal["class", "task", "domain"] = "class"
    order: Literal["seed", "given"] = "seed"
    change: Change = "permute"
    mask: bool = True  # Kim and Kim (2024) mask in both columns of their tables
    memory: int = 200  # Buzzega et al. (2020), the smallest buffer
    draw_size: int = 10  # Kim and Kim (2024), sequential MNIST
    alpha: float = 0.2  # Kim and Kim (2024), sequential MNIST with the memory 200
    beta: float = 1.0  # Kim and Kim (2024), sequential MNIST with the memory 200

    def __post_init__(self):
        for name in ("tasks", "memory", "draw_size"):
            check_at_least(name, getattr(self, name))
        for name in ("base", "shots"):
            value = getattr(self, name)
            check_at_least(name, value, optional=True)
            if value is not None and (self.tasks == 1 or self.scenario == "domain"):
                raise ValueError(
                    f"{name} needs at least two tasks that are parts of the classes; "
                    f'got tasks={self.tasks} and scenario="{self.scenario}"'
                )
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")


@dataclass(frozen=True)
class TailOptions:
    """Settings of long-tailed learning: how unequal the classes are, and what the methods do about it.

    Attributes:
        ratio: size of the rarest class over that of the most frequent one, in (0, 1]: 0.01 is what papers call an
            imbalance ratio of 100. None leaves the training set as it is.
        profile: how the sizes of the classes fall from the most frequent class to the rarest. "exponential": by a
            constant factor. "step": half of the classes have one size, the others another. "pareto": as the quantiles
            of a Pareto law. "majority": one class is large, and all others have one size.
        order: which classes are frequent: drawn with the "seed" of the run, or as "given" by the data set, in the order
            of the class numbers.
        tau: strength of the logit adjustment, >= 0, in the methods whose name has "adjusted". 1 makes up for the class
            sizes exactly, if training finds the probabilities.
        mixup: alpha > 0 of the Beta law from which mixup and arc-mixup draw their weights.
        beta: number in [0, 1) of the effective number of examples in the methods class-balanced, ldam and
            nearest-effective. Larger gives rare classes more weight.
        second_stage: share of the epochs after which the second stage of crt and lws begins, and the weights of ldam.
        strength: strength in (0, 1] of the space alignment in the methods whose name has "slerp" or "project"; weight
            of the penalty in those with "regularised".
        align_from: share of the epochs, in [0, 1), after which the space alignment begins.
        align_every: epochs between two of its snapshots of the class means; 0 takes one in every step.

    Raises:
        ValueError: if a number is out of its range.
    """

    ratio: float | None = None
    profile: Profile = "exponential"
    order: Literal["seed", "given"] = "seed"
    tau: float = 1.0  # Menon et al. (2021), section 4.2: the value that is consistent
    mixup: float = 1.0  # Kim and Kim (2024), CIFAR
    beta: float = 0.9999  # Cao et al. (2019), released program
    second_stage: float = 0.8  # Cao et al. (2019): from epoch 160 of 200
    strength: float = 0.5  # halfway to the class means
    align_from: float = 0.5  # class means mean little before the features have settled
    align_every: int = 0

    def __post_init__(self):
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(
                f"ratio must lie in (0, 1], the rarest class over the most frequent one, such as 0.01; got {self.ratio}"
            )
        for name in ("tau", "align_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; got {getattr(self, name)}")
        if not 0 < self.mixup < math.inf:
            raise ValueError(f"mixup must be positive and finite; got {self.mixup}")
        for name in ("beta", "second_stage", "align_from"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1]; got {self.strength}")


@dataclass(frozen=True)
class UniformityOptions:
    """Settings of the methods that spread class vectors over the sphere, also of more classes than dimensions.

    Attributes:
        alpha: weight > 0 of the energy of the class vectors, in the hug methods.
        beta: weight > 0 of the distances between features and class vectors, in the hug methods.
        objective: how the hug methods measure uniformity. "mhe": inverse squared distances of all pairs of class
            vectors, and mean distances within classes. "mhs": the least distance of two class vectors, and the largest
            distance within each class. "mgd": the log-determinant of the class vectors' Gaussian Gram matrix, and mean
            distances within classes.
        stop_gradient: whether learned class vectors are constants in the distances within classes, so that only their
            energy moves them. Has no effect on other placements.
        frame: what the class vectors of a frame of least energy optimise, in the methods whose name has "optimised",
            "rotated" or "energy", and in hug-nearest. "riesz": the Riesz energy with exponent `s`. "separation": the
            least distance of two of them. "determinant": the log-determinant of their Gaussian Gram matrix.
        s: exponent > -2 of the Riesz energy that the frame minimises; 0 means the logarithm.

    Raises:
        ValueError: if a number is out of its range.
    """

    alpha: float = 1.0  # Liu et al. (2023), released program
    beta: float = 1.0  # Liu et al. (2023), released program
    objective: Literal["mhe", "mhs", "mgd"] = "mhe"  # Liu et al. (2023), released program
    stop_gradient: bool = True  # Liu et al. (2023), released program
    frame: Literal["riesz", "separation", "determinant"] = "riesz"
    s: float = 2.0  # Liu et al. (2023): the exponent between classes

    def __post_init__(self):
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        if not -2 < self.s < math.inf:
            raise ValueError(f"s must be finite and above -2, where the energy has a unique minimum; got {self.s}")


@dataclass(frozen=True)
class FederatedOptions:
    """Settings of federated learning: how a data set is spread over clients, and what a round is.

    Attributes:
        clients: number of clients C. None trains on the whole set in one place.
        partition: which examples a client has. "iid": a random part. "dirichlet": shares of every class drawn from a
            Dirichlet law. "classes": examples of a few classes. "shards": a few slices of the examples in the order of
            their classes. "groups": the groups that the data set has by nature, such as speakers; their number is
            `clients`.
        beta: parameter > 0 of the Dirichlet law: the smaller, the fewer classes a client has.
        per_client: number of classes, or of shards, of each client in the partitions "classes" and "shards".
        min_size: number of training examples that every client has at least, in the partition "dirichlet".
        per_round: number of clients in each round, drawn at random; None: all of them.
        local_epochs: passes of a client over its examples in each round.
        local_steps: number of optimiser steps of each client in a round, in place of passes; None: passes.
        dropouts: probability, in [0, 1), that a client of a round sends nothing back. One always does.
        stragglers: probability, in [0, 1], that a client makes only a part of its steps.
        keep_optimizer: every client keeps the state of its optimiser from round to round, momentum for instance; else
            it begins each round with a new one.
        at_once: number of clients that are trained at the same time on a device, which takes memory for as many
            models; None: all, but on a CPU one.
        mu: weight >= 0 of the distance from the server's model in the method fedprox.
        contrast: weight >= 0 of the contrastive loss in the method moon.
        contrast_temperature: temperature > 0 of the contrastive loss.
        server_rate: learning rate > 0 of the server in the method fedadam.
        server_momentum: momentum of the server, in [0, 1), in the method fedavgm.
        head_steps: number of steps, at the begin of each round, in which clients train only their heads, in the method
            fedrep.

    Raises:
        ValueError: if a number is out of its range.
    """

    clients: int | None = None
    partition: Literal["iid", "dirichlet", "classes", "shards", "groups"] = "dirichlet"
    beta: float = 0.5  # Fan et al. (2023), released program
    per_client: int = 2  # McMahan et al. (2017), section 3: two shards
    min_size: int = 1
    per_round: int | None = None
    local_epochs: int = 1
    local_steps: int | None = None
    dropouts: float = 0.0
    stragglers: float = 0.0
    keep_optimizer: bool = False  # McMahan et al. (2017): clients keep nothing
    at_once: int | None = None
    mu: float = 0.01  # Li et al. (2020), the middle of the values that they try
    contrast: float = 1.0  # Li, He and Song (2021), between 0.1 and 10
    contrast_temperature: float = 0.5  # Li, He and Song (2021), section 4.1
    server_rate: float = 0.01  # Reddi et al. (2021) try powers of ten; 0.1 diverges on the digits
    server_momentum: float = 0.9  # Hsu, Qi and Brown (2019)
    head_steps: int = 5

    def __post_init__(self):
        for name in ("clients", "per_round", "local_steps", "at_once"):
            check_at_least(name, getattr(self, name), optional=True)
        for name in ("per_client", "min_size", "local_epochs", "head_steps"):
            check_at_least(name, getattr(self, name))
        for name in ("beta", "contrast_temperature", "server_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        for name in ("mu", "contrast"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite; got {getattr(self, name)}")
        for name in ("dropouts", "server_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if not 0 <= self.stragglers <= 1:
            raise ValueError(f"stragglers must lie in [0, 1]; got {self.stragglers}")
        if self.clients is not None and self.per_round is not None and self.per_round > self.clients:
            raise ValueError(f"per_round must be at most clients={self.clients}; got {self.per_round}")
