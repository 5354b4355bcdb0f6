"""One process of `test_distributed`: python two_processes.py <index> <count> <port> <directory> <steps or rounds>."""

import json
import os
import sys
from pathlib import Path


def main(index: int, count: int, port: str, directory: Path, what: str) -> None:
    # Four devices in total, shared by all processes. JAX reads this flag when it is first imported.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // count}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np
    import optax
    from toy_federated import spread, trainer_of
    from toy_training import NormalisedMLP, blobs, fit, make_trainer

    from nc_jax.federated import Federation
    from nc_jax.streams import Clients
    from nc_jax.training import StepOptions

    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    step = StepOptions(accumulate=2, average_decay=0.9)
    keeps = {"federation": Federation(personal=("head",), controlled=True), "keep_optimizer": True, "at_once": 2}
    for epochs in (1, 2):  # the second resumes the first
        if what == "steps":
            train_set, stream = blobs(100), None
            trainer = make_trainer(4 // count, resident=False, backbone=NormalisedMLP(), epochs=epochs, step=step)
        else:
            train_set = spread((7, 12, 3, 9, 5, 4, 8, 6, 2, 4))
            stream = Clients(train_set, 4, rounds=epochs, per_round=8)
            trainer = trainer_of(stream, optax.sgd(0.1, 0.9), devices=4 // count, resident=False, **keeps)
        trained = fit(trainer, train_set, blobs(40, seed=1), directory, stream=stream)
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(trained.state))[0]
    found = {jax.tree_util.keystr(path): np.asarray(leaf, float).tolist() for path, leaf in leaves}
    (directory / f"state-{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5])
