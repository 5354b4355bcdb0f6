"""What XLA is told before its first program, where its defaults are slow."""

import os
from importlib import metadata

_FLAG = "xla_cpu_experimental_ynn_fusion_type"
# On a CPU, XLA gives products, sums and convolutions to the library YNNPACK. Its convolutions are slow, above all in
# the gradient of the filters: for 32 images of 32 x 32 x 64, forward and backward take 103 ms with it and 34 ms without
# on two cores; for 16 x 16 x 128, 64 and 28 ms. A training step of a ResNet-18, batch 32, takes 1.5 to 1.6 s with all
# of it, 1.05 s without its convolutions, and 1.4 s without YNNPACK. Its element-wise work is off by default, too; with
# it, XLA refuses some programs ("unsupported layout"). Products that stand alone must stay: without them, the closed
# form of the nearest frame at (d, K) = (2048, 1000) takes 245 ms instead of 177 ms.
_KINDS = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
_KNOWN = ("0.10.", "0.11.", "0.12.")  # XLA ends the process at a flag that it does not know, so later versions get none


def faster_convolutions() -> None:
    """Let XLA compute convolutions on a CPU by itself. It heeds this only before its first program.

    Nothing changes if the environment has this flag already (`XLA_FLAGS`), or if the version of jaxlib is not known to
    have it. Programs for accelerators are the same.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags and metadata.version("jaxlib").startswith(_KNOWN):
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}={_KINDS}".strip()
