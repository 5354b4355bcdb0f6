"""Does a fixed simplex ETF with locally adapted lengths help clients that lack classes?

Claim     Fan et al., Federated learning with bilateral curation for partially class-disjoint data (2023): FedGELA beats
          federated averaging by 3.9 points on average, and the best other method by 1.5
Command   python -m experiments.federated
Expected  digits, 2 classes a client: generic accuracy 0.957 FedAvg, 0.963 fixed ETF, 0.956 FedGELA, 0.963 nearest ETF;
          personal accuracy 0.961, 0.966, 0.992, 0.966; among existing classes 0.993, 0.992, 0.992, 0.994
          (docs/findings/federated.md)
Writes    runs/federated/<time>-<preset>/: config.json, results.jsonl, metrics.jsonl, tensorboard/, checkpoints/,
          summary.md, summary.json, and for each case summary.png, partition.png, communication.png,
          angles.png, clients.png
Data      scikit-learn's handwritten digits and rendered characters. The preset vowel needs Debian's r-cran-mlbench, the
          preset fashion the files of Fashion-MNIST; the presets paper-... need the sets that they name.

All methods have the same clients in the same rounds. Each chooses its learning rate and the length of its features, an
inverse temperature, by the accuracy of the server's model on held-out quarters of the training set. Personal accuracy
is that of all clients after the last round, as they get the model and after the local steps of a round; once among all
classes, and once among those that exist at the client. A fixed frame without local lengths is the control.
"""

import dataclasses
from functools import partial
from typing import Any

from nc_jax.methods import FederatedOptions
from nc_jax.study import About, Column, Comparison, Experiment, dotted, main, plan, run, summary_picture
from nc_jax.study.backbones import BackboneOptions
from nc_jax.study.data import DataOptions
from nc_jax.study.federated import check_clients, measure, watching
from nc_jax.study.federated_plots import accuracy_by_bytes, angles_picture, clients_picture, partition_picture
from nc_jax.study.settings import refuse_overridden
from nc_jax.training import LoopOptions, OptimizerOptions

COLUMNS = (
    Column("test/accuracy", "generic accuracy", 4, words=("less accurate", "more accurate")),
    Column("balanced_accuracy", "balanced accuracy", 4, test="none"),
    Column("personal", "personal accuracy", 4),
    Column("personal_masked", "personal, masked", 4),
    Column("tuned", "after local steps", 4),
    Column("tuned_masked", "after local steps, masked", 4),
    Column("personal_worst", "worst client", 3, test="none"),
    Column("personal_masked_worst", "worst client, masked", 3, test="none"),
    Column("angle_existing", "angle of existing classes", 1, test="none"),
    Column("angle_missing", "angle of missing classes", 1, test="none"),
    Column("drift", "client drift", 3, test="none"),
    Column("bytes_per_round", "bytes per round", 0, test="none"),
)


def _loop(rounds: int, local_batch: int, *, evaluate_every: int = 5) -> LoopOptions:
    """Evaluate some rounds, and save at the end: most runs take seconds."""
    return LoopOptions(
        epochs=rounds,
        batch_size=local_batch,
        evaluate_every=evaluate_every,
        checkpoint_every=rounds,
        keep_checkpoints=1,
        devices=1,
    )


# The claim with its control, a fixed frame without local lengths; then methods that change another part of FedAvg.
MAIN = ("fedavg", "fed-etf", "fedgela", "fedgela-masked", "fed-nearest")
PEERS = ("fedprox", "fedavgm", "fedadam", "scaffold", "moon", "fedper", "fedrep", "local", "centralised")
RATES = (0.05, 0.2)
RADII = (0.5, 1.0, 4.0)  # temperatures 2, 1 and 0.25: lengths of features are their inverse

DEFAULT = Comparison(
    methods=(*MAIN, *PEERS),
    seeds=8,
    rates=RATES,
    radii=RADII,
    backbone=BackboneOptions(hidden=(100,), dim=64),
    optimizer=OptimizerOptions(learning_rate=0.05, momentum=0.0),
    loop=_loop(30, 32),
    federated=FederatedOptions(clients=10, partition="classes", local_steps=15),
    grid={
        "digits, 2 classes a client": {"": {}},
        "digits, 3 classes a client": {"": dotted(federated__per_client=3, methods=MAIN)},
        "digits, Dirichlet 0.1": {"": dotted(federated__partition="dirichlet", federated__beta=0.1, methods=MAIN)},
        "100 glyphs, 50 clients": {
            "": dotted(
                data__name="glyphs",
                data__num_classes=100,
                backbone__dim=128,
                federated__clients=50,
                federated__partition="dirichlet",
                federated__beta=0.1,
                loop__evaluate_every=10,
                methods=MAIN,
                seeds=5,
                radii=(1.0, 4.0),
            )
        },
    },
)


def _fashion(clients: int, rounds: int) -> dict[str, Any]:
    """Return a variant of Fashion-MNIST with so many clients, of which ten take part in a round."""
    return dotted(
        federated__clients=clients,
        federated__per_round=10,
        federated__local_steps=20,
        loop__epochs=rounds,
        loop__batch_size=64,
    )


def _paper(dataset: str, clients: int, rounds: int, betas: tuple[float, ...], **changes: Any) -> Comparison:
    """Fan et al. (2023), released program: ResNet-18 with a neck of two layers, ten local epochs, ten clients a round.

    Features have unit length here, and the temperature is chosen; the program normalises them by their batch and
    divides logits by 0.2.
    """
    defaults: dict[str, Any] = {
        "backbone": BackboneOptions("resnet18", neck="mlp", neck_dim=128),
        "data": DataOptions(dataset, augmentation="cifar"),
    }
    return dataclasses.replace(
        DEFAULT,
        methods=("fedavg", "fedprox", "moon", "fed-etf", "fedgela"),
        seeds=3,
        rates=(),
        radii=(),
        optimizer=OptimizerOptions(learning_rate=0.01, momentum=0.9, weight_decay=1e-4, clip_norm=20.0),
        loop=_loop(rounds, 64, evaluate_every=10),
        federated=FederatedOptions(clients=clients, per_round=10, local_epochs=10, at_once=1),
        grid={f"Dirichlet {beta:g}": {"": {"federated.beta": beta}} for beta in betas},
        **(defaults | changes),
    )


PRESETS = {
    "default": DEFAULT,
    # For the tests: every part of the program, in seconds.
    "smoke": dataclasses.replace(
        DEFAULT,
        methods=("fedavg", "fedgela", "fed-nearest"),
        seeds=2,
        rates=(),
        radii=(),
        backbone=BackboneOptions(hidden=(), dim=12),
        loop=_loop(2, 32, evaluate_every=1),
        federated=FederatedOptions(clients=5, partition="classes", local_steps=2),
        grid={"": {"": {}}},
    ),
    # UCI Vowel: 15 speakers, 11 vowels, 990 rows. Natural clients, which have all classes but speak differently.
    "vowel": dataclasses.replace(
        DEFAULT,
        data=DataOptions("vowel", groups="V1"),
        federated=FederatedOptions(clients=15, partition="groups", local_steps=15),
        grid={"": {"": {}}},
    ),
    "fashion": dataclasses.replace(
        DEFAULT,
        methods=MAIN,
        seeds=5,
        radii=(1.0, 4.0),
        data=DataOptions("idx:/usr/share/datasets/fashion-mnist"),
        backbone=BackboneOptions(hidden=(256,), dim=64),
        loop=_loop(50, 64, evaluate_every=25),
        grid={"10 clients": {"": _fashion(10, 50)}, "100 clients": {"": _fashion(100, 100)}},
    ),
    "paper-cifar10": _paper("cifar10", 50, 100, (0.1, 0.2, 0.5, 100_000.0)),
    "paper-cifar100": _paper("cifar100", 50, 400, (0.1, 0.2, 0.5, 100_000.0)),
    "paper-svhn": _paper("svhn_cropped", 50, 100, (0.1, 0.2, 0.5, 100_000.0)),
    "paper-fmnist": _paper("fashion_mnist", 50, 100, (0.1, 0.2, 0.5, 100_000.0)),
}
ABOUT = {
    "default": About(
        "digits with 2 and 3 classes a client and by a Dirichlet law; 100 glyphs with 50 clients",
        expect="generic accuracy with 2 classes: FedAvg 0.957, FedGELA 0.956; personal, masked: 0.993, 0.992",
    ),
    "smoke": About("three methods in two rounds of a small network, for the tests", 0.5),
    "vowel": About(
        "UCI Vowel, whose 15 speakers are the clients",
        expect="generic accuracy at the rate 0.2: FedAvg 0.835, fixed ETF and FedGELA 0.771, nearest ETF 0.777",
    ),
    "fashion": About("Fashion-MNIST with 10 and with 100 clients of 2 classes"),
    **{name: About("the paper's settings; the images are yours to bring") for name in PRESETS if "paper" in name},
}
EXPERIMENT = Experiment(
    "federated",
    COLUMNS,
    pairs=(
        ("fed-etf", "fedavg"),
        ("fedgela", "fed-etf"),
        ("fedgela", "fedavg"),
        ("fedgela-masked", "fedgela"),
        ("fed-nearest", "fedavg"),
        ("fed-nearest", "fed-etf"),
    ),
    measure=measure,
    watching=watching,
    check=check_clients,
    pictures=(summary_picture, partition_picture, accuracy_by_bytes, angles_picture, clients_picture),
)


def run_comparison(config: Comparison) -> dict[str, Any]:
    """Train every method with every seed; write and show the comparison."""
    return run(EXPERIMENT, config)


if __name__ == "__main__":
    main(run_comparison, PRESETS, about=ABOUT, plan=plan, check=partial(refuse_overridden, besides=("methods",)))
