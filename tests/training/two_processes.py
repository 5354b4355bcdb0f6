"""One of several processes of `test_distributed`: python two_processes.py <index> <count> <port> <directory>."""

import json
import os
import sys
from pathlib import Path


def main(index: int, count: int, port: str, directory: Path) -> None:
    # Four devices in total, shared by all processes. JAX reads this flag when it is first imported.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // count}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import numpy as np
    from toy_training import NormalisedMLP, blobs, fit, make_trainer

    from nc_jax.training import StepOptions

    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    step = StepOptions(accumulate=2, average_decay=0.9)
    for epochs in (1, 2):  # the second resumes the first
        trainer = make_trainer(4 // count, resident=False, backbone=NormalisedMLP(), epochs=epochs, step=step)
        trained = fit(trainer, blobs(100), blobs(40, seed=1), directory)
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(trained.state))[0]
    found = {jax.tree_util.keystr(path): np.asarray(leaf, float).tolist() for path, leaf in leaves}
    (directory / f"state-{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
